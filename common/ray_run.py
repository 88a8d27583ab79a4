"""RAY SHELL: one run as Ray processes: started, watched, told to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import ray

from common.console import Console
from common.goal import ReturnGoal
from common.interrupts import Interrupts
from common.plan import Plan
from common.reporter import Reporter
from common.reports import EvaluationResult, LearnerReport, ReplayReport
from common.source import source_hash
from common.supervisor import GiveUp, Supervisor
from common.types import Weights

_FIRST_ANSWER_S = 300.0  # importing torch in many workers on few cores takes its time
_ANSWER_S = 60.0
_SAVE_S = 120.0
_LAST_EVALUATION_S = 600.0
# Between two rounds of reports.
_ROUND_S = 1.0


class RunEnded(Exception):
    """The run cannot go on; the text is the reason."""


class Roles(NamedTuple):
    """The Ray classes of a run's processes; `launch.py` names them, since only it knows them all.

    Fields:
      actor: actors.worker.Actor.
      evaluator: actors.worker.Evaluator.
      learner: learner.worker.LearnerServer.
      replay: replay.server.ReplayServer.
      weight_store: learner.weight_store.WeightStore.
    """

    actor: Any
    evaluator: Any
    learner: Any
    replay: Any
    weight_store: Any


class RayRun:
    """One run as Ray processes: weight store, replay shards, learner, evaluator, actors."""

    def __init__(
        self,
        *,
        plan: Plan,
        roles: Roles,
        reporter: Reporter,
        console: Console,
        interrupts: Interrupts,
        on_evaluation: Callable[[EvaluationResult, Weights], None],
        is_local: bool,
    ) -> None:
        """Prepare; Ray is up already.

        Args:
          plan: what to run.
          roles: what to run it with.
          reporter: gets the reports.
          console: gets events.
          interrupts: asked whether to stop.
          on_evaluation: gets each evaluation with the weights that played.
          is_local: Ray runs for this run alone, on this machine.
        """
        self._plan = plan
        self._roles = roles
        self._on_evaluation = on_evaluation
        self._reporter = reporter
        self._console = console
        self._interrupts = interrupts
        self._is_local = is_local
        self._source = source_hash()
        self._supervisor = Supervisor(
            quick_death_s=30.0, give_up_deaths=10, first_delay_s=1.0, max_delay_s=30.0
        )
        self._players: dict[tuple[str, int], Any] = {}  # actors and the evaluator, by (role, index)
        self._runs: dict[Any, tuple[str, int]] = {}  # ObjectRef of `run` -> whose
        self._evaluator_answers = False
        self._evaluations: Any = None  # ObjectRef of the evaluator's answer under way
        self._has_learned = False
        self._goal = ReturnGoal(
            at_least=plan.config.stop_at_return, of=plan.config.stop_at_return_of
        )
        self._silent = set(range(plan.config.actor.count))  # actors that never pushed
        self._started_s = time.monotonic()

    def run(self) -> str:
        """Start everything, watch until the end, stop everything.

        Returns:
          Why it ended: "done", what reached `--stop-at-return`, or "interrupted".
        """
        if not self._start():
            return "interrupted"
        reason = ""
        try:
            while not self._interrupts.requested.wait(_ROUND_S) and not (reason := self._poll()):
                self._supervise()
        except RunEnded as ended:
            self._console.note(f"the run cannot go on: {ended}")
            try:
                self._stop(in_order=False)
            except RunEnded as unsaved:
                self._console.note(str(unsaved))
            raise
        if self._goal.reached:
            self._console.note(self._goal.reached)
        self._stop(in_order=not self._interrupts.requested.is_set())
        return reason or "interrupted"

    def _start(self) -> bool:
        """Start the processes; return False when somebody interrupts."""
        config, plan = self._plan.config, self._plan
        cluster = _cluster_resources()
        cuda = config.learner.device == "cuda" or (
            config.learner.device == "auto" and cluster.get("GPU", 0) >= 1
        )
        if self._is_local and cuda and cluster.get("GPU", 0) < 1:
            raise RunEnded("torch sees a CUDA device, but Ray sees no GPU on this machine")
        self._cpus = self._cpu_share(cluster.get("CPU", 1.0))
        self._away = {"actor_host": 0.001} if "actor_host" in cluster else {}
        self._home = {"learner_host": 0.001} if "learner_host" in cluster else {}
        home = {"CPU": self._cpus, **self._home}
        bundles = [home | ({"GPU": 1} if cuda else {}), *[dict(home)] * config.replay.shards]
        group = ray.util.placement_group(bundles, strategy="STRICT_PACK")
        if not self._is_placed(group, bundles):
            return False

        def beside_learner(bundle: int, **options: Any) -> dict[str, Any]:
            strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=bundle
            )
            return {"scheduling_strategy": strategy, **options}

        self._store = self._roles.weight_store.options(**beside_learner(0, num_cpus=0)).remote()
        self._servers = [
            self._roles.replay.options(**beside_learner(1 + shard, num_cpus=self._cpus)).remote(
                config, plan.spec, shard, plan.incarnation, plan.max_bytes, self._source
            )
            for shard in range(config.replay.shards)
        ]
        self._learner = self._roles.learner.options(
            **beside_learner(0, num_cpus=self._cpus, num_gpus=int(cuda))
        ).remote(
            config, plan.spec, self._servers, self._store, str(plan.folder.path.resolve()),
            plan.incarnation, plan.resume_from, self._neighbours(), self._source,
        )  # fmt: skip
        self._learner_run = self._learner.run.remote()
        for actor in range(config.actor.count):
            self._create("actor", actor)
        if config.evaluator.enabled:
            self._create("evaluator", 0)
        description = self._answer(self._learner.describe.remote(), _FIRST_ANSWER_S)
        if description is None:
            return False
        self._console.note(description)
        return True

    def _neighbours(self) -> int:
        """Return how many busy processes share the learner's host: actors only if all is local."""
        config = self._plan.config
        return config.replay.shards + (config.actor.count if self._is_local else 0)

    def _cpu_share(self, cores: float) -> float:
        """CPUs for each process: whole ones on a cluster, a share of the cores on one machine."""
        config = self._plan.config
        if not self._is_local:
            return 1.0
        processes = config.actor.count + config.replay.shards + 1 + int(config.evaluator.enabled)
        return min(1.0, math.floor(cores / processes * 1000) / 1000)

    def _is_placed(self, group: Any, bundles: list[dict[str, float]]) -> bool:
        """Wait for a host that has room for learner and replay; False when somebody interrupts."""
        ready = group.ready()
        waited_s = 0
        while not ray.wait([ready], timeout=1.0)[0]:
            if self._interrupts.requested.is_set():
                return False
            waited_s += 1
            if waited_s == 10:
                self._console.note(
                    f"waiting for a host with {bundles} for learner and replay; the cluster has "
                    f"{_cluster_resources()}"
                )
        return True

    def _create(self, role: str, index: int) -> None:
        """Start an actor or the evaluator."""
        plan = self._plan
        incarnation = self._supervisor.started(role, index, time.monotonic())
        # Names of segments must differ from those of the run before it was resumed.
        incarnation += plan.incarnation << 16
        if role == "actor":
            asked = plan.config.actor.cpus
            cpus = self._cpus if asked == "auto" else asked
            handle = self._roles.actor.options(num_cpus=cpus, resources=self._away).remote(
                plan.config, plan.spec, self._servers, self._store, index, incarnation, self._source
            )
        else:
            handle = self._roles.evaluator.options(
                num_cpus=self._cpus, resources=self._home
            ).remote(plan.config, plan.spec, self._store, incarnation, self._source)
        self._players[role, index] = handle
        self._runs[handle.run.remote()] = (role, index)

    def _poll(self) -> str:
        """Gather the reports and show them; return why the run is over, "" while it is not."""
        answers = self._answer(self._ask_for_reports(), _FIRST_ANSWER_S)
        if answers is None:
            return ""
        learner, shards = answers[0], answers[1:]
        self._book(learner, shards)
        inserts: int = sum(shard.inserts for shard in shards)
        ended = self._reporter.progress.episodes - self._plan.episodes_before
        is_done = inserts >= self._plan.agent_steps_left or ended >= self._plan.episodes_left
        return self._goal.reached or ("done" if is_done else "")

    def _ask_for_reports(self) -> list[Any]:
        """Return the ObjectRefs of the learner's report and of every shard's."""
        return [self._learner.report.remote(), *[s.report.remote() for s in self._servers]]

    def _book(self, learner: LearnerReport, shards: list[ReplayReport]) -> None:
        restarts = {
            role: self._supervisor.restarts(role) for role in ("actor", "replay", "learner")
        }
        self._reporter.update(shards, learner, restarts)
        self._goal.trained(game.episode_return for shard in shards for game in shard.episodes)
        self._has_learned = learner.learner_step > self._plan.learner_steps_before
        if self._silent:
            self._silent.difference_update(*(shard.actors for shard in shards))
            if not self._silent:
                waited_s = time.monotonic() - self._started_s
                self._console.note(f"every actor has pushed, {waited_s:.1f} s after Ray was up")
        evaluator = self._players.get(("evaluator", 0))
        if evaluator is not None:
            self._book_evaluations(evaluator, timeout_s=0.0)

    def _book_evaluations(self, evaluator: Any, timeout_s: float) -> None:
        """Book the evaluations that are finished; the evaluator may take its time to answer."""
        if self._evaluations is None:
            self._evaluations = evaluator.take_results.remote()
        if not ray.wait([self._evaluations], timeout=timeout_s)[0]:
            return
        answer, self._evaluations = self._evaluations, None
        try:
            results = ray.get(answer, timeout=_ANSWER_S)
        except ray.exceptions.RayActorError:
            return  # the supervisor hears of it from its run
        self._evaluator_answers = True
        for result, weights in results:
            self._reporter.evaluated(result)
            self._goal.evaluated(result.returns)
            self._on_evaluation(result, weights)

    def _answer(self, refs: Any, timeout_s: float) -> Any:
        """Wait for answers of the learner and the shards, or return None when somebody interrupts.

        Raises:
          RunEnded: one of them died or is silent for too long.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._interrupts.requested.is_set():
            try:
                return ray.get(refs, timeout=1.0)
            except ray.exceptions.GetTimeoutError:
                if time.monotonic() > deadline_s:
                    raise RunEnded(
                        f"learner or replay did not answer in {timeout_s:.0f} s"
                    ) from None
            except ray.exceptions.RayError as error:
                raise RunEnded(cause_of(error)) from error
        return None

    def _supervise(self) -> None:
        """Recreate the players that died; end the run when the learner did."""
        now_s = time.monotonic()
        ended, _ = ray.wait(
            [self._learner_run, *self._runs], num_returns=1 + len(self._runs), timeout=0
        )
        for ref in ended:
            reason = "it ended by itself"
            try:
                ray.get(ref, timeout=_ANSWER_S)
            except ray.exceptions.RayError as error:
                reason = cause_of(error)
            if ref == self._learner_run:
                raise RunEnded(f"the learner died: {reason}")
            role, index = self._runs.pop(ref)
            decision = self._supervisor.died(role, index, reason, now_s)
            if isinstance(decision, GiveUp):
                raise RunEnded(decision.reason)
            self._console.note(
                f"{role} {index} died, starting it again in {decision.delay_s:.0f} s: {reason}"
            )
        for role, index in self._supervisor.due(now_s):
            self._create(role, index)

    def _stop(self, *, in_order: bool) -> None:
        """Stop the players, let the learner save, take the last reports.

        Args:
          in_order: the run is done; then the last weights are evaluated, too.

        Raises:
          RunEnded: the learner could not save.
        """
        if not in_order and not self._has_learned:
            return  # nothing to save, and the learner may be compiling
        self._console.note(
            "stopping: the learner saves, then everything ends; Ctrl-C again to force"
        )
        evaluator = self._players.get(("evaluator", 0))
        told = [
            handle.stop.remote()
            for handle in [self._learner, *self._players.values()]
            if not in_order or handle is not evaluator
        ]
        try:
            ray.get(self._learner_run, timeout=_SAVE_S)
            learner, *shards = ray.get(self._ask_for_reports(), timeout=_ANSWER_S)
            self._book(learner, shards)
        except ray.exceptions.RayError as error:
            raise RunEnded(f"could not save in order: {cause_of(error)}") from error
        if in_order and evaluator is not None and self._evaluator_answers:
            self._evaluate_once_more(evaluator)
        ray.wait(told, num_returns=len(told), timeout=1.0)

    def _evaluate_once_more(self, evaluator: Any) -> None:
        """Evaluate the weights the learner ended with, unless somebody interrupts."""
        self._console.note("last evaluation")
        told = evaluator.finish.remote()
        runs = [run for run, (role, _) in self._runs.items() if role == "evaluator"]
        deadline_s = time.monotonic() + _LAST_EVALUATION_S
        while time.monotonic() < deadline_s and not self._interrupts.requested.is_set():
            if not runs or ray.wait(runs, timeout=1.0)[0]:
                break
        ray.wait([told], timeout=1.0)
        if self._evaluations is not None:
            self._book_evaluations(evaluator, timeout_s=_ANSWER_S)  # asked before the end
        self._book_evaluations(evaluator, timeout_s=_ANSWER_S)


def _cluster_resources() -> dict[str, float]:
    """Return what the cluster has in all, e.g. {"CPU": 2.0}."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def cause_of(error: BaseException) -> str:
    """Return the line of a Ray error that says what happened, which is its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
