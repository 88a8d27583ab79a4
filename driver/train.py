"""RAY SHELL: `launch.py train`, a run from the command to its result."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray

from actors.environments import reading
from common.endings import EnvironmentFailed, HostUnfit, RunEnded
from common.machine import available_cores
from driver import ray_session
from driver.best_weights import BestWeights
from driver.command_line import TrainCommand, read_train
from driver.crew import cause_of
from driver.interrupts import Interrupts
from driver.plan import Plan, make_plan
from driver.ray_run import RayRun
from driver.refusals import refuse, words_of
from driver.run_folder import RunFolderError, for_shell
from driver.serial_cores import make_serial_cores
from driver.serial_run import SerialRun
from driver.view.console import Console
from driver.view.events import EventWriter
from driver.view.hparams import hparams_summary
from driver.view.json_lines import JsonLines
from driver.view.reporter import Reporter
from driver.view.settings_table import settings_table
from driver.view.sinks import Sink, Sinks
from learner.assembly import resolve_device

_FLUSH_S = 5.0


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
    except (EnvironmentFailed, HostUnfit) as failure:
        has_learned = reporter and reporter.progress.learner_steps > plan.before.learner_steps
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
                plan.folder.retract()  # for who mends what was refused and tries again
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
            cores=make_serial_cores(plan, console.note, interrupts),
            reporter=reporter,
            note=console.note,
            interrupts=interrupts,
        ).run()
    return RayRun(
        plan=plan,
        reporter=reporter,
        console=console,
        interrupts=interrupts,
        on_evaluation=BestWeights(plan, console.note).offer,
        is_local=command.address is None,
    ).run()


def typed_command() -> list[str]:
    """Return what the user typed."""
    return ["python", "launch.py", *sys.argv[1:]]


def first_result(plan: Plan) -> dict[str, Any]:
    """Return what `result.json` says from the first second on."""
    return {
        "frames": plan.before.agent_steps * plan.spec.action_repeat_frames,
        "agent_steps": plan.before.agent_steps,
        "episodes": plan.before.episodes,
        "seconds": round(plan.seconds_before, 1),
        "learner_steps": plan.before.learner_steps,
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


def make_reporter(plan: Plan, console: Console) -> Reporter:
    """Return the run's reporter, which goes on where the run stood."""
    config = plan.config
    return Reporter(
        config=config,
        spec=plan.spec,
        before=plan.before,
        console=console,
        sinks=Sinks(open_sinks(plan), console.note),
        clock=time.monotonic,
    )


def open_sinks(plan: Plan) -> list[Sink]:
    """Open everything that the run's scalars go to; OSError where that cannot be."""
    config, folder = plan.config, plan.folder.place()
    first_frames = plan.before.agent_steps * plan.spec.action_repeat_frames
    # Events last: what is refused here has begun no event file.
    with ExitStack() as opened:
        sinks: list[Sink] = []
        if config.log.jsonl:
            lines = JsonLines(folder=folder, flush_s=_FLUSH_S, first_frames=first_frames)
            sinks.append(opened.enter_context(lines))
        events = EventWriter(folder=folder, flush_s=_FLUSH_S, first_frames=first_frames)
        sinks.append(opened.enter_context(events))
        events.summary(hparams_summary(config, plan.folder.path.resolve().name), first_frames)
        opened.pop_all()  # from here on they are the reporter's
        return sinks


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


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
