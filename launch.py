"""The command: wires actors, replay and learner together, watches them and stops them.

python launch.py --actors 16                     train
python launch.py eval RUN_DIR | plot RUN_DIR... | bench [STAGE] | presets
"""

from __future__ import annotations

import common.ray_environment  # noqa: F401  before anything that imports Ray
from common.interrupts import Interrupts, end_at_once, raise_at_signals

if __name__ == "__main__":
    end_at_once(130)  # the imports below take seconds, and a traceback would come of a Ctrl-C

# isort: split
import dataclasses
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import ray
import torch

from actors.assembly import epsilons, make_actor_loop
from actors.environments import resolve
from actors.evaluator import play, record_game
from actors.worker import Actor, Evaluator
from common import ray_session
from common.command_line import (
    EvalCommand,
    TrainCommand,
    parse_bench,
    parse_eval,
    parse_plot,
    read_train,
    refuse,
)
from common.config import Config
from common.config_file import load_file
from common.console import Console
from common.crew import Roles, cause_of
from common.curves import NO_PAST, read_past
from common.hparams import hparams_summary
from common.networks import load_flat_state
from common.plan import Plan, machine_problems, network_problems
from common.presets import PRESETS
from common.ray_run import RayRun
from common.reporter import Reporter
from common.reports import EvaluationResult
from common.run_ended import RunEnded
from common.run_folder import RunFolder, RunFolderError, total_memory_bytes
from common.scores import human_normalized_score
from common.seeding import derive_seed
from common.serial_run import Cores, SerialRun
from common.settings_table import settings_table
from common.tensorboard import EventWriter
from common.types import Batch, Weights
from learner.assembly import (
    available_cores,
    checkpoint_payload,
    expect_same_network,
    load_checkpoint,
    load_trained,
    make_learner,
    resolve_device,
    resolve_threads,
)
from learner.best_weights import BestWeights
from learner.checkpoint import CheckpointFolder
from learner.learner_loop import LearnerLoop
from learner.prefetch import SynchronousFetcher
from learner.resume import AT_THE_BEGINNING, find_start
from learner.weight_store import WeightStore
from learner.worker import LearnerServer
from replay.assembly import make_sampler
from replay.local import LocalReplay
from replay.priority_updater import PriorityUpdater
from replay.server import ReplayServer

# For a shard in this very process.
_LOCAL_ANSWER_S = 1.0
_FLUSH_S = 5.0


def main(arguments: Sequence[str]) -> int:
    """Run one command; return 0 when done, 2 on bad input, 130 when interrupted, else 1."""
    try:
        return run_command(arguments)
    except KeyboardInterrupt:
        return 130


def run_command(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names, `train` where it names none."""
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
    return train(rest if name == "train" else arguments)


# --- train -------------------------------------------------------------------------------------


def train(arguments: Sequence[str]) -> int:
    """Train until the frames are done, a return is reached, or somebody interrupts."""
    command, problems = read_train(arguments)
    plan = make_plan(command, problems)
    if command.address is not None:
        try:
            ray_session.join_cluster(command.address)
        except ConnectionError as error:
            refuse([str(error)])
    elif not command.serial and (found := ray_session.problems()):
        refuse(found)
    console = Console(stream=sys.stdout, log_file=plan.folder.log, clock=time.monotonic)
    reason, code, is_over = "failed", 1, False
    try:
        plan.folder.create(plan.config, plan.spec.name, ["python", "launch.py", *sys.argv[1:]])
        reporter = make_reporter(plan, console)
    except RunFolderError as error:  # another run was faster
        refuse([str(error)])
    except OSError as error:
        refuse([f"{plan.folder.path}: cannot be written: {error.strerror or error}"])
    started_s = time.monotonic()
    interrupts = Interrupts()
    try:
        introduce(plan, command, console)
        if not command.serial and command.address is None:
            # Nothing to save yet, so here the first Ctrl-C ends it.
            ray_session.start_local(note=console.note, dashboard=command.dashboard)
        with interrupts:
            if command.serial:
                reason = SerialRun(
                    plan=plan,
                    cores=make_serial_cores(plan, console, interrupts),
                    reporter=reporter,
                    note=console.note,
                    interrupts=interrupts,
                ).run()
            else:
                reason = RayRun(
                    plan=plan,
                    roles=Roles(Actor, Evaluator, LearnerServer, ReplayServer, WeightStore),
                    reporter=reporter,
                    console=console,
                    interrupts=interrupts,
                    on_evaluation=best_keeper(plan, console),
                    is_local=command.address is None,
                ).run()
            code = 130 if interrupts.requested.is_set() else 0
            is_over = reason != "interrupted"  # also where somebody would not wait for what follows
    except KeyboardInterrupt:
        reason, code = "forced to stop" if interrupts.requested.is_set() else "interrupted", 130
    except (RunEnded, ConnectionError, FloatingPointError, ray.exceptions.RayError) as error:
        reason = cause_of(error)
        console.note(f"the run ended: {reason}")
    finally:
        progress = reporter.progress
        before = plan.folder.read_json("result.json")  # of the start before, in a resumed run
        score = _number(progress.last_eval_score)
        result = {
            "frames": progress.frames,
            "agent_steps": progress.agent_steps,
            "episodes": progress.episodes,
            # Events know of starts that were killed, and may be lost themselves.
            "seconds": round(
                max(plan.seconds_before, before.get("seconds", 0.0)) + time.monotonic() - started_s,
                1,
            ),
            "learner_steps": progress.learner_steps,
            "last_train_return": _number(progress.last_train_return),
            "last_eval_score": before.get("last_eval_score") if score is None else score,
            "end_reason": reason,
        }
        try:
            plan.folder.write_json("result.json", result)
        except OSError as error:
            console.note(f"result.json cannot be written: {error.strerror or error}")
        reporter.close()
        console.close()  # the last status; notes may follow
        console.note(f"{reason}: {result}")
        if not is_over and any(plan.folder.checkpoints.glob("checkpoint_*.pt")):
            console.note(f"continue with: python launch.py --resume {plan.folder.path}")
        ray_session.shut_down()
        plan.folder.unlock()
    return code


def make_plan(command: TrainCommand, problems: list[str]) -> Plan:
    """Check settings, machine and folder together; exit 2 with one line per problem.

    Args:
      command: what the user typed, resolved.
      problems: what is wrong with the settings themselves.
    """
    config = command.settings
    memory_bytes = total_memory_bytes()
    spec = None
    try:
        spec = resolve(config.env)
        problems += network_problems(config, spec)
    except ValueError as error:
        problems.append(f"--env.id {config.env.id}: {error}")
    if command.serial and command.address is not None:
        problems.append("--serial: must not be given with --address")
    if command.address is None and spec is not None:
        problems += machine_problems(
            config,
            spec,
            memory_bytes=memory_bytes,
            cores=available_cores(),
            has_cuda=torch.cuda.is_available(),
        )
    start = AT_THE_BEGINNING
    try:
        if command.resume is not None:
            folder = RunFolder.of_run(command.resume)
            start = find_start(folder, config)
        else:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            name = "run" if spec is None else spec.name
            default = Path("runs") / f"{name}-{config.preset}-{stamp}"
            folder = RunFolder.for_new_run(command.run_dir or default)
    except ValueError as error:  # RunFolderError, CheckpointError, ConfigError
        # What reading the settings found already is not told twice.
        found = str(error).splitlines()
        problems += [line for line in found if not any(line in known for known in problems)]
    counters, past = start.counters, NO_PAST
    if spec is not None:
        frames = counters["agent_steps"] * spec.action_repeat_frames
        if frames >= config.total_frames:
            problems.append(
                f"--total-frames {config.total_frames}: must be > {frames}, played already"
            )
        if start.checkpoint:
            past = read_past(folder.path, frames)
    if config.total_episodes is not None and counters["episodes"] >= config.total_episodes:
        problems.append(
            f"--total-episodes {config.total_episodes}: must be > {counters['episodes']}, played "
            "already"
        )
    if problems or spec is None:
        refuse(problems)
    return Plan(
        config=config,
        spec=spec,
        folder=folder,
        max_bytes=config.replay.max_bytes or memory_bytes // 2,
        resume_from=start.checkpoint,
        notes=start.notes,
        agent_steps_before=counters["agent_steps"],
        episodes_before=counters["episodes"],
        learner_steps_before=counters["learner_step"],
        samples_before=counters["samples"],
        returns_before=past.returns,
        seconds_before=past.seconds,
        incarnations=start.incarnations,
    )


def make_reporter(plan: Plan, console: Console) -> Reporter:
    """Return the run's reporter, which goes on where the run stood."""
    config = plan.config

    def mean_epsilon(agent_steps: int) -> float:
        each = [epsilons(config, actor, agent_steps) for actor in range(config.actor.count)]
        return float(np.mean(each))

    first_frames = plan.agent_steps_before * plan.spec.action_repeat_frames
    events = EventWriter(folder=plan.folder.path, flush_s=_FLUSH_S, first_frames=first_frames)
    events.summary(hparams_summary(config, plan.folder.path.resolve().name), first_frames)
    return Reporter(
        spec=plan.spec,
        total_frames=config.total_frames,
        total_episodes=config.total_episodes,
        num_shards=config.replay.shards,
        capacity=config.replay.capacity,
        min_size=config.replay.min_size,
        samples_before=plan.samples_before,
        learner_steps_before=plan.learner_steps_before,
        agent_steps_before=plan.agent_steps_before,
        episodes_before=plan.episodes_before,
        returns_before=plan.returns_before,
        mean_epsilon=mean_epsilon,
        console=console,
        events=events,
        clock=time.monotonic,
    )


def introduce(plan: Plan, command: TrainCommand, console: Console) -> None:
    """Say what will run and where to look at it."""
    config = plan.config
    cores = available_cores()
    console.note(f"settings:\n{settings_table(config)}")
    console.note(plan.spec.protocol)
    console.note(
        f"run folder {plan.folder.path}; tensorboard --logdir {shlex.quote(str(plan.folder.path))}"
    )
    device = config.learner.device
    if command.address is None and device == "auto" and resolve_device(device).type == "cpu":
        hint = (
            "" if config.preset != "apex" else "; --preset pong-fast suits a machine without a GPU"
        )
        console.note(f"no GPU: learning on the CPU{hint}")
    for line in plan.notes:
        console.note(line)
    if plan.resume_from:
        console.note(
            f"resuming from {plan.resume_from}"
            if config.checkpoint.replay
            else f"resuming from {plan.resume_from} without its replay: learning waits until it "
            f"holds {config.replay.min_size:,} transitions again"
        )
    starts_empty = not plan.resume_from or not config.checkpoint.replay
    if starts_empty and plan.agent_steps_left < config.replay.min_size:
        console.note(
            f"it ends before replay holds {config.replay.min_size:,} transitions "
            "(--replay.min-size), so that next to nothing will be learned"
        )
    if not command.serial and command.address is None and config.actor.count > cores:
        console.note(
            f"{config.actor.count} actors share {cores} cores: each gets a fraction of one, and "
            "more actors than cores add no speed"
        )


def make_serial_cores(plan: Plan, console: Console, interrupts: Interrupts) -> Cores:
    """Build everything in this process; see common.serial_run."""
    config, spec = plan.config, plan.spec
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS, to be deterministic
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(resolve_threads(config.learner.threads, neighbours=0))
    incarnation = max(plan.incarnations.values(), default=0)
    everyone = [("learner", 0), *(("replay", k) for k in range(config.replay.shards))]
    everyone += [("actor", actor) for actor in range(config.actor.count)]
    try:
        plan.folder.write_incarnations({f"{role}/{i}": incarnation + 1 for role, i in everyone})
    except OSError as error:
        console.note(f"incarnations.json could not be written: {error}")
    replay = LocalReplay(plan, incarnation)
    for line in replay.notes:
        console.note(line)
    actors = [
        make_actor_loop(config, spec, actor=actor, incarnation=incarnation)
        for actor in range(config.actor.count)
    ]
    device = resolve_device(config.learner.device)
    learner = make_learner(config, spec, device=device, serial=True)
    sampler = make_sampler(config, spec, shards=replay.handles, in_flight=1, rows_per_request=1)
    if plan.resume_from:
        saved = load_checkpoint(Path(plan.resume_from))
        learner.load_state_dict(saved["learner"])
        sampler.rng_state = saved["rng"]
    if incarnation > 0:
        sampler.catch_up(_LOCAL_ANSWER_S)
    published: list[Weights] = []

    def fetch() -> Batch | None:
        sampler.version = loop.version
        return sampler.fetch()

    def agent_steps() -> int:
        return plan.agent_steps_before + sum(shard.accepted for shard in replay.shards)

    def send_weights(weights: Weights) -> None:
        published[:] = [weights]
        for index, actor in enumerate(actors):
            load_flat_state(actor.policy.network, weights.buffer)
            actor.set_version(weights.version)
            actor.policy.set_epsilons(epsilons(config, index, weights.agent_steps))

    loop = LearnerLoop(
        learner=learner,
        fetcher=SynchronousFetcher(fetch=fetch, device=device),
        send_priorities=PriorityUpdater(shards=replay.handles, window=1, rows_per_call=1).update,
        send_weights=send_weights,
        agent_steps=agent_steps,
        episodes=lambda: plan.episodes_before + sum(s.ended_episodes for s in replay.shards),
        incarnation=incarnation,
        publish_period_learner_steps=config.learner.publish_period_learner_steps,
        samples=plan.samples_before,
        # A second of `LearnerLoop` is a learner step or an agent step here.
        clock=lambda: float(learner.learner_step + agent_steps()),
    )
    folder = CheckpointFolder(plan.folder.checkpoints, config.checkpoint.keep)
    keep_best = best_keeper(plan, console)

    def save_all() -> str:
        payload = checkpoint_payload(config, spec, learner, loop, sampler.rng_state)
        try:
            folder.save(payload, learner.learner_step)
        except OSError as error:
            return f"the checkpoint could not be written: {error}"
        try:
            replay.save()
        except OSError as error:
            return f"replay could not be written: {error}"
        console.note(f"saved learner step {learner.learner_step}")
        return ""

    def evaluate_published() -> EvaluationResult | None:
        seed = derive_seed(config.seed, "evaluator", incarnation)
        result = play(config, spec, published[0], seed, interrupts.requested.is_set)
        if result is not None:
            keep_best(result, published[0])
        return result

    return Cores(actors, replay.make_writers(), replay.shards, loop, save_all, evaluate_published)


def best_keeper(plan: Plan, console: Console) -> Callable[[EvaluationResult, Weights], None]:
    """Return what keeps `best.pt`; a disk that does not take it is no reason to end a run."""
    best = BestWeights(plan)

    def keep(result: EvaluationResult, weights: Weights) -> None:
        try:
            best.offer(result, weights)
        except OSError as error:
            console.note(f"best.pt could not be written: {error}; training goes on")

    return keep


# --- eval, plot, bench, presets ----------------------------------------------------------------


def evaluate(command: EvalCommand) -> int:
    """Play whole games with a trained network and print the score."""
    try:
        folder = RunFolder.of_run(command.run_dir)
        path = CheckpointFolder(folder.checkpoints, 1).named(command.checkpoint)
        trained = load_trained(path)
        of_run = load_file(Config(), folder.config_file)
        expect_same_network(trained, path, of_run, resolve(of_run.env), folder.path)
    except ValueError as error:  # RunFolderError, CheckpointError, ConfigError; of `resolve`
        refuse(str(error).splitlines())
    config, spec, weights, network = trained
    config = dataclasses.replace(
        config,
        evaluator=dataclasses.replace(
            config.evaluator, episodes=command.episodes, epsilon=command.epsilon
        ),
    )
    print(f"{path}: learner step {weights.version.learner_step:,}; {spec.protocol}")
    result = play(config, spec, weights, command.seed, lambda: False)
    assert result is not None
    returns = result.returns
    normalized = human_normalized_score(spec.name, float(returns.mean()))
    human = "" if normalized is None else f", human-normalised {normalized:.3f}"
    print(
        f"{len(returns)} games, epsilon {command.epsilon:g}, seed {command.seed}: "
        f"mean {returns.mean():.2f}, standard deviation {returns.std():.2f}, "
        f"min {returns.min():g}, max {returns.max():g}{human}; mean length "
        f"{result.lengths_agent_steps.mean():.0f} agent steps, {result.seconds:.0f} s"
    )
    if command.video:
        video = folder.path / "videos" / f"{spec.name}_{weights.version.learner_step:010d}.mp4"
        try:
            record_game(config.env, network, command.epsilon, command.seed, video)
        except OSError as error:
            refuse([f"{video}: cannot be written: {error.strerror or error}"])
        print(f"video: {video}")
    return 0


def plot(arguments: Sequence[str]) -> int:
    """Draw the runs' PNGs."""
    from common.plot_command import draw  # matplotlib: a second every other command can spare

    try:
        draw(parse_plot(arguments), print)
    except (ValueError, OSError) as error:
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
        frames = f"{preset.config.total_frames:,} frames"
        print(f"{name:20} {preset.config.env.id}, {frames}: {preset.source}")
    return 0


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


if __name__ == "__main__":
    raise_at_signals()
    exit_code = main(sys.argv[1:])
    end_at_once(exit_code)  # all is done and Ray is gone: an impatient Ctrl-C changes nothing
    sys.exit(exit_code)
