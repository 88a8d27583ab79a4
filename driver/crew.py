"""RAY SHELL: the run's processes: started, watched, replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import ray

from common.endings import EnvironmentFailed, HostUnfit, RunEnded
from common.process import Process
from driver.hosts import hosts_of
from driver.supervisor import GiveUp, Supervisor, WorkerName
from driver.view.console import Console
from driver.watch import Watch

# Processes whose `run` turns a loop until they are stopped; the others only answer.
_RUNNING = ("actor", "evaluator", "learner")
# Whose handle others hold, and so have to be told of the process that takes its place.
_CALLED_BY_OTHERS = ("replay", "weight_store")
# Those that can be put on another host.
_ANYWHERE = ("actor", "evaluator")
_START_ORDER = ("weight_store", "replay", "learner", "actor", "evaluator")
_ANSWER_S = 60.0
# Silence after which a process is asked whether it is alive, and the longest before its first sign
# of work: importing torch in many processes on few cores takes its time, and so does compiling.
_ASK_S = 5.0
_FIRST_SIGN_S = 600.0
# Between two rounds of supervision; usually it is a second or two.
_STANDSTILL_S = 10.0
# Without a host for so long, a process is said to wait for one; of changes it is told as often.
_WAIT_TOLD_S = 10.0
# What Ray says of a process whose constructor raised.
_CONSTRUCTOR_FAILED = "error raised in its creation task"


def cause_of(error: BaseException) -> str:
    """Return the line of a Ray error that says what happened, which is its last."""
    if isinstance(error, RunEnded):
        return str(getattr(error, "cause", error))  # without the process's traceback around it
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


class Crew:
    """Every process of a run, by (role, index).

    The loop it lives in:

        for name in everyone: crew.start(name)
        while running: crew.supervise()        # raises RunEnded when it has to give up

    It alone creates processes (Ray is told never to restart one), so it knows every incarnation's
    number. A process that died is replaced by the next incarnation, after a delay if it died
    quickly; one that is silent for too long is killed first. One for which no host has room is not
    silent: it waits, however long that takes. Whoever called the dead one is told of the new one.
    One thread only.
    """

    def __init__(
        self,
        *,
        create: Callable[[WorkerName, int], Any],
        asks: Callable[[WorkerName], str],
        avoid: Callable[[str], bool],
        on_death: Callable[[WorkerName], None],
        incarnations: Mapping[str, int],
        hang_s: float,
        console: Console,
        is_local: bool,
    ) -> None:
        """Know nobody yet.

        Args:
          create: makes the process of a name and an incarnation number; returns its handle.
          asks: says what a process needs of a host.
          avoid: told the number of a host that nothing more is to be started on; returns whether
            that is new.
          on_death: told of every death.
          incarnations: as `incarnations` returned before the run was resumed.
          hang_s: silence after which a process counts as hung.
          console: gets events.
          is_local: every process runs on this host, so that one which Ray cannot reach can be
            killed without it.
        """
        self._create = create
        self._asks = asks
        self._avoid = avoid
        self._supervisor = Supervisor(
            quick_death_s=30.0, give_up_deaths=10, first_delay_s=1.0, max_delay_s=30.0
        )
        self._supervisor.load_state_dict(incarnations)
        self._watch = Watch(
            ask_s=min(_ASK_S, hang_s / 2), first_s=max(_FIRST_SIGN_S, hang_s), silence_s=hang_s
        )
        self._hang_s = hang_s
        self._console = console
        self._is_local = is_local
        self._on_death = on_death
        self._handles: dict[WorkerName, Any] = {}
        self._incarnations: dict[WorkerName, int] = {}
        self._dead: set[WorkerName] = set()
        self.hosts: set[str] = set()  # Ray's numbers of all that a process was ever begun on
        self._unplaced: dict[WorkerName, float] = {}  # who has no host yet, and since when
        # Of whom it was last said that they wait for one, and beside how many actors that play.
        self._told: tuple[set[WorkerName], int] = (set(), 0)
        self._told_s = 0.0  # when it was said
        self._runs: dict[Any, WorkerName] = {}  # ObjectRef of `run` -> whose
        self._questions: dict[Any, WorkerName] = {}  # ObjectRef of `alive` -> whose
        self._processes: dict[WorkerName, Process] = {}
        self._places: dict[WorkerName, tuple[str, float]] = {}  # where the silent said, and when
        self._slow: set[WorkerName] = set()  # of whom it was said that they take long
        self._has_played = False  # whether an actor pushed
        self._supervised_s = time.monotonic()
        self._died_s: dict[WorkerName, float] = {}  # of those that have not come back yet

    def start(self, name: WorkerName) -> None:
        """Start a process for the first time, or again; tell those who call it."""
        now_s = time.monotonic()
        incarnation = self._incarnations[name] = self._supervisor.started(*name)
        handle = self._handles[name] = self._create(name, incarnation)
        self._dead.discard(name)
        self._slow.discard(name)
        self._places.pop(name, None)
        if self._is_local:  # there is room for everybody
            self._begin_to_watch(name, now_s)
        else:
            self._unplaced[name] = now_s
        if name[0] in _RUNNING:
            self._runs[handle.run.remote()] = name
        if name[0] in _CALLED_BY_OTHERS:
            for other in self._handles:
                if other[0] in _RUNNING and other not in self._dead:
                    self._handles[other].replace.remote(*name, handle)

    def incarnations(self) -> dict[str, int]:
        """Return the next number of every process; keep it, lest one is given twice."""
        return self._supervisor.state_dict()

    def restarts(self) -> dict[str, int]:
        """Return how often processes of each role were started again."""
        return {role: self._supervisor.restarts(role) for role in _START_ORDER}

    def handle(self, name: WorkerName) -> Any:
        """Return the handle of a process, None while it is dead or was never started."""
        return None if name in self._dead else self._handles.get(name)

    def handles(self, role: str) -> list[Any]:
        """Return the handles of a role by index; of a dead process the handle it had."""
        return [handle for (theirs, _), handle in sorted(self._handles.items()) if theirs == role]

    def living(self, role: str) -> dict[WorkerName, Any]:
        """Return the handles of a role's processes that are not known to be dead."""
        return {
            name: handle
            for name, handle in self._handles.items()
            if name[0] == role and name not in self._dead
        }

    def runs(self, role: str) -> list[Any]:
        """Return the ObjectRefs of `run` of a role's living processes that have a host."""
        return [
            ref
            for ref, name in self._runs.items()
            if name[0] == role and name not in self._unplaced
        ]

    def playing(self) -> int:
        """Return how many actors have done something since they were last started."""
        return sum(self._watch.has_worked(name) for name in self.living("actor"))

    def heard(self, name: WorkerName, incarnation: int) -> None:
        """Take note that a process was at work just now; word of a dead incarnation is ignored."""
        self._has_played = self._has_played or name[0] == "actor"
        if incarnation == self._incarnations[name]:
            self._watch.heard(name, time.monotonic())
            self._welcome(name)

    def supervise(self) -> None:
        """Bury the dead and the silent, ask the quiet, start again whoever is due.

        Raises:
          RunEnded: one died too often, or of what another start would not mend.
          EnvironmentFailed: an environment failed before anything was ever played.
        """
        now_s = time.monotonic()
        if now_s - self._supervised_s > _STANDSTILL_S:  # Ctrl-Z, a disk that did not answer
            self._watch.stood_still(now_s - self._supervised_s)
        self._supervised_s = now_s
        self._find_hosts(now_s)
        for ref in _ready(self._runs):
            if (name := self._runs.pop(ref, None)) is None:
                continue  # buried a moment ago
            try:
                ray.get(ref, timeout=_ANSWER_S)
            except ray.exceptions.RayError as error:
                self.bury(name, self._handles[name], error)
            else:
                self._bury(name, "it ended by itself")
        self._listen()
        now_s = time.monotonic()
        for name, silence_s in self._watch.hung(now_s).items():
            place = self._place(name, now_s)
            reason = f"it hung: silent for {silence_s:.0f} s {place}".rstrip()
            reason += f" ({self._allowance(name)})"
            if name[0] == "actor" and place and not self._has_played:
                self._give_up(name, EnvironmentFailed(f"actor {name[1]}: {reason}"))
            self._bury(name, reason, since_s=silence_s)
        # Who is called by others first, so that nobody begins by calling the dead.
        for name in sorted(
            self._supervisor.due(now_s), key=lambda name: _START_ORDER.index(name[0])
        ):
            self.start(name)

    def bury(self, name: WorkerName, handle: Any, error: ray.exceptions.RayError) -> None:
        """Take note that a call to a process failed, unless another took its place meanwhile.

        Raises:
          RunEnded, EnvironmentFailed: as `supervise`.
        """
        if handle is not self.handle(name):
            return
        why = ""
        can_move = self._has_played and name[0] in _ANYWHERE and not self._is_local
        unfit = cause_of(error).partition(f"{HostUnfit.__name__}: ")[2]
        if can_move and _CONSTRUCTOR_FAILED in str(error):
            unfit = unfit or cause_of(error)  # code so old that it does not even begin
        if unfit and not can_move:
            self._give_up(name, RunEnded(unfit) if self._has_played else HostUnfit(unfit))
        if unfit:
            host = hosts_of({name: handle}).get(name)
            if host and self._avoid(host):
                self._console.note(f"nothing more is started on a host that is not fit: {unfit}")
        elif isinstance(error, EnvironmentFailed):
            if not self._has_played:
                self._give_up(name, EnvironmentFailed(cause_of(error), error.details))
            self._console.log(error.details)
        elif isinstance(error, FloatingPointError):  # Ray raises the cause's own type, too
            why = "refused its own numbers"
        elif isinstance(error, RunEnded):
            why = "cannot go on"
        elif _CONSTRUCTOR_FAILED in str(error) and self._supervisor.restarts(name[0]) == 0:
            why = "did not come up"
        if why:
            self._give_up(name, RunEnded(f"the {name[0]} {why}: {cause_of(error)}"))
        self._bury(name, unfit or cause_of(error))

    def _give_up(self, name: WorkerName, why: RunEnded) -> NoReturn:
        """Kill what may be left of a process, and raise why none takes its place."""
        self._dead.add(name)
        self._kill(name)
        raise why

    def _bury(self, name: WorkerName, reason: str, since_s: float = 0.0) -> None:
        """Kill what may be left of a process and decide on another.

        Args:
          name: whose.
          reason: of its death.
          since_s: seconds that it had done nothing before: it did not live then.
        """
        role, index = name
        died_s = time.monotonic() - since_s
        self._dead.add(name)
        self._died_s.setdefault(name, died_s)
        self._kill(name)
        self._on_death(name)
        decision = self._supervisor.died(role, index, reason, died_s)
        if isinstance(decision, GiveUp):
            raise RunEnded(decision.reason)
        when = f"in {decision.delay_s:.0f} s" if decision.delay_s else "at once"
        self._console.note(f"{role} {index} died, starting it again {when}: {reason}")

    def _welcome(self, name: WorkerName) -> None:
        """Take note that a process works, and say so if it had died."""
        self._supervisor.worked(*name, time.monotonic())
        if name in self._died_s and name not in self._dead:
            away_s = time.monotonic() - self._died_s.pop(name)
            self._console.note(f"{name[0]} {name[1]} is back after {away_s:.1f} s")

    def _kill(self, name: WorkerName) -> None:
        """Make sure that nothing of a process is left: it may only hang, or have raised."""
        self._watch.forget(name)
        self._unplaced.pop(name, None)
        for refs in (self._runs, self._questions):
            for ref in [ref for ref, whose in refs.items() if whose == name]:
                del refs[ref]
        ray.kill(self._handles[name], no_restart=True)
        process = self._processes.pop(name, None)
        if process is not None and self._is_local:
            process.kill()  # Ray asks it to end, which a stopped one does not hear

    def _find_hosts(self, now_s: float) -> None:
        """Begin to watch whoever has a host now; say who waits for one, and each change of that."""
        if self._unplaced:
            found = hosts_of({name: self._handles[name] for name in self._unplaced})
            self.hosts.update(host for host in found.values() if host)
            for name in found:
                del self._unplaced[name]
                self._begin_to_watch(name, now_s)
        waiting = {n for n, since_s in self._unplaced.items() if now_s - since_s > _WAIT_TOLD_S}
        told = (waiting, self.playing() if waiting else 0)
        if told == self._told or (waiting and now_s - self._told_s < _WAIT_TOLD_S):
            return
        already, self._told, self._told_s = self._told[0], told, now_s
        actors = [name for name in waiting if name[0] == "actor"]
        if actors:
            everyone = sum(name[0] == "actor" for name in self._handles)
            self._console.note(
                f"{told[1]} of {everyone} actors play, {len(actors)} wait for a host with "
                f"{self._asks(actors[0])}"
            )
        for name in sorted(waiting - already - set(actors)):
            self._console.note(f"{name[0]} {name[1]} waits for a host with {self._asks(name)}")
        if not waiting:
            self._console.note("every process has found a host")

    def _begin_to_watch(self, name: WorkerName, now_s: float) -> None:
        self._watch.started(name, now_s)
        self._ask(name)

    def _listen(self) -> None:
        """Take in the answers of those who were asked, and ask who is due."""
        for ref in _ready(self._questions):
            if (name := self._questions.pop(ref, None)) is None:
                continue  # buried a moment ago
            try:
                alive = ray.get(ref, timeout=_ANSWER_S)
            except ray.exceptions.RayError as error:
                self.bury(name, self._handles[name], error)
                continue
            if alive.process is not None:
                self._processes[name] = alive.process
            alive_s = None if alive.idle_s is None else time.monotonic() - alive.idle_s
            self._watch.answered(name, alive_s)
            self._places[name] = (alive.place, time.monotonic())
            self._tell_if_slow(name)
            if alive_s is not None:
                self._welcome(name)
        for name in self._watch.due(time.monotonic()):
            self._ask(name)

    def _tell_if_slow(self, name: WorkerName) -> None:
        """Say once which call takes a process so long, and which setting allows it."""
        now_s = time.monotonic()
        silence_s, place = self._watch.silence_s(name, now_s), self._place(name, now_s)
        if place and silence_s > self._hang_s / 2 and name not in self._slow:
            self._slow.add(name)
            self._console.note(
                f"{name[0]} {name[1]} takes long: silent for {silence_s:.0f} s {place} "
                f"({self._allowance(name)})"
            )

    def _place(self, name: WorkerName, now_s: float) -> str:
        """Return where a process said that it is; a stopped one says nothing any more."""
        place, told_s = self._places.get(name, ("", now_s))
        return place if now_s - told_s < self._hang_s / 2 else ""

    def _allowance(self, name: WorkerName) -> str:
        allowed_s = self._watch.allowed_s(name)
        early = "" if allowed_s == self._hang_s else " before its first sign of work"
        return f"--health.hang-s {self._hang_s:g} allows {allowed_s:g} s{early}"

    def _ask(self, name: WorkerName) -> None:
        self._watch.asked(name)
        self._questions[self._handles[name].alive.remote()] = name


def _ready(refs: dict[Any, WorkerName]) -> list[Any]:
    """Return the ObjectRefs whose answer is there."""
    return ray.wait(list(refs), num_returns=len(refs), timeout=0)[0] if refs else []
