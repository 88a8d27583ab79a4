"""Who died, when to start it again, when to give up: decisions only, no processes, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

# The quick death in a row from which on a restart is delayed; the first restart is at once.
_FIRST_DELAYED_DEATH = 2


class Recreate(NamedTuple):
    """Start the worker again.

    Fields:
      delay_s: seconds to wait first.
      quick_deaths: quick deaths in a row, this one included; 0 if it had lived long.
    """

    delay_s: float
    quick_deaths: int


class GiveUp(NamedTuple):
    """End the run.

    Fields:
      reason: one line for the user: who, how often, and the last death's reason.
    """

    reason: str


Decision = Recreate | GiveUp


# Names a worker over all its incarnations: (role, index), e.g. ("actor", 3).
WorkerName = tuple[str, int]


@dataclass
class _Worker:
    """What is known of one worker.

    `worked_s` is when it began to work, `decision` is None while it lives; `quick_deaths` are in a
    row; `due_s` is when it may be started again.
    """

    worked_s: float | None = None
    quick_deaths: int = 0
    decision: Decision | None = None
    due_s: float = 0.0


class Supervisor:
    """Gives incarnation numbers, counts restarts, backs off and gives up.

    The driver's loop, with the driver doing all that touches a process:

      for worker in everyone:
          handles[worker] = create(*worker, incarnation=supervisor.started(*worker))
      while running:
          for worker, reason in found_dead():
              decision = supervisor.died(*worker, reason, now)
              if isinstance(decision, GiveUp): shut down, print decision.reason
          for worker in supervisor.due(now):
              handles[worker] = create(*worker, incarnation=supervisor.started(*worker))
          for worker in found_at_work():
              supervisor.worked(*worker, now)

    A death is QUICK if the worker lived less than `quick_death_s` since it began to work; before it
    did not live: to import and to compile may take minutes. Each worker's quick deaths in a row are
    counted: after the first it is started again at once, after the second with a delay of
    `first_delay_s`, which then doubles each time up to `max_delay_s`, and after `give_up_deaths` of
    them the run is given up. A worker that lived long starts over from no deaths.

    Times are seconds of any clock that never goes back, passed in. One thread only.
    """

    def __init__(
        self, *, quick_death_s: float, give_up_deaths: int, first_delay_s: float, max_delay_s: float
    ) -> None:
        """Know no workers yet.

        Args:
          quick_death_s: a worker that lived less died quickly.
          give_up_deaths: quick deaths in a row, of one worker, after which the run is given up.
          first_delay_s: delay after the second quick death; doubles with each further one.
          max_delay_s: longest delay.

        Raises:
          ValueError: `give_up_deaths` < 1, or a time that is negative.
        """
        if give_up_deaths < 1:
            raise ValueError(f"Expect `give_up_deaths` >= 1, actually: {give_up_deaths}")
        for name, value in (
            ("quick_death_s", quick_death_s),
            ("first_delay_s", first_delay_s),
            ("max_delay_s", max_delay_s),
        ):
            if not value >= 0.0:
                raise ValueError(f"Expect `{name}` >= 0, actually: {value}")
        self._quick_death_s = quick_death_s
        self._give_up_deaths = give_up_deaths
        self._first_delay_s = first_delay_s
        self._max_delay_s = max_delay_s
        self._workers: dict[WorkerName, _Worker] = {}
        self._next_incarnation: Counter[WorkerName] = Counter()
        self._restarts: Counter[str] = Counter()

    def started(self, role: str, index: int) -> int:
        """Return the incarnation number of the worker that is being started now.

        If it died before, this counts as a restart of its role. Incarnations of one worker are 0,
        1, 2, ... and go on over a resume (`load_state_dict`).

        Raises:
          ValueError: the worker is alive, or the run was given up because of it.
        """
        name = (role, index)
        worker = self._workers.get(name)
        if worker is None:
            self._workers[name] = _Worker()
        elif isinstance(worker.decision, Recreate):
            worker.worked_s = None
            worker.decision = None
            self._restarts[role] += 1
        else:
            state = "alive" if worker.decision is None else "given up"
            raise ValueError(f"Expect {role} {index} dead before a restart, actually: {state}")
        incarnation = self._next_incarnation[name]
        self._next_incarnation[name] += 1
        return incarnation

    def worked(self, role: str, index: int, now: float) -> None:
        """Take note that a worker was at work; the first time after its start counts."""
        worker = self._workers[role, index]
        if worker.worked_s is None:
            worker.worked_s = now

    def died(self, role: str, index: int, reason: str, now: float) -> Decision:
        """Take note of a death and decide.

        A death that is told again before the restart (two calls to the same worker failed) gets the
        same decision and is not counted. The caller must not tell of a death that an EARLIER
        incarnation's call reports late.

        Args:
          role: the worker's role.
          index: the worker's index.
          reason: why, as far as known.
          now: when, in seconds.

        Raises:
          KeyError: the worker was never started.
        """
        name = (role, index)
        if name not in self._workers:
            raise KeyError(f"{role} {index} died but was never started")
        worker = self._workers[name]
        if worker.decision is None:
            lived_s = 0.0 if worker.worked_s is None else now - worker.worked_s
            worker.quick_deaths = worker.quick_deaths + 1 if lived_s < self._quick_death_s else 0
            worker.decision = self._decide(name, worker.quick_deaths, reason)
            if isinstance(worker.decision, Recreate):
                worker.due_s = now + worker.decision.delay_s
        return worker.decision

    def due(self, now: float) -> list[WorkerName]:
        """Return the dead workers whose delay is over, the longest due first; none given up."""
        waiting = [
            (worker.due_s, name)
            for name, worker in self._workers.items()
            if isinstance(worker.decision, Recreate) and worker.due_s <= now
        ]
        return [name for _, name in sorted(waiting)]

    def restarts(self, role: str) -> int:
        """Return how often this process started workers of `role` again after a death."""
        return self._restarts[role]

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed run must know: the next incarnation number by "role/index".

        Save it whenever a worker was started: a number that is given twice makes new pushes look
        like repeats.
        """
        return {
            f"{role}/{index}": number for (role, index), number in self._next_incarnation.items()
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on with the incarnation numbers of an earlier `state_dict`, before any start."""
        assert not self._workers, f"{len(self._workers)} workers were started before the load"
        for key, number in state.items():
            role, _, index = key.rpartition("/")
            self._next_incarnation[role, int(index)] = number

    def _decide(self, name: WorkerName, quick_deaths: int, reason: str) -> Decision:
        if quick_deaths >= self._give_up_deaths:
            return GiveUp(
                f"{name[0]} {name[1]} died {quick_deaths} times in a row, each time less than "
                f"{self._quick_death_s:g} s after its start; the last time: {reason}"
            )
        if quick_deaths < _FIRST_DELAYED_DEATH:
            return Recreate(delay_s=0.0, quick_deaths=quick_deaths)
        # Float powers of two overflow beyond 1023, and only give_up_deaths bounds the exponent.
        doublings = min(quick_deaths - _FIRST_DELAYED_DEATH, 1000)
        return Recreate(min(self._first_delay_s * 2.0**doublings, self._max_delay_s), quick_deaths)
