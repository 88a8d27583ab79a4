"""What a run is going to do: checked before anything is started or written."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from actors.environments import resolve
from common.config import Config
from common.endings import EnvironmentFailed
from common.machine import available_cores, total_memory_bytes
from common.networks import state_bytes
from common.schema import shown
from common.torsos import network_problems
from common.types import EnvironmentSpec
from driver.about import About
from driver.command_line import TrainCommand
from driver.machine_needs import machine_problems
from driver.refusals import lines_of, refuse, words_of
from driver.resume import AT_THE_BEGINNING, find_start
from driver.run_folder import Result, RunFolder, lasting_runs
from driver.view.past import NO_PAST, read_past
from driver.view.reporter import Before


@dataclass(frozen=True)
class Plan:
    """Everything a run needs, checked, before anything is started or written.

    Attributes:
      config: the settings.
      spec: the environment.
      folder: the run's folder.
      max_bytes: most bytes of replay over all shards.
      resume_from: path of the checkpoint to go on from, "" for a new run.
      notes: lines for the user on what it goes on from.
      before: what was done before this start of the run.
      seconds_before: how long the run ran before it.
      result_before: what `result.json` said of the start before, {} for a new run.
      incarnations: of each process, by "role/index", the number that is next to give.
    """

    config: Config
    spec: EnvironmentSpec
    folder: RunFolder
    max_bytes: int
    resume_from: str
    notes: list[str]
    before: Before
    seconds_before: float
    result_before: Mapping[str, Any]
    incarnations: Mapping[str, int]

    @property
    def agent_steps_left(self) -> int:
        """Agent steps until `total_frames`."""
        total = math.ceil(self.config.total_frames / self.spec.action_repeat_frames)
        return total - self.before.agent_steps

    @property
    def episodes_left(self) -> float:
        """Training games until `total_episodes`; infinite without that limit."""
        total = self.config.total_episodes
        return math.inf if total is None else total - self.before.episodes


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
            named = f"{name}-{config.preset}-{stamp}"
            folder = RunFolder.for_new_run(command.run_dir or lasting_runs() / named)
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
        before=Before(
            agent_steps=counters["agent_steps"],
            episodes=counters["episodes"],
            learner_steps=counters["learner_step"],
            samples=counters["samples"],
            returns=past.returns,
        ),
        # Events know of starts that were killed, and may be lost themselves.
        seconds_before=max(past.seconds, result.get("seconds", 0.0)),
        result_before=result,
        incarnations=start.incarnations,
    )
