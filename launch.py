"""The command: wires actors, replay and learner together, watches them and stops them.

python launch.py --actors 16                     train
python launch.py eval RUN_DIR | plot RUN_DIR... | bench [STAGE] | presets
"""

from __future__ import annotations

import common.ray_environment  # noqa: F401  before anything that imports Ray
from common.interrupts import Interrupts, end_at_once, raise_at_signals
from common.missing_modules import tell_in_one_line
from common.standard_streams import take_standard_streams
from common.warning_filters import raise_no_warnings

if __name__ == "__main__":
    import sys

    take_standard_streams()
    raise_no_warnings()
    sys.excepthook = tell_in_one_line
    end_at_once(130)  # the imports below take seconds, and a traceback would come of a Ctrl-C

# isort: split
import dataclasses
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.assembly import epsilons, make_actor_loop
from actors.environments import reading, resolve
from actors.evaluator import expect_pictures, play, record_game
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
from common.config_file import ConfigError, expect_no_module, in_file, load_file, to_dict
from common.console import Console
from common.crew import Roles, cause_of
from common.curves import NO_PAST, read_past
from common.environment_failed import EnvironmentFailed
from common.hparams import hparams_summary
from common.log_file import LogFile
from common.machine import available_cores, total_memory_bytes
from common.networks import load_flat_state, network_problems, state_bytes
from common.plan import Plan, machine_problems
from common.presets import PRESETS
from common.ray_run import RayRun
from common.reporter import Reporter
from common.reports import EvaluationResult
from common.run_ended import RunEnded
from common.run_folder import (
    About,
    Result,
    RunFolder,
    RunFolderError,
    for_shell,
)
from common.schema import one_line, shown
from common.scores import human_normalized_score
from common.seeding import derive_seed
from common.serial_run import Cores, SerialRun
from common.settings_table import settings_table
from common.tensorboard import EventWriter
from common.types import Batch, Weights
from learner.assembly import (
    Trained,
    checkpoint_payload,
    expect_resumable,
    expect_same_network,
    load_trained,
    make_learner,
    resolve_device,
)
from learner.best_weights import BestWeights
from learner.checkpoint import CheckpointFolder, load
from learner.learner_loop import LearnerLoop
from learner.prefetch import SynchronousFetcher
from learner.resume import AT_THE_BEGINNING, find_start
from learner.weight_store import WeightStore
from learner.worker import LearnerServer
from replay.assembly import make_sampler
from replay.local import LocalReplay
from replay.priority_updater import PriorityUpdater
from replay.server import ReplayServer

# Shards in this very process always answer, also where it stood still for a while.
_LOCAL_ANSWER_S = math.inf
_FLUSH_S = 5.0
# With more than one the last digits follow their number, and so a number that follows the machine
# would make another run of the same command.
_SERIAL_THREADS = 1


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
    starts_ray = not command.serial and command.address is None
    try:
        plan.folder.open(first_result(plan))
        if not starts_ray:
            plan.folder.begin(plan.config, plan.spec.name, typed_command())
    except RunFolderError as error:  # another run was faster
        refuse([str(error)])
    except OSError as error:
        refuse([cannot_be_written(plan, error)])
    console = Console(
        stream=sys.stdout, log_file=plan.folder.place("log.txt"), clock=time.monotonic
    )
    interrupts = Interrupts()
    reporter: Reporter | None = None
    started_s = time.monotonic()
    reason, code, is_over = "failed", 1, False
    try:
        introduce(plan, command, console)
        if starts_ray:
            # Nothing to save yet, so here the first Ctrl-C ends it.
            ray_session.start_local(note=console.note, dashboard=command.dashboard)
        try:
            if starts_ray:
                # Only now is there a run: one whose Ray did not start leaves the folder free.
                plan.folder.begin(plan.config, plan.spec.name, typed_command())
            reporter = make_reporter(plan, console)
        except OSError as error:
            code = 2
            refuse([cannot_be_written(plan, error)])
        with interrupts:
            reason = run(plan, command, reporter, console, interrupts)
        code = 130 if interrupts.requested.is_set() else 0
        is_over = reason != "interrupted"  # also where somebody would not wait for what follows
    except KeyboardInterrupt:
        reason, code = "forced to stop" if interrupts.requested.is_set() else "interrupted", 130
    except EnvironmentFailed as failure:
        has_learned = reporter and reporter.progress.learner_steps > plan.learner_steps_before
        reason, code = str(failure), 1 if has_learned else 2
        print(f"launch.py: {words_of(failure, plan.folder)}", file=sys.stderr)
    except (RunEnded, ConnectionError, FloatingPointError, ray.exceptions.RayError) as error:
        reason = cause_of(error)
        console.note(f"the run ended: {reason}")
    finally:
        # Whatever becomes of the last words, nothing may stay behind.
        with ExitStack() as at_last:
            at_last.callback(plan.folder.unlock)
            at_last.callback(ray_session.shut_down)
            conclude(plan, reporter, console, reason, time.monotonic() - started_s)
            if code == 2 and not plan.resume_from:
                plan.folder.retract()  # for who mends the environment and tries again
            if not is_over and any(plan.folder.checkpoints.glob("checkpoint_*.pt")):
                console.note(f"continue with: {resume_command(plan, command)}")
    return code


def run(
    plan: Plan, command: TrainCommand, reporter: Reporter, console: Console, interrupts: Interrupts
) -> str:
    """Turn the run, in this process or through Ray, and return why it ended."""
    if command.serial:
        return SerialRun(
            plan=plan,
            cores=make_serial_cores(plan, console, interrupts),
            reporter=reporter,
            note=console.note,
            interrupts=interrupts,
        ).run()
    return RayRun(
        plan=plan,
        roles=Roles(Actor, Evaluator, LearnerServer, ReplayServer, WeightStore),
        reporter=reporter,
        console=console,
        interrupts=interrupts,
        on_evaluation=best_keeper(plan, console),
        is_local=command.address is None,
    ).run()


def typed_command() -> list[str]:
    """Return what the user typed."""
    return ["python", "launch.py", *sys.argv[1:]]


def first_result(plan: Plan) -> dict[str, Any]:
    """Return what `result.json` says from the first second on."""
    return {
        "frames": plan.agent_steps_before * plan.spec.action_repeat_frames,
        "agent_steps": plan.agent_steps_before,
        "episodes": plan.episodes_before,
        "seconds": round(plan.seconds_before, 1),
        "learner_steps": plan.learner_steps_before,
        "last_train_return": plan.result_before.get("last_train_return"),
        "last_eval_score": plan.result_before.get("last_eval_score"),
        "end_reason": "running",
    }


def conclude(
    plan: Plan, reporter: Reporter | None, console: Console, reason: str, elapsed_s: float
) -> None:
    """Write and say what came of the run; there is no reporter where it did not even start."""
    result = first_result(plan) | {
        "seconds": round(plan.seconds_before + elapsed_s, 1),
        "end_reason": reason,
    }
    if reporter is not None:
        progress = reporter.progress
        result |= {
            "frames": progress.frames,
            "agent_steps": progress.agent_steps,
            "episodes": progress.episodes,
            "learner_steps": progress.learner_steps,
            "last_train_return": _number(progress.last_train_return),
        }
        if math.isfinite(progress.last_eval_score):
            result["last_eval_score"] = _number(progress.last_eval_score)
    try:
        plan.folder.write_json("result.json", result)
    except OSError as error:
        console.note(f"result.json cannot be written: {error.strerror or error}")
    if reporter is not None:
        reporter.close()
    console.close()  # the last status; notes may follow
    console.note(f"{reason}: {result}")


def cannot_be_written(plan: Plan, error: OSError) -> str:
    """Return the line about a folder that the disk refuses."""
    return f"{plan.folder.path}: cannot be written: {error.strerror or error}"


def resume_command(plan: Plan, command: TrainCommand) -> str:
    """Return the command that goes on with the run, as it can be pasted into this shell."""
    words = ["python", shlex.quote(sys.argv[0]), "--resume", for_shell(plan.folder.path)]
    if command.serial:
        words.append("--serial")
    if command.address is not None:
        words += ["--address", shlex.quote(command.address)]
    if ":" in plan.config.env.id:  # a module is imported only where the command names it
        words += ["--env", shlex.quote(plan.config.env.id)]
    return " ".join(words)


def make_plan(command: TrainCommand, problems: list[str]) -> Plan:
    """Check settings, machine and folder together; exit 2 with one line per problem.

    Args:
      command: what the user typed, resolved.
      problems: what is wrong with the settings themselves.
    """
    config = command.settings
    memory_bytes = total_memory_bytes()
    spec, failure = None, None
    try:
        spec = resolve(config.env)
        problems += network_problems(config.agent, spec)
    except EnvironmentFailed as error:
        failure = error
    except ValueError as error:
        problems.append(f"--env.id {shown(config.env.id)}: {error}")
    if command.serial and command.address is not None:
        problems.append("--serial: must not be given with --address")
    if command.address is None and spec is not None and not problems:
        problems += machine_problems(
            config,
            spec,
            weights_bytes=state_bytes(config.agent, spec),
            is_serial=command.serial,
            memory_bytes=memory_bytes,
            # Under --serial nothing is reserved for an actor.
            cores=sys.maxsize if command.serial else available_cores(),
            has_cuda=torch.cuda.is_available(),
        )
    start = AT_THE_BEGINNING
    result: dict[str, Any] = {}
    try:
        if command.resume is not None:
            folder = RunFolder.of_run(command.resume)
            start = find_start(folder, config, None if problems else spec)
            folder.read_json("run.json", About)
            result = folder.read_json("result.json", Result)
        else:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            name = "run" if spec is None else spec.name
            default = Path("runs") / f"{name}-{config.preset}-{stamp}"
            folder = RunFolder.for_new_run(command.run_dir or default)
        if failure is not None:
            with suppress(OSError):  # what cannot be made cannot be written: the log says so
                folder.path.mkdir(parents=True, exist_ok=True)
            problems.append(f"--env.id {config.env.id}: {words_of(failure, folder)}")
    except ValueError as error:  # RunFolderError, CheckpointError, ConfigError
        # What reading the settings found already is not told twice.
        found = lines_of(error)
        problems += [line for line in found if not any(line in known for known in problems)]
    counters, past = start.counters, NO_PAST
    if spec is not None and start.scale is not None:
        spec = spec._replace(scale=start.scale)
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
        # Events know of starts that were killed, and may be lost themselves.
        seconds_before=max(past.seconds, result.get("seconds", 0.0)),
        result_before=result,
        incarnations=start.incarnations,
    )


def lines_of(error: ValueError) -> list[str]:
    """Return a line per problem; a path in it may hold line ends of its own."""
    return error.problems if isinstance(error, ConfigError) else [str(error)]


def words_of(failure: EnvironmentFailed, folder: RunFolder) -> str:
    """Return the line of a failure whose traceback, if there is one, is put into the folder's log.

    A folder that holds its log alone is as good as new (common.run_folder).
    """
    if not failure.details:
        return str(failure)
    trouble = LogFile(folder.log).append(failure.details)
    return f"{failure}; {trouble or f'its traceback is in {folder.log}'}"


def make_reporter(plan: Plan, console: Console) -> Reporter:
    """Return the run's reporter, which goes on where the run stood."""
    config = plan.config

    def mean_epsilon(agent_steps: int) -> float:
        each = [epsilons(config, actor, agent_steps) for actor in range(config.actor.count)]
        return float(np.mean(each))

    first_frames = plan.agent_steps_before * plan.spec.action_repeat_frames
    events = EventWriter(folder=plan.folder.place(), flush_s=_FLUSH_S, first_frames=first_frames)
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
    console.note(f"{plan.spec.protocol} {reading(config.env, plan.spec)}")
    console.note(
        f"run folder {plan.folder.path}; tensorboard --logdir {for_shell(plan.folder.path)}"
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
    torch.set_num_threads(config.learner.threads or _SERIAL_THREADS)
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
    if learner.is_compiled:
        learner.warm_up()
    sampler = make_sampler(config, spec, shards=replay.handles, in_flight=1, rows_per_request=1)
    if plan.resume_from:
        path = Path(plan.resume_from)
        saved = expect_resumable(path, load(path))
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
    folder = CheckpointFolder(plan.folder.place("checkpoints"), config.checkpoint.keep)
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
        settings_file = str(folder.config_file)
        for config, where in ((trained.config, str(path)), (of_run, settings_file)):
            expect_no_module(config, where, command.env)
        if problems := of_run.problems():
            saved = to_dict(of_run)
            raise ConfigError([in_file(problem, saved, settings_file) for problem in problems])
        expect_same_network(trained, path, of_run, resolve(of_run.env), folder.path)
    except ValueError as error:  # RunFolderError, CheckpointError, ConfigError; of `resolve`
        refuse(lines_of(error))
    except EnvironmentFailed as failure:
        refuse([words_of(failure, folder)])
    epsilon = of_run.evaluator.epsilon if command.epsilon is None else command.epsilon
    try:
        return _evaluate(command, folder, path, trained, epsilon)
    except EnvironmentFailed as failure:
        refuse([words_of(failure, folder)])


def _evaluate(
    command: EvalCommand, folder: RunFolder, path: Path, trained: Trained, epsilon: float
) -> int:
    """Play, print and film as `evaluate` says, with what was read."""
    config, spec, weights, network = trained
    config = dataclasses.replace(
        config,
        evaluator=dataclasses.replace(config.evaluator, episodes=command.episodes, epsilon=epsilon),
    )
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    means = one_line(f"{spec.protocol} {reading(config.env, spec)}", 2_000)  # by a file
    print(f"{path}: learner step {weights.version.learner_step:,}; {means}")
    if command.video:
        expect_pictures(config.env, command.seed)  # before games that may take an hour
    result = play(config, spec, weights, command.seed, lambda: False)
    assert result is not None
    returns = result.returns
    normalized = human_normalized_score(spec.name, float(returns.mean()))
    human = "" if normalized is None else f", human-normalised {normalized:.3f}"
    print(
        f"{len(returns)} games, epsilon {epsilon:g}, seed {command.seed}: "
        f"mean {returns.mean():.2f}, standard deviation {returns.std():.2f}, "
        f"min {returns.min():g}, max {returns.max():g}{human}; mean length "
        f"{result.lengths_agent_steps.mean():.0f} agent steps, {result.seconds:.0f} s"
    )
    if command.video:
        video = folder.path / "videos" / f"{spec.name}_{weights.version.learner_step:010d}.mp4"
        try:
            record_game(config.env, network, epsilon, command.seed, video)
        except OSError as error:
            refuse([f"{video}: cannot be written: {error.strerror or error}"])
        print(f"video: {video}")
    return 0


def plot(arguments: Sequence[str]) -> int:
    """Draw the runs' PNGs."""
    from common.plot_command import draw  # matplotlib: a second every other command can spare

    try:
        draw(parse_plot(arguments), print)
    except ValueError as error:
        refuse([str(error)])
    except OSError as error:
        refuse([f"{error.filename2 or error.filename}: cannot be written: {error.strerror}"])
    return 0


def bench(arguments: Sequence[str]) -> int:
    """Measure the stages against their floors."""
    from benchmarks.run import run_benchmarks  # a benchmark machine's needs are not everybody's

    command = parse_bench(arguments)
    if command.json is not None and not (
        command.json.parent.is_dir() and not command.json.is_dir()
    ):
        refuse([f"--json {command.json}: must be a file in a folder that exists"])
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
    sys.excepthook = sys.__excepthook__  # what is raised from here on is a fault
    raise_at_signals()
    exit_code = main(sys.argv[1:])
    end_at_once(exit_code)  # all is done and Ray is gone: an impatient Ctrl-C changes nothing
    sys.exit(exit_code)
