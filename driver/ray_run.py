"""RAY SHELL: one run as Ray processes: wired, followed, told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray

from actors.worker import Actor, Evaluator
from common.endings import RunEnded
from common.files import UnreadableFile
from common.reports import EvaluationResult, LearnerReport, ReplayReport
from common.source import own_source
from common.types import Weights
from driver.crew import Crew, cause_of
from driver.evaluations import Evaluations
from driver.goal import ReturnGoal
from driver.hosts import Host, living_hosts
from driver.interrupts import Interrupts
from driver.placement import Placement
from driver.plan import Plan
from driver.ray_session import dead_daemon
from driver.saves import RunSaves
from driver.supervisor import WorkerName
from driver.view.console import Console
from driver.view.reporter import Reporter
from learner.weight_store import WeightStore
from learner.worker import LearnerServer
from replay.server import ReplayServer

_ANSWER_S = 60.0
_SAVE_S = 120.0
_QUICK_SAVE_S = 6.0  # after Ctrl-C somebody waits
_LEAST_SAVE_S = 3.0
# Between two rounds of reports, and how long a round waits for them.
_ROUND_S = 1.0
_REPORTS_S = 0.5
# For the actors to come out of their loops, once they are told to stop.
_ACTORS_STOP_S = 5.0
# For reports that were asked for before the end; a process that hangs has none.
_LAST_REPORTS_S = 3.0

_LEARNER = ("learner", 0)
_EVALUATOR = ("evaluator", 0)
_STORE = ("weight_store", 0)


class RayRun:
    """One run as Ray processes: weight store, replay shards, learner, evaluator, actors."""

    def __init__(
        self,
        *,
        plan: Plan,
        reporter: Reporter,
        console: Console,
        interrupts: Interrupts,
        on_evaluation: Callable[[EvaluationResult, Weights], None],
        is_local: bool,
    ) -> None:
        """Prepare; Ray is up already.

        Args:
          plan: what to run.
          reporter: gets the reports.
          console: gets events.
          interrupts: asked whether to stop.
          on_evaluation: gets each evaluation with the weights that played.
          is_local: Ray runs for this run alone, on this machine.
        """
        self._plan = plan
        self._on_evaluation = on_evaluation
        self._reporter = reporter
        self._console = console
        self._interrupts = interrupts
        self._is_local = is_local
        self._source = own_source()
        self._crew = Crew(
            create=self._create,
            asks=lambda name: self._placement.asks(name),
            avoid=lambda host: self._placement.avoid(host),
            on_death=self._count_out,
            incarnations=plan.incarnations,
            hang_s=plan.config.health.hang_s,
            console=console,
            is_local=is_local,
        )
        self._shards: list[WorkerName] = [("replay", k) for k in range(plan.config.replay.shards)]
        # Who was asked, and the ObjectRef of the answer under way.
        self._asked: dict[WorkerName, tuple[Any, Any]] = {}  # for reports
        self._descriptions: dict[WorkerName, tuple[Any, Any]] = {}
        # Of the living learner: the step it told of first, and whether it took one since.
        self._first_step: int | None = None
        self._has_learned = False
        self._kept: dict[str, int] = {}  # incarnations' numbers, as written down
        self._can_keep = True
        self._hosts: dict[str, Host] = {}  # of a cluster, by Ray's number
        self._looked_up: set[str] = set()  # numbers; one may be gone before its host is known
        self._evaluations = Evaluations(
            crew=self._crew,
            console=console,
            every_s=plan.config.evaluator.every_minutes * 60.0,
            on_result=self._evaluated,
        )
        self._saves = RunSaves(
            crew=self._crew,
            console=console,
            folder=plan.folder,
            every_s=plan.config.checkpoint.every_minutes * 60.0,
            names=[_LEARNER, *self._shards],
            newest=plan.resume_from,
        )
        self._goal = ReturnGoal(
            at_least=plan.config.stop_at_return,
            of=plan.config.stop_at_return_of,
            before=plan.before.returns,
        )
        self._silent = set(range(plan.config.actor.count))  # actors that never pushed
        self._started_s = time.monotonic()

    def run(self) -> str:
        """Start everything, watch until the end, stop everything.

        Returns:
          Why it ended: "done", what reached `--stop-at-return`, or "interrupted".

        Raises:
          RunEnded: it cannot go on, or could not be saved.
        """
        if not self._start():
            return "interrupted"
        reason = ""
        try:
            while not self._interrupts.requested.wait(_ROUND_S) and not (reason := self._poll()):
                self._crew.supervise()
                self._keep_incarnations()  # before anything of theirs is saved
                self._note_hosts()
                if self._has_learned:  # else there is nothing worth a file
                    self._saves.ask_when_due()
                self._saves.look_after()
        except RunEnded as ended:
            self._console.note(f"the run cannot go on: {ended}{self._saves.last_good()}")
            try:
                self._stop(in_order=False)
            except RunEnded as unsaved:
                self._console.note(str(unsaved))
            raise
        if self._goal.reached:
            self._console.note(self._goal.reached)
        is_interrupted = self._interrupts.requested.is_set()
        try:
            self._stop(in_order=not is_interrupted)
        except RunEnded as unsaved:
            if reason or not is_interrupted:
                raise RunEnded(f"{unsaved}{self._saves.last_good()}") from unsaved
            self._console.note(f"{unsaved}{self._saves.last_good()}")
        return reason or "interrupted"

    # --- start ---------------------------------------------------------------------------------

    def _start(self) -> bool:
        """Start the processes; return False when somebody interrupts."""
        config = self._plan.config
        self._placement = Placement(config, is_local=self._is_local)
        if not self._placement.wait(self._interrupts.requested.is_set, self._console.note):
            return False
        self._crew.start(_STORE)
        for shard in self._shards:
            self._crew.start(shard)
        self._crew.start(_LEARNER)
        for actor in range(config.actor.count):
            self._crew.start(("actor", actor))
        if config.evaluator.enabled:
            self._crew.start(_EVALUATOR)
        self._keep_incarnations()
        return True

    def _create(self, name: WorkerName, incarnation: int) -> Any:
        """Start a process; return its handle."""
        role, index = name
        plan, source = self._plan, self._source
        options = self._placement.options(name)
        if role == "weight_store":
            return WeightStore.options(**options).remote()
        if role == "replay":
            folder = plan.folder.snapshots_place(index)
            shard = ReplayServer.options(**options).remote(
                plan.config, plan.spec, index, incarnation, plan.max_bytes,
                folder if plan.config.checkpoint.replay else None,
                self._reporter.totals.accepted_by(index), source,
            )  # fmt: skip
            self._descriptions[name] = (shard, shard.describe.remote())
            return shard
        servers, store = self._crew.handles("replay"), self._crew.handles("weight_store")[0]
        if role == "learner":
            self._learner_incarnation = incarnation
            self._first_step, self._has_learned = None, False
            learner = LearnerServer.options(**options).remote(
                plan.config,
                plan.spec,
                servers,
                store,
                checkpoints=plan.folder.place("checkpoints"),
                resume_from=self._saves.newest,
                agent_steps_before=plan.before.agent_steps,
                episodes_before=plan.before.episodes,
                incarnation=incarnation,
                is_first=incarnation == plan.incarnations.get("learner/0", 0),
                neighbours=self._placement.neighbours,
                has_gpu=self._placement.has_gpu,
                source=source,
            )
            self._descriptions[name] = (learner, learner.describe_once_warm.remote())
            return learner
        if role == "evaluator":
            return Evaluator.options(**options).remote(
                plan.config, plan.spec, store, self._evaluations.first_in_s, incarnation, source
            )
        return Actor.options(**options).remote(
            plan.config, plan.spec, servers, store, index, incarnation, source
        )

    def _keep_incarnations(self) -> None:
        """Write down which numbers are given: after a crash they must not be given again."""
        given = self._crew.incarnations()
        if given == self._kept:
            return
        try:
            self._plan.folder.write_incarnations(given)
        except OSError as error:
            if self._can_keep:
                self._console.note(f"{self._plan.folder.path}: cannot be written: {error}")
            self._can_keep = False
            return
        self._kept, self._can_keep = given, True

    def _note_hosts(self) -> None:
        """Write down on which of a cluster's hosts the run has processes, as they come."""
        if self._is_local or self._crew.hosts <= self._looked_up:
            return
        known = living_hosts()
        self._hosts |= {number: known[number] for number in self._crew.hosts & known.keys()}
        facts: list[Any] = [host._asdict() for host in self._hosts.values()]
        with suppress(OSError, UnreadableFile):  # of a folder that cannot be written much is said
            self._plan.folder.note_hosts(facts)
            self._looked_up |= self._crew.hosts

    def _count_out(self, name: WorkerName) -> None:
        """Take note that a process is dead."""
        if name[0] == "replay":
            self._reporter.totals.died(name[1])

    # --- follow --------------------------------------------------------------------------------

    def _poll(self) -> str:
        """Gather reports and show them; return why the run is over, "" while it is not.

        Raises:
          RunEnded: Ray itself died.
        """
        if self._is_local and (what := dead_daemon(self._plan.config.health.hang_s)):
            raise RunEnded(f"Ray died: {what}")
        if moved := self._plan.folder.move_noticed():
            self._console.note(moved)
        for name in [_LEARNER, *self._shards]:
            handle = self._crew.handle(name)
            if handle is not None and name not in self._asked:
                self._asked[name] = (handle, handle.report.remote())
        self._book(self._answers(_REPORTS_S))
        progress = self._reporter.progress
        played = progress.agent_steps - self._plan.before.agent_steps
        ended = progress.episodes - self._plan.before.episodes
        is_done = played >= self._plan.agent_steps_left or ended >= self._plan.episodes_left
        return self._goal.reached or ("done" if is_done else "")

    def _answers(self, timeout_s: float) -> dict[WorkerName, Any]:
        """Return the reports that come in time; the others are taken in by a later round."""
        refs = [ref for _, ref in self._asked.values()]
        if not refs:
            return {}
        ready = set(ray.wait(refs, num_returns=len(refs), timeout=timeout_s)[0])
        answers = {}
        for name, (handle, ref) in list(self._asked.items()):
            if ref not in ready:
                continue
            del self._asked[name]
            try:
                answers[name] = ray.get(ref, timeout=_ANSWER_S)
            except ray.exceptions.RayError as error:
                self._crew.bury(name, handle, error)
        return answers

    def _book(self, answers: dict[WorkerName, Any]) -> None:
        learner: LearnerReport | None = answers.get(_LEARNER)
        shards: dict[int, ReplayReport] = {
            index: report for (role, index), report in answers.items() if role == "replay"
        }
        lost = self._reporter.totals.lost
        self._reporter.update(shards, learner, self._crew.restarts(), self._crew.playing())
        if lost := self._reporter.totals.lost - lost:
            self._console.note(f"{lost:,} transitions were lost with the replay shard that died")
        self._goal.trained(game.episode_return for s in shards.values() for game in s.episodes)
        if learner is not None and learner.version.incarnation == self._learner_incarnation:
            if self._first_step is None:
                self._first_step = learner.learner_step
            self._has_learned = learner.learner_step > self._first_step
        for name, report in answers.items():
            self._saves.told(name, report.save)
        self._hear(shards)
        self._describe()
        self._evaluations.book(timeout_s=0.0)

    def _hear(self, shards: dict[int, ReplayReport]) -> None:
        """Take a shard's report, and a push it tells of, as a sign of life."""
        for index, shard in shards.items():
            self._crew.heard(("replay", index), shard.counts.incarnation)
        pushed = set()
        for actor, incarnation, _ in [one for shard in shards.values() for one in shard.actors]:
            self._crew.heard(("actor", actor), incarnation)
            pushed.add(actor)
        if self._silent and self._silent <= pushed:
            waited_s = time.monotonic() - self._started_s
            self._console.note(f"every actor has pushed, {waited_s:.1f} s after Ray was up")
        self._silent -= pushed

    def _describe(self) -> None:
        """Say on what the learner learns and what replay holds, once they have told."""
        for name, (handle, ref) in list(self._descriptions.items()):
            if not ray.wait([ref], timeout=0)[0]:
                continue
            del self._descriptions[name]
            try:
                description = ray.get(ref, timeout=_ANSWER_S)
            except ray.exceptions.RayError as error:
                self._crew.bury(name, handle, error)
                continue
            if description:
                self._console.note(f"{name[0]} {name[1]}: {description}")

    def _evaluated(self, result: EvaluationResult, weights: Weights) -> None:
        self._reporter.evaluated(result)
        self._goal.evaluated(result.returns)
        self._on_evaluation(result, weights)

    # --- stop ----------------------------------------------------------------------------------

    def _stop(self, *, in_order: bool) -> None:
        """Stop the actors, let learner and replay save, take the last reports.

        Args:
          in_order: the run is done; then the last weights are evaluated, too.

        Raises:
          RunEnded: learner or replay could not save.
        """
        if self._is_local and dead_daemon(self._plan.config.health.hang_s):
            return  # nobody to ask
        # One that has not learned has nothing to save, and may be compiling.
        learner = self._crew.handle(_LEARNER) if in_order or self._has_learned else None
        if learner is None and not self._saves.newest:
            return
        self._console.note("stopping: learner and replay save; Ctrl-C again to force")
        for actor in self._crew.living("actor").values():
            actor.stop.remote()
        if not in_order:
            self._evaluations.stop()
        if playing := self._crew.runs("actor"):
            ray.wait(playing, num_returns=len(playing), timeout=_ACTORS_STOP_S)
        self._book(self._answers(_LAST_REPORTS_S))
        self._finish(learner, _SAVE_S if in_order else _QUICK_SAVE_S)
        if in_order:
            self._evaluations.finish(self._interrupts.requested.is_set)

    def _finish(self, learner: Any, timeout_s: float) -> None:
        """Let the learner and then the shards write what they have, and take their last reports.

        Args:
          learner: None where it is down, or has nothing to save.
          timeout_s: for all of them together.

        Raises:
          RunEnded: one could not; the others did.
        """
        self._keep_incarnations()
        deadline_s = time.monotonic() + timeout_s
        last: dict[WorkerName, Any] = {}
        # One that was started a moment ago and has no host yet has nothing to save.
        if learner is not None and (learning := self._crew.runs("learner")):
            learner.stop.remote()
            last[_LEARNER] = learning[0]
            ray.wait(learning, timeout=timeout_s)  # it asks the shards for their counts
        for name, shard in self._crew.living("replay").items():
            last[name] = shard.finish.remote()
        left_s = max(_LEAST_SAVE_S, deadline_s - time.monotonic())
        ray.wait(list(last.values()), num_returns=len(last), timeout=left_s)
        reports, failures = {}, []
        for name, ref in last.items():
            try:
                report = ray.get(ref, timeout=0.1)
                reports[name] = report or ray.get(learner.report.remote(), timeout=_ANSWER_S)
            except (ray.exceptions.RayError, OSError, FloatingPointError) as error:
                failures.append(f"{name[0]} {name[1]} could not save: {cause_of(error)}")
        self._book(reports)
        if failures:
            raise RunEnded("; ".join(failures))
