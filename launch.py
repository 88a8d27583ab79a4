"""The command: wires actors, replay and learner together, watches them and stops them.

python launch.py --actors 16                     train
python launch.py eval RUN_DIR | plot RUN_DIR... | bench [STAGE] | presets
"""

from __future__ import annotations

import common.ray_environment  # noqa: F401  before anything that imports Ray

# isort: split
import dataclasses
import itertools
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.assembly import epsilons, make_actor_loop
from actors.environments import make_environments, resolve
from actors.evaluator import EvaluationLoop, record_game
from actors.worker import Actor, Evaluator
from common import ray_session
from common.command_line import (
    EvalCommand,
    TrainCommand,
    parse_bench,
    parse_eval,
    parse_plot,
    parse_train,
    refuse,
)
from common.config import Config, ConfigError, override
from common.console import Console
from common.interrupts import Interrupts
from common.networks import build_network, load_flat_state
from common.plots import plot_runs
from common.presets import PRESETS
from common.reporter import Reporter
from common.run_folder import RunFolder, RunFolderError, total_memory_bytes
from common.scores import human_normalized_score
from common.source import source_hash
from common.supervisor import GiveUp, Supervisor
from common.tensorboard import EventWriter
from common.types import EnvironmentSpec, EvaluationResult, LearnerReport, ReplayReport, Weights
from learner.assembly import (
    checkpoint_payload,
    make_learner,
    resolve_device,
    resolve_threads,
    spec_from_dict,
    weights_from_payload,
    weights_payload,
)
from learner.checkpoint import CheckpointError, CheckpointFolder, load, save
from learner.learner_loop import LearnerLoop
from learner.prefetch import SynchronousFetcher
from learner.weight_store import WeightStore
from learner.worker import LearnerServer
from replay.assembly import make_sampler, make_shard
from replay.handles import LocalShard
from replay.sampler import PriorityUpdater
from replay.server import ReplayServer
from replay.writer import ReplayWriter

# Rough bytes a stored transition takes beyond its own compressed frame; see `bench replay` for measured figures.
_ROW_BYTES = 120
_COMPRESSED_SHARE = 0.04  # of a raw pixel frame, on the games that compress worst
_FIRST_ANSWER_S = 300.0  # importing torch in many workers on few cores takes its time
_ANSWER_S = 60.0
_SAVE_S = 120.0
_EVALUATION_ENVS = 8
_FLUSH_S = 5.0


class RunEnded(Exception):
    """The run cannot go on; the text is the reason."""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code: 0 done, 2 bad input, 130 interrupted, 1 anything else."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("train", [])
    if name == "eval":
        return evaluate(parse_eval(rest))
    if name == "plot":
        return plot(rest)
    if name == "bench":
        return bench(rest)
    if name == "presets":
        return presets()
    if name != "train" and not name.startswith("-"):
        refuse([f"{name}: must be train, eval, plot, bench or presets, or a flag (see --help)"])
    return train(parse_train(rest if name == "train" else arguments))


# --- train ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything a run needs, checked, before anything is started or written.

    Attributes:
      config: the settings; `learner.device` is `cpu` or `cuda`.
      spec: the environment.
      folder: the run's folder.
      max_bytes: most bytes of replay over all shards.
      resume_from: path of the checkpoint to go on from, "" for a new run.
      agent_steps_before: agent steps accepted before this start of the run.
      samples_before: transitions trained on before it.
      incarnation: how often the run was started before.
    """

    config: Config
    spec: EnvironmentSpec
    folder: RunFolder
    max_bytes: int
    resume_from: str
    agent_steps_before: int
    samples_before: int
    incarnation: int

    @property
    def agent_steps_left(self) -> int:
        """Agent steps until `total_frames`."""
        total = math.ceil(self.config.total_frames / self.spec.action_repeat_frames)
        return total - self.agent_steps_before


def train(command: TrainCommand) -> int:
    """Train until the frames are done or somebody interrupts."""
    plan = make_plan(command)
    if command.address is not None:
        try:
            ray_session.join_cluster(command.address)
        except ConnectionError as error:
            refuse([str(error)])
    plan.folder.create(plan.config, plan.spec.name, ["python", "launch.py", *sys.argv[1:]])
    console = Console(stream=sys.stdout, log_file=plan.folder.log, clock=time.monotonic)
    reason, code = "failed", 1
    reporter = make_reporter(plan, console)
    started_s = time.monotonic()
    try:
        with Interrupts() as interrupts:
            introduce(plan, command, console)
            if command.serial:
                run_serial(plan, reporter, console, interrupts)
            else:
                if command.address is None:
                    ray_session.start_local(dashboard=command.dashboard)
                    interrupts.claim()
                RayRun(plan, reporter, console, interrupts, local=command.address is None).run()
            reason, code = ("interrupted", 130) if interrupts.requested.is_set() else ("done", 0)
    except KeyboardInterrupt:
        reason, code = "forced to stop", 130
    except (RunEnded, ray.exceptions.RayError) as error:
        reason = str(error).strip()
        console.note(f"the run ended: {reason}")
    finally:
        ray.shutdown()
        progress = reporter.progress
        result = {
            "frames": progress.frames,
            "seconds": round(time.monotonic() - started_s, 1),
            "learner_steps": progress.learner_steps,
            "last_train_return": _number(progress.last_train_return),
            "last_eval_score": _number(progress.last_eval_score),
            "end_reason": reason,
        }
        plan.folder.write_json("result.json", result)
        reporter.close()
        console.note(f"{reason}: {result}")
        if code:
            console.note(f"continue with: python launch.py --resume {plan.folder.path}")
        console.close()
    return code


def make_plan(command: TrainCommand) -> Plan:
    """Check the machine and the folder against the settings; exit 2 with one line per problem."""
    config = command.settings
    problems: list[str] = []
    try:
        spec = resolve(config.env)
    except ValueError as error:
        refuse([f"--env.id {config.env.id}: {error}"])
    if (config.agent.network == "nature_cnn") != (len(spec.observation.frame_shape) == 2):
        problems.append(
            f"--agent.network {config.agent.network}: does not fit frames of shape "
            f"{spec.observation.frame_shape}; nature_cnn is for pixels, mlp for vectors"
        )
    if (
        config.learner.device == "cuda"
        and command.address is None
        and not torch.cuda.is_available()
    ):
        problems.append("--learner.device cuda: this machine has no CUDA device; use auto or cpu")
    memory = total_memory_bytes()
    max_bytes = config.replay.max_bytes or memory // 2
    needed = config.replay.capacity * _bytes_per_transition(spec)
    if config.replay.max_bytes is None and needed > max_bytes and command.address is None:
        problems.append(
            f"--replay.capacity {config.replay.capacity}: takes about {needed / 1e9:.0f} GB, but replay may "
            f"take half of this machine's {memory / 1e9:.0f} GB; lower it or bound it by --replay.max-bytes"
        )
    if (
        config.replay.max_bytes is not None
        and config.replay.max_bytes > memory
        and command.address is None
    ):
        problems.append(
            f"--replay.max-bytes {config.replay.max_bytes}: must be <= this machine's memory, {memory}"
        )
    if command.serial and command.address is not None:
        problems.append("--serial: must not be given with --address")
    counters = {"agent_steps": 0, "samples": 0, "incarnation": -1}
    resume_from = ""
    try:
        if command.resume is not None:
            folder = RunFolder.of_run(command.resume)
            newest = CheckpointFolder(folder.checkpoints, config.checkpoint.keep).newest()
            if newest is None:
                raise RunFolderError(f"{command.resume}: has no checkpoint to resume from")
            resume_from, counters = str(newest), load(newest)["counters"]
        else:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            default = Path("runs") / f"{spec.name}-{config.preset}-{stamp}"
            folder = RunFolder.for_new_run(command.run_dir or default)
    except (RunFolderError, CheckpointError) as error:
        problems.append(str(error))
    if problems:
        refuse(problems)
    if config.learner.device == "auto" and command.address is None:
        device = resolve_device("auto").type
        learner = dataclasses.replace(config.learner, device="cuda" if device == "cuda" else "cpu")
        config = dataclasses.replace(config, learner=learner)
    return Plan(
        config=config,
        spec=spec,
        folder=folder,
        max_bytes=max_bytes,
        resume_from=resume_from,
        agent_steps_before=counters["agent_steps"],
        samples_before=counters["samples"],
        incarnation=counters["incarnation"] + 1,
    )


def _bytes_per_transition(spec: EnvironmentSpec) -> int:
    frame = spec.observation.frame_bytes
    return _ROW_BYTES + (
        int(frame * _COMPRESSED_SHARE) if spec.observation.dtype == "uint8" else frame
    )


def make_reporter(plan: Plan, console: Console) -> Reporter:
    """Return the run's reporter, which goes on where the run stood."""
    config = plan.config

    def mean_epsilon(agent_steps: int) -> float:
        each = [epsilons(config, actor, agent_steps) for actor in range(config.actor.count)]
        return float(np.mean(each))

    return Reporter(
        spec=plan.spec,
        total_frames=config.total_frames,
        capacity=config.replay.capacity,
        samples_before=plan.samples_before,
        agent_steps_before=plan.agent_steps_before,
        mean_epsilon=mean_epsilon,
        console=console,
        events=EventWriter(
            folder=plan.folder.path,
            flush_s=_FLUSH_S,
            first_frames=plan.agent_steps_before * plan.spec.action_repeat_frames,
        ),
        clock=time.monotonic,
    )


def introduce(plan: Plan, command: TrainCommand, console: Console) -> None:
    """Say what will run and where to look at it."""
    config = plan.config
    cores = resolve_threads(0)
    console.note(plan.spec.protocol)
    console.note(
        f"run folder {plan.folder.path}; tensorboard --logdir {shlex.quote(str(plan.folder.path))}"
    )
    if config.learner.device == "cpu":
        hint = (
            "" if config.preset != "apex" else "; --preset pong-fast suits a machine without a GPU"
        )
        console.note(f"no GPU: learning on the CPU{hint}")
    if plan.resume_from:
        console.note(
            f"resuming from {plan.resume_from}; replay is empty, so learning waits until it holds "
            f"{config.replay.min_size:,} transitions again"
        )
    if not command.serial and command.address is None and config.actor.count > cores:
        console.note(
            f"{config.actor.count} actors share {cores} cores: each gets a fraction of one; more actors than "
            "cores add no speed"
        )


class RayRun:
    """One run as Ray processes: weight store, replay shards, learner, evaluator, actors."""

    def __init__(
        self,
        plan: Plan,
        reporter: Reporter,
        console: Console,
        interrupts: Interrupts,
        *,
        local: bool,
    ) -> None:
        self._plan = plan
        self._reporter = reporter
        self._console = console
        self._interrupts = interrupts
        self._local = local
        self._source = source_hash()
        self._supervisor = Supervisor(
            quick_death_s=30.0, give_up_deaths=10, first_delay_s=1.0, max_delay_s=30.0
        )
        self._players: dict[tuple[str, int], Any] = {}  # actors and the evaluator, by (role, index)
        self._runs: dict[Any, tuple[str, int]] = {}  # ObjectRef of `run` -> whose
        self._best_score = -math.inf
        self._silent = set(range(plan.config.actor.count))  # actors that never pushed
        self._started_s = time.monotonic()

    def run(self) -> None:
        """Start everything, watch until the end, stop everything."""
        self._start()
        try:
            while not self._interrupts.requested.wait(1.0) and not self._poll():
                self._supervise()
        finally:
            self._stop()

    def _start(self) -> None:
        config, plan = self._plan.config, self._plan
        cuda = config.learner.device == "cuda" or (
            config.learner.device == "auto" and ray.cluster_resources().get("GPU", 0) >= 1
        )
        self._cpus = self._cpu_share()
        self._resources = {"actor_host": 0.001} if "actor_host" in ray.cluster_resources() else {}
        self._home = {"learner_host": 0.001} if "learner_host" in ray.cluster_resources() else {}
        home = {"CPU": self._cpus, **self._home}
        bundles = [home | ({"GPU": 1} if cuda else {}), *[dict(home)] * config.replay.shards]
        group = ray.util.placement_group(bundles, strategy="STRICT_PACK")
        self._wait_for_placement(group, bundles)

        def beside_learner(bundle: int, **options: Any) -> dict[str, Any]:
            strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=bundle
            )
            return {"scheduling_strategy": strategy, **options}

        self._store = WeightStore.options(**beside_learner(0, num_cpus=0)).remote()
        self._servers = [
            ReplayServer.options(**beside_learner(1 + shard, num_cpus=self._cpus)).remote(
                config, plan.spec, shard, plan.incarnation, plan.max_bytes, self._source
            )
            for shard in range(config.replay.shards)
        ]
        self._learner = LearnerServer.options(
            **beside_learner(0, num_cpus=self._cpus, num_gpus=int(cuda))
        ).remote(
            config, plan.spec, self._servers, self._store, str(plan.folder.path.resolve()),
            plan.incarnation, plan.resume_from, self._source,
        )  # fmt: skip
        self._learner_run = self._learner.run.remote()
        for actor in range(config.actor.count):
            self._create("actor", actor)
        if config.evaluator.enabled:
            self._create("evaluator", 0)
        description = self._answer(self._learner.describe.remote(), _FIRST_ANSWER_S)
        if description is not None:
            self._console.note(description)

    def _cpu_share(self) -> float:
        """CPUs to reserve for each process: whole ones on a cluster, a share of the cores on one machine."""
        config = self._plan.config
        if config.actor.cpus != "auto":
            return config.actor.cpus
        if not self._local:
            return 1.0
        processes = config.actor.count + config.replay.shards + 1 + int(config.evaluator.enabled)
        share = ray.cluster_resources().get("CPU", 1.0) / processes
        return min(1.0, math.floor(share * 1000) / 1000)

    def _wait_for_placement(self, group: Any, bundles: list[dict[str, float]]) -> None:
        ready = group.ready()
        for waited in itertools.count():
            if ray.wait([ready], timeout=1.0)[0]:
                return
            if self._interrupts.requested.is_set():
                raise KeyboardInterrupt
            if waited == 10:
                self._console.note(
                    f"waiting for a host with {bundles} for learner and replay; the cluster has "
                    f"{ray.cluster_resources()}"
                )

    def _create(self, role: str, index: int) -> None:
        """Start an actor or the evaluator."""
        plan = self._plan
        incarnation = self._supervisor.started(role, index, time.monotonic())
        # Names of segments must differ from those of the run before it was resumed.
        incarnation += plan.incarnation << 16
        if role == "actor":
            handle = Actor.options(num_cpus=self._cpus, resources=self._resources).remote(
                plan.config, plan.spec, self._servers, self._store, index, incarnation, self._source
            )
        else:
            handle = Evaluator.options(num_cpus=self._cpus, resources=self._home).remote(
                plan.config, plan.spec, self._store, incarnation, self._source
            )
        self._players[role, index] = handle
        self._runs[handle.run.remote()] = (role, index)

    def _poll(self) -> bool:
        """Gather the reports and show them; return whether the run is done."""
        refs = [self._learner.report.remote(), *[s.report.remote() for s in self._servers]]
        answers = self._answer(refs, _FIRST_ANSWER_S)
        if answers is None:
            return False
        learner, shards = answers[0], answers[1:]
        self._book(learner, shards)
        return sum(shard.inserts for shard in shards) >= self._plan.agent_steps_left

    def _book(self, learner: LearnerReport, shards: list[ReplayReport]) -> None:
        restarts = {
            role: self._supervisor.restarts(role) for role in ("actor", "replay", "learner")
        }
        self._reporter.update(shards, learner, restarts)
        if self._silent:
            self._silent.difference_update(*(shard.actors for shard in shards))
            if not self._silent:
                waited_s = time.monotonic() - self._started_s
                self._console.note(f"every actor has pushed, {waited_s:.1f} s after Ray was up")
        evaluator = self._players.get(("evaluator", 0))
        if evaluator is not None:
            self._book_evaluations(evaluator)

    def _book_evaluations(self, evaluator: Any) -> None:
        try:
            results = ray.get(evaluator.take_results.remote(), timeout=_FIRST_ANSWER_S)
        except ray.exceptions.RayActorError:
            return  # the supervisor hears of it from its run
        for result, weights in results:
            self._reporter.evaluated(result)
            self._best_score = save_if_best(self._plan, result, weights, self._best_score)

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
                raise RunEnded(_cause(error)) from error
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
                reason = _cause(error)
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

    def _stop(self) -> None:
        """Stop the players, let the learner save, take the last reports."""
        interrupted = self._interrupts.requested.is_set()
        self._console.note(
            "stopping: the learner saves, then everything ends; Ctrl-C again to force"
        )
        for (role, _), handle in self._players.items():
            if role == "actor" or interrupted:
                handle.stop.remote()
            else:
                handle.finish.remote()
        self._learner.stop.remote()
        try:
            ray.get(self._learner_run, timeout=_SAVE_S)
            refs = [self._learner.report.remote(), *[s.report.remote() for s in self._servers]]
            learner, *shards = ray.get(refs, timeout=_ANSWER_S)
            runs = [run for run, (role, _) in self._runs.items() if role == "evaluator"]
            if runs and not interrupted:
                self._console.note("last evaluation")
                ray.wait(runs, timeout=_SAVE_S)
            self._book(learner, shards)
        except (ray.exceptions.RayError, TimeoutError) as error:
            self._console.note(f"could not stop in order: {_cause(error)}")


def _cause(error: BaseException) -> str:
    """Return the line of a Ray error that says what happened, which is its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def save_if_best(plan: Plan, result: EvaluationResult, weights: Weights, best: float) -> float:
    """Save the weights that played as best.pt unless they scored below `best`; return the best score now."""
    score = float(result.returns.mean())
    if score < best:
        return best
    save(
        plan.folder.checkpoints / "best.pt", weights_payload(plan.config, plan.spec, weights, score)
    )
    return score


def run_serial(plan: Plan, reporter: Reporter, console: Console, interrupts: Interrupts) -> None:
    """Run the same cores in one process, bit-reproducible for a seed.

    The rate limiter says who moves: actors while it takes their pushes, the learner while it gives out samples. No
    decision looks at a clock; only reports, evaluations and checkpoints do, and none of them changes what is learned.
    """
    config, spec = plan.config, plan.spec
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(resolve_threads(config.learner.threads))
    shards = [
        make_shard(config, spec, shard=k, incarnation=plan.incarnation, max_bytes=plan.max_bytes)
        for k in range(config.replay.shards)
    ]
    handles = [LocalShard(shard) for shard in shards]
    ticks = itertools.count()
    actors = [
        make_actor_loop(config, spec, actor=actor, incarnation=plan.incarnation << 16)
        for actor in range(config.actor.count)
    ]
    writers = [
        ReplayWriter(
            shards=handles,
            window=config.actor.push_window,
            first_shard=actor,
            clock=lambda: float(next(ticks)),
        )
        for actor in range(config.actor.count)
    ]
    device = resolve_device(config.learner.device)
    learner = make_learner(config, spec, device=device, serial=True)
    if plan.resume_from:
        learner.load_state_dict(load(Path(plan.resume_from))["learner"])
    sampler = make_sampler(config, spec, shards=handles, in_flight=1)
    published: list[Weights] = []

    def send_weights(weights: Weights) -> None:
        published[:] = [weights]
        for index, actor in enumerate(actors):
            load_flat_state(actor.policy.network, weights.buffer)
            actor.set_version(weights.version)
            actor.policy.set_epsilons(epsilons(config, index, weights.agent_steps))

    loop = LearnerLoop(
        learner=learner,
        fetcher=SynchronousFetcher(fetch=sampler.fetch, device=device),
        send_priorities=PriorityUpdater(shards=handles, window=1).update,
        send_weights=send_weights,
        agent_steps=lambda: plan.agent_steps_before + sum(s.inserted for s in shards),
        incarnation=plan.incarnation,
        publish_period_learner_steps=config.learner.publish_period_learner_steps,
        samples=plan.samples_before,
        clock=lambda: float(
            learner.learner_step
        ),  # a second of `LearnerLoop` is a learner step here
    )
    folder = CheckpointFolder(plan.folder.checkpoints, config.checkpoint.keep)
    checkpoint = ""
    best = -math.inf
    loop.publish()

    def every(minutes: float) -> Callable[[], bool]:
        due_s = time.monotonic() + minutes * 60.0

        def due() -> bool:
            nonlocal due_s
            if time.monotonic() < due_s:
                return False
            due_s = time.monotonic() + minutes * 60.0
            return True

        return due

    report_due, save_due = every(1.0 / 60.0), every(config.checkpoint.every_minutes)
    evaluation_due = every(config.evaluator.every_minutes)
    # With a ratio the limiter ends the learner's turn; without one, a turn is one step.
    most_steps = 1 if config.samples_per_insert is None else sys.maxsize
    done = False
    while not done and not interrupts.requested.is_set():
        for actor, writer in zip(actors, writers, strict=True):
            if writer.has_room():
                segments = actor.collect(1)
                if segments:
                    writer.push(segments, actor.drain_episodes(), actor.drain_phases())
        for _ in range(most_steps):
            if interrupts.requested.is_set() or not loop.run_step(0.0):
                break
            sampler.learner_step = learner.learner_step
        done = sum(shard.inserted for shard in shards) >= plan.agent_steps_left
        if report_due() or done:
            reporter.update(
                [shard.report() for shard in shards],
                loop.report(checkpoint),
                dict.fromkeys(("actor", "replay", "learner"), 0),
            )
        if config.evaluator.enabled and (evaluation_due() or done):
            result = play(config, spec, published[0], interrupts.requested.is_set)
            if result is not None:
                reporter.evaluated(result)
                best = save_if_best(plan, result, published[0], best)
        if save_due():
            checkpoint = str(
                folder.save(checkpoint_payload(config, spec, learner, loop), learner.learner_step)
            )
    loop.flush_priorities()
    folder.save(checkpoint_payload(config, spec, learner, loop), learner.learner_step)
    console.note(f"saved learner step {learner.learner_step}")


# --- eval, plot, bench, presets ---------------------------------------------------------------------------------------


def play(
    config: Config, spec: EnvironmentSpec, weights: Weights, should_stop: Callable[[], bool]
) -> EvaluationResult | None:
    """Evaluate `weights` in this process as the evaluator process does; None when told to stop."""
    network = build_network(config.agent, spec)
    load_flat_state(network, weights.buffer)
    part = config.evaluator
    environments = make_environments(
        config.env, min(part.episodes, _EVALUATION_ENVS), config.seed, training=False
    )
    try:
        started_s = time.monotonic()
        games = EvaluationLoop(
            environments=environments,
            network=network,
            epsilon=part.epsilon,
            rng=np.random.default_rng(config.seed),
        ).play(part.episodes, should_stop)
    finally:
        environments.close()
    if games is None:
        return None
    return EvaluationResult(
        version=weights.version,
        agent_steps=weights.agent_steps,
        returns=games.returns,
        lengths_agent_steps=games.lengths_agent_steps,
        epsilon=part.epsilon,
        seconds=time.monotonic() - started_s,
    )


def evaluate(command: EvalCommand) -> int:
    """Play whole games with a trained network and print the score."""
    try:
        folder = RunFolder.of_run(command.run_dir)
        path = _checkpoint_path(folder, command.checkpoint)
        payload = load(path)
        config = override(Config(), payload["config"], str(path))
        spec = spec_from_dict(payload["spec"])
        weights = weights_from_payload(payload)
    except (RunFolderError, CheckpointError, ConfigError) as error:
        refuse(str(error).splitlines())
    config = dataclasses.replace(
        config,
        seed=command.seed,
        evaluator=dataclasses.replace(
            config.evaluator, episodes=command.episodes, epsilon=command.epsilon
        ),
    )
    print(f"{path}: learner step {weights.version.learner_step:,}; {spec.protocol}")
    result = play(config, spec, weights, lambda: False)
    assert result is not None
    returns = result.returns
    normalized = human_normalized_score(spec.name, float(returns.mean()))
    human = "" if normalized is None else f", human-normalised {normalized:.3f}"
    print(
        f"{len(returns)} games, epsilon {command.epsilon:g}, seed {command.seed}: mean {returns.mean():.2f}, "
        f"standard deviation {returns.std():.2f}, min {returns.min():g}, max {returns.max():g}{human}; "
        f"mean length {result.lengths_agent_steps.mean():.0f} agent steps, {result.seconds:.0f} s"
    )
    if command.video:
        network = build_network(config.agent, spec)
        load_flat_state(network, weights.buffer)
        video = folder.path / "videos" / f"{spec.name}_{weights.version.learner_step:010d}.mp4"
        record_game(config.env, network, command.epsilon, command.seed, video)
        print(f"video: {video}")
    return 0


def _checkpoint_path(folder: RunFolder, name: str) -> Path:
    if name == "last":
        newest = CheckpointFolder(folder.checkpoints, 1).newest()
        if newest is None:
            raise RunFolderError(f"{folder.path}: has no checkpoint yet")
        return newest
    return folder.checkpoints / "best.pt" if name == "best" else Path(name)


def plot(arguments: Sequence[str]) -> int:
    """Draw the runs' PNGs."""
    command = parse_plot(arguments)
    try:
        folders = [RunFolder.of_run(path).path for path in command.run_dirs]
        for file in plot_runs(folders, command.out or folders[0] / "plots"):
            print(file)
    except ValueError as error:
        refuse([str(error)])
    return 0


def bench(arguments: Sequence[str]) -> int:
    """Measure the stages against their floors."""
    from benchmarks.run import run_benchmarks  # a benchmark machine's needs are not everybody's

    command = parse_bench(arguments)
    return run_benchmarks(command.stage, command.json, command.seconds)


def presets() -> int:
    """List the presets with their source."""
    for name, preset in PRESETS.items():
        print(
            f"{name:12} {preset.config.env.id}, {preset.config.total_frames:,} frames: {preset.source}"
        )
    return 0


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
