"""What the user types: preset < file < flag, and one clear line for each thing that cannot be."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro
from tyro.conf import Positional, arg

from common.config import Config, ConfigError, load_file
from common.presets import PRESETS
from common.run_folder import RunFolder, RunFolderError


@dataclass(frozen=True)
class TrainCommand:
    """Train a deep Q-network with many actors, a replay server and a learner.

    Other commands: launch.py eval RUN_DIR | plot RUN_DIR... | bench [STAGE] | presets
    """

    settings: Annotated[Config, arg(name="")]
    config: Path | None = None
    """YAML file with settings, laid over the preset; flags are laid over both."""
    run_dir: Path | None = None
    """Folder of the run; default runs/<env>-<preset>-<time>."""
    resume: Path | None = None
    """Continue the run in this folder: weights, target, optimiser and counters; replay is refilled first."""
    serial: bool = False
    """Everything in one process, bit-reproducible for a seed: for debugging and tests."""
    address: str | None = None
    """`auto` or HOST:PORT of a Ray cluster that runs; default: a Ray of its own on this machine."""
    dashboard: bool = False
    """Start Ray's dashboard (on loopback)."""


@dataclass(frozen=True)
class EvalCommand:
    """Play whole games with a trained network and print the raw score."""

    run_dir: Positional[Path]
    """Folder of the run."""
    episodes: int = 30
    """Games to play."""
    epsilon: float = 0.001
    """Exploration; above 0, or Breakout waits for ever for its FIRE."""
    checkpoint: str = "last"
    """`last`, `best`, or the path of a checkpoint."""
    seed: int = 10_000
    """Seeds the games; far from any training seed."""
    video: bool = False
    """Also record one whole game as MP4 into the run's videos/."""


@dataclass(frozen=True)
class PlotCommand:
    """Draw PNGs of one run, or of several for comparison."""

    run_dirs: Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path | None = None
    """Where to draw; default: plots/ of the first run."""


@dataclass(frozen=True)
class BenchCommand:
    """Measure every stage against its floor, in one run on this machine."""

    stage: Positional[Literal["all", "actor", "replay", "learner", "pipeline", "startup"]] = "all"
    """Which stage."""
    json: Path | None = None
    """Also save the rows and the machine as JSON."""
    seconds: float = 20.0
    """Time box of each measurement."""


def parse_train(arguments: Sequence[str]) -> TrainCommand:
    """Return the train command with every setting resolved; exit 2 with clear lines otherwise."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--config", type=Path)
    early.add_argument("--resume", type=Path)
    known, _ = early.parse_known_args(arguments)
    try:
        base = _base(known.preset, known.config, known.resume)
        command: TrainCommand = tyro.cli(
            TrainCommand,
            args=list(arguments),
            prog="launch.py",
            default=TrainCommand(settings=base),
        )
        problems = command.settings.problems()
        if command.resume is not None:
            problems += _resume_problems(base, command)
        if problems:
            raise ConfigError(problems)
    except ConfigError as error:
        refuse(error.problems)
    except RunFolderError as error:
        refuse([f"--resume {error}"])
    return command


def _base(preset: str | None, file: Path | None, resume: Path | None) -> Config:
    if resume is not None:
        return load_file(Config(), RunFolder.of_run(resume).config_file)
    config = Config()
    if file is not None:
        preset = preset or load_file(config, file).preset
    if preset is not None:
        if preset not in PRESETS:
            close = difflib.get_close_matches(preset, PRESETS, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError([f"--preset {preset}: {hint}must be one of {', '.join(PRESETS)}"])
        config = PRESETS[preset].config
    return config if file is None else load_file(config, file)


def _resume_problems(saved: Config, command: TrainCommand) -> list[str]:
    """Name the changes that a run cannot take on: they would be another network or another game."""
    now = command.settings
    problems = []
    if command.run_dir is not None:
        problems.append(f"--run-dir {command.run_dir}: must not be given with --resume")
    if now.env.id != saved.env.id:
        problems.append(f"--env.id {now.env.id}: must stay {saved.env.id} in a resumed run")
    for name in ("network", "hidden", "dueling"):
        before, after = getattr(saved.agent, name), getattr(now.agent, name)
        if before != after:
            problems.append(f"--agent.{name} {after}: must stay {before} in a resumed run")
    if now.learner.optimizer != saved.learner.optimizer:
        problems.append(
            f"--learner.optimizer {now.learner.optimizer}: must stay {saved.learner.optimizer} in a resumed run"
        )
    return problems


def parse_eval(arguments: Sequence[str]) -> EvalCommand:
    """Return the eval command; exit 2 with clear lines otherwise."""
    command = tyro.cli(EvalCommand, args=list(arguments), prog="launch.py eval")
    problems = []
    if command.episodes < 1:
        problems.append(f"--episodes {command.episodes}: must be >= 1")
    if not 0 <= command.epsilon <= 1:
        problems.append(f"--epsilon {command.epsilon}: must be from 0 to 1")
    if problems:
        refuse(problems)
    return command


def parse_plot(arguments: Sequence[str]) -> PlotCommand:
    """Return the plot command; exit 2 with clear lines otherwise."""
    command = tyro.cli(PlotCommand, args=list(arguments), prog="launch.py plot")
    if not command.run_dirs:
        refuse(["plot: name at least one run folder"])
    return command


def parse_bench(arguments: Sequence[str]) -> BenchCommand:
    """Return the bench command; exit 2 with clear lines otherwise."""
    command = tyro.cli(BenchCommand, args=list(arguments), prog="launch.py bench")
    if command.seconds <= 0:
        refuse([f"--seconds {command.seconds}: must be > 0"])
    return command


def refuse(problems: Sequence[str]) -> NoReturn:
    """Print one line per problem and exit 2."""
    for problem in problems:
        print(f"launch.py: {problem}", file=sys.stderr)
    sys.exit(2)
