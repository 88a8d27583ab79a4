"""What the user types: preset < file < flag, and one clear line for each thing that cannot be."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from common.config import EVALUATION_GAMES, Config
from common.config_file import (
    ConfigError,
    expect_no_module,
    in_file,
    overlay,
    read_file,
)
from common.files import UnreadableFile, follow
from common.presets import PRESETS
from common.schema import shown
from common.seeding import MAX_GIVEN_SEED
from driver.refusals import refuse
from driver.run_folder import RunFolder, RunFolderError
from driver.view.averages import is_average
from driver.view.tags import RETURN_GAMES

# What a resumed run cannot change: it would be another network, another game, or another count of
# frames; and the optimiser's kind comes with its state.
_KEPT_BY_RESUME = (
    ("env", "id"),
    ("env", "full_action_space"),
    ("env", "stack"),
    ("env", "action_repeat_frames"),
    ("agent", "algorithm"),
    ("agent", "network"),
    ("agent", "hidden"),
    ("agent", "dueling"),
    ("learner", "optimizer"),
    ("learner", "rmsprop_centered"),
)


@dataclass(frozen=True)
class TrainCommand:
    """Train a deep Q-network with many actors, a replay server and a learner.

    A preset sets everything, a --config file is laid over it, and flags are laid over both:

        launch.py --actors 16 --run-dir runs/first
        launch.py --preset pong-fast --env breakout --learner.batch-size 256
        launch.py --resume runs/first

    Other commands: launch.py eval RUN_DIR | plot RUN_DIR... | bench [STAGE] | presets
    """

    settings: Annotated[Config, arg(name="")]
    config: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """YAML file with settings, laid over the preset; a run's config.yaml is one."""
    run_dir: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Folder of the run, new or empty; default: runs/<env>-<preset>-<time>."""
    resume: Annotated[Path | None, arg(metavar="RUN_DIR", help_behavior_hint="")] = None
    """Continue a run: its settings, weights, optimiser, counters and replay."""
    serial: FlagCreatePairsOff[bool] = False
    """Everything in one process, for debugging and tests. The same command gives the same
    checkpoints, best.pt and replay on any number of cores and at any speed: torch has one thread
    (or learner.threads), and 6,000 agent and learner steps count as a minute. Another processor,
    GPU or release of torch may round otherwise; where memory differs, set replay.max-bytes."""
    address: Annotated[str | None, arg(metavar="auto|HOST:PORT", help_behavior_hint="")] = None
    """Use a Ray cluster that runs; default: a Ray of its own on this machine."""
    dashboard: FlagCreatePairsOff[bool] = False
    """Start Ray's dashboard (on loopback)."""


@dataclass(frozen=True)
class EvalCommand:
    """Play whole games with a trained network and print the raw score."""

    run_dir: Annotated[Positional[Path], arg(metavar="RUN_DIR")]
    """Folder of the run."""
    episodes: int = 30
    """Games to play."""
    epsilon: float | None = None
    """Exploration; None: the run's own evaluator.epsilon, as its config.yaml has it. Above 0, or
    Breakout waits for ever for its FIRE."""
    checkpoint: Annotated[str, arg(metavar="last|best|PATH")] = "last"
    """Which weights."""
    seed: int = 10_000
    """Seeds the games and the exploration."""
    env: Annotated[str | None, arg(metavar="ID", help_behavior_hint="")] = None
    """The run's own environment, where its id names a module: no module is imported unless you name
    it."""
    video: FlagCreatePairsOff[bool] = False
    """Also record one whole game as MP4 into the run's videos/."""


@dataclass(frozen=True)
class PlotCommand:
    """Draw PNGs of one run, or of several for comparison."""

    sources: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="RUN_DIR|FILE.json [...]", help_behavior_hint="(required)"),
    ]
    """Folders of runs, and files that --save-scalars wrote."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")] = None
    """Where to draw; default: plots/ of the first run, or FILE-plots/ beside FILE.json."""
    x: Literal["frames", "minutes", "games"] = "frames"
    """What lies on the x-axis: emulator frames, minutes the run had run, or training games."""
    average: float = RETURN_GAMES
    """Line through training returns: mean of so many games, or smoothing by a factor < 1 (0.9)."""
    save_scalars: Annotated[Path | None, arg(metavar="FILE.json", help_behavior_hint="")] = None
    """Also save the one run's curves, thinned, with its command, commit and hardware."""


@dataclass(frozen=True)
class BenchCommand:
    """Measure every stage against its floor, in one run on this machine."""

    stage: Positional[Literal["all", "actor", "replay", "learner", "pipeline", "startup"]] = "all"
    """Which stage."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Also save the rows and the machine as JSON."""
    seconds: float = 20.0
    """Time box of each measurement."""


# Settings that are on or off: their flags take no value, as --checkpoint.replay and .no-replay. And
# those that may be None besides: these the command-line library takes for no switches.
_KINDS = {
    f"--{part}.{name}": kind
    for part, whole in get_type_hints(Config).items()
    if is_dataclass(whole)
    for name, kind in get_type_hints(whole).items()
}
_OPTIONAL_SWITCHES = frozenset(flag for flag, kind in _KINDS.items() if kind == bool | None)
_SWITCHES = frozenset(flag for flag, kind in _KINDS.items() if kind is bool) | _OPTIONAL_SWITCHES


def read_train(arguments: Sequence[str]) -> tuple[TrainCommand, list[str]]:
    """Return the train command and one line per problem; the command is of use if there is none.

    Only for a flag that is unknown or malformed, exit 2 with the command-line library's message.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--preset", "--config", "--resume"):
        early.add_argument(flag, nargs="?")  # "?": that a value is missing is said below, by tyro
    early.add_argument("--env", "--env.id", nargs="?", dest="env")
    known, _ = early.parse_known_args(arguments)
    base, changes, where, problems = _base(known.preset, known.config, known.resume)
    try:
        expect_no_module(base, where, known.env)
    except ConfigError as error:  # before anybody looks at what the id means
        refuse(error.problems)
    command: TrainCommand = tyro.cli(
        TrainCommand,
        args=_switched(arguments),
        prog="launch.py",
        default=TrainCommand(settings=base),
    )
    command = _expanded(command)
    from_file = base.problems()  # presets have none
    for problem in command.settings.problems():
        problems.append(in_file(problem, changes, where) if problem in from_file else problem)
    if command.resume is not None:
        problems += _resume_problems(base, known.preset, command)
    return command, problems


def _switched(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a switch's `true` or `false`, as in a file, made a bare flag."""
    words: list[str] = []
    for word in arguments:
        if word.lower() in ("true", "false") and words and _is_switch(words[-1]):
            flag, said = words.pop(), word
        else:
            flag, _, said = word.partition("=")
        if _is_switch(flag) and said.lower() in ("true", "false"):
            part, _, name = flag.rpartition(".")
            words.append(flag if said.lower() == "true" else f"{part}.no-{name}")
        else:
            words.append(word)
    return _with_values(words)


def _with_values(words: Sequence[str]) -> list[str]:
    """Return the arguments with the values of bare switches that may be None, too."""
    spelled: list[str] = []
    for word, following in itertools.zip_longest(words, words[1:]):
        flag = word.replace(".no-", ".").replace(".no_", ".")
        if not _is_switch(flag, _OPTIONAL_SWITCHES) or following == "None":
            spelled.append(word)
        else:
            spelled += [flag, str(flag == word)]
    return spelled


def _is_switch(flag: str, switches: frozenset[str] = _SWITCHES) -> bool:
    return "--" + flag.removeprefix("--").replace("-", "_") in switches


def _base(
    preset: str | None, file: str | None, resume: str | None
) -> tuple[Config, Any, str, list[str]]:
    """Return what flags are laid over, the file's part in it, its name, and what is wrong."""
    problems: list[str] = []
    config, changes = Config(), {}
    where = "" if file is None else file
    try:
        if resume is not None:
            where = str(RunFolder.of_run(_expand(Path(resume))).config_file)
        if where:
            where = str(_expand(Path(where)))
            # A link of the user's own is followed; in a run's folder there are none.
            changes = read_file(Path(where) if resume else follow(Path(where)))
    except RunFolderError as error:
        return config, {}, "", [f"--resume {error}"]
    except ConfigError as error:
        problems += error.problems
    except UnreadableFile as error:
        problems.append(str(error))
    name, source = preset, f"--preset {preset}"
    if name is None and isinstance(changes, dict) and isinstance(changes.get("preset"), str):
        name, source = changes["preset"], f"{where}: `preset` is {changes['preset']}"
    if name is not None and resume is None:
        if name in PRESETS:
            config = PRESETS[name].config
        else:
            close = difflib.get_close_matches(name, PRESETS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            problems.append(f"{source}: must be one of {', '.join(PRESETS)}{hint}")
    config, misfits = overlay(config, changes, where)
    return config, changes, where, problems + misfits


Command = TypeVar("Command", TrainCommand, EvalCommand, PlotCommand, BenchCommand)


def _expanded(command: Command) -> Command:
    """Return a command with `~` in its paths as a shell would have it; exit 2 if it cannot be."""

    def expanded(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(expanded, value))
        return _expand(value) if isinstance(value, Path) else value

    found = {field.name: getattr(command, field.name) for field in dataclasses.fields(command)}
    return dataclasses.replace(command, **{name: expanded(value) for name, value in found.items()})


def _expand(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # nobody of that name
        refuse([f"{path}: must be a path; nobody has such a home folder"])


def _resume_problems(saved: Config, preset: str | None, command: TrainCommand) -> list[str]:
    """Name what does not go with --resume."""
    problems = []
    if preset is not None:
        problems.append(f"--preset {preset}: must not be given with --resume, nor needs to")
    if command.config is not None:
        problems.append(f"--config {command.config}: must not be given with --resume; use flags")
    if command.run_dir is not None:
        problems.append(f"--run-dir {command.run_dir}: must not be given with --resume")
    for part, name in _KEPT_BY_RESUME:
        before, now = (getattr(getattr(c, part), name) for c in (saved, command.settings))
        if before != now:
            flag = f"--{part}.{name}".replace("_", "-")
            problems.append(f"{flag} {now}: must stay {before} in a resumed run")
    return problems


def _parsed(kind: type[Command], arguments: Sequence[str], prog: str) -> Command:
    return _expanded(tyro.cli(kind, args=list(arguments), prog=prog))


def parse_eval(arguments: Sequence[str]) -> EvalCommand:
    """Return the eval command; exit 2 with clear lines otherwise."""
    command = _parsed(EvalCommand, arguments, "launch.py eval")
    problems = []
    if rule := EVALUATION_GAMES.broken_by(command.episodes):
        problems.append(f"--episodes {shown(command.episodes)}: must be {rule}")
    if command.epsilon is not None and not 0 <= command.epsilon <= 1:
        problems.append(f"--epsilon {command.epsilon}: must be from 0 to 1")
    if not 0 <= command.seed <= MAX_GIVEN_SEED:
        problems.append(f"--seed {command.seed}: must be from 0 to {MAX_GIVEN_SEED:,}")
    if problems:
        refuse(problems)
    return command


def parse_plot(arguments: Sequence[str]) -> PlotCommand:
    """Return the plot command; exit 2 with clear lines otherwise."""
    command = _parsed(PlotCommand, arguments, "launch.py plot")
    problems = []
    if not command.sources:
        problems.append("plot RUN_DIR: must be one run folder or more")
    if command.save_scalars is not None and len(command.sources) > 1:
        problems.append(f"--save-scalars {command.save_scalars}: must be given with one run alone")
    if not is_average(command.average):
        problems.append(
            f"--average {command.average:g}: must be a whole number >= 1, or between 0 and 1"
        )
    if problems:
        refuse(problems)
    return command


def parse_bench(arguments: Sequence[str]) -> BenchCommand:
    """Return the bench command; exit 2 with clear lines otherwise."""
    command = _parsed(BenchCommand, arguments, "launch.py bench")
    if not 0 < command.seconds < math.inf:
        refuse([f"--seconds {command.seconds}: must be finite and > 0"])
    return command
