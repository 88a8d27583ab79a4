"""The curves of a run: read from its folder, or from the small JSON that documents keep."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.config_file import ConfigError, overlay, read_file
from common.goal import RETURN_GAMES
from common.schedules import epsilon_ladder
from common.scores import RANDOM_AND_HUMAN
from common.tags import (
    ACTORS_EPSILON,
    ACTORS_POLICY_LAG_LEARNER_STEPS,
    ENV_FRAMES_PER_S,
    EVAL_EPISODE_RETURN,
    LEARNER_Q_MEAN,
    LEARNER_STEPS_PER_S,
    LEARNER_TD_LOSS,
    REPLAY_SAMPLES_PER_INSERT,
    TRAIN_EPISODE_RETURN,
)
from common.tensorboard import Series, Session, event_files, read_events, running_seconds

Kind = Literal["games", "evaluation", "noisy", "plain"]
KINDS: Mapping[str, Kind] = {
    TRAIN_EPISODE_RETURN: "games",
    EVAL_EPISODE_RETURN: "evaluation",
    LEARNER_TD_LOSS: "noisy",
    LEARNER_Q_MEAN: "noisy",
    ACTORS_EPSILON: "plain",
    ENV_FRAMES_PER_S: "noisy",
    LEARNER_STEPS_PER_S: "noisy",
    REPLAY_SAMPLES_PER_INSERT: "plain",
    ACTORS_POLICY_LAG_LEARNER_STEPS: "noisy",
}
"""The tags that are drawn, and how: "games" with the mean of the last RETURN_GAMES of them;
"evaluation" as marked points; "noisy" with a moving average over a fiftieth of the values; "plain"
as they are."""

# Values of a tag that a saved file keeps, spread evenly over them; a plot is 900 pixels wide.
SAVED_VALUES = 300

_FORMAT = "troop-scalars-1"
# What a saved file repeats of run.json: what it takes to judge or repeat the run.
_ABOUT = ("game", "command", "started", "git_commit", "git_changed", "versions", "machine")


class Curve(NamedTuple):
    """One tag's finite values.

    Fields:
      frames: float64[n], strictly increasing.
      seconds: float64[n], how long the run had run.
      values: float64[n].
      smooth: float64[n], their moving average, taken over every value that the run has.
    """

    frames: NDArray[np.float64]
    seconds: NDArray[np.float64]
    values: NDArray[np.float64]
    smooth: NDArray[np.float64]


class Ladder(NamedTuple):
    """Constant exploration rates, one per environment (see common.schedules.epsilon_ladder).

    Fields:
      environments: N * E.
      epsilon: base of the ladder.
      alpha: exponent of the ladder.
    """

    environments: int
    epsilon: float
    alpha: float

    @property
    def rates(self) -> NDArray[np.float64]:
        """float64[N * E], by rank: falling."""
        return epsilon_ladder(1, self.environments, 0, self.epsilon, self.alpha)


class RunCurves(NamedTuple):
    """One run as plots see it.

    Fields:
      label: what a legend calls it.
      about: what run.json says of it, {} where there is none.
      ladder: its exploration rates; None where they follow a schedule, or nobody knows.
      curves: tag -> curve, of the tags in KINDS that have values.
    """

    label: str
    about: Mapping[str, Any]
    ladder: Ladder | None
    curves: Mapping[str, Curve]

    @property
    def human_score(self) -> float | None:
        """The human score of its game, None where nobody published one."""
        game = self.about.get("game")
        pair = RANDOM_AND_HUMAN.get(game) if isinstance(game, str) else None
        return None if pair is None else pair[1]


def load_curves(sources: Sequence[Path]) -> list[RunCurves]:
    """Return the runs' curves, each under a label of its own.

    Args:
      sources: run folders, and files that `save_curves` wrote.

    Raises:
      ValueError: one of them is neither, or has no values yet; the text names it.
    """
    if not sources:
        raise ValueError("Expect at least one run folder, actually: none")
    runs = [_of_file(path) if path.is_file() else _of_folder(path) for path in sources]
    if len({run.label for run in runs}) == len(runs):
        return runs
    # Two runs of one name lie in different folders.
    return [
        run._replace(label="/".join(path.resolve().parts[-2:]))
        for run, path in zip(runs, sources, strict=True)
    ]


def _of_folder(path: Path) -> RunCurves:
    if not path.is_dir():
        raise ValueError(f"{path}: is not a run folder: there is no such folder")
    if not event_files(path):
        raise ValueError(f"{path}: has no values to plot: there are no TensorBoard events in it")
    scalars, sessions = read_events(path)
    found = {
        tag: _curve(scalars[tag], sessions, kind) for tag, kind in KINDS.items() if tag in scalars
    }
    curves = {tag: curve for tag, curve in found.items() if len(curve.frames)}
    if not curves:
        raise ValueError(f"{path}: this run has no values to plot yet")
    return RunCurves(path.resolve().name, _about(path), _ladder(path), curves)


def _curve(series: Series, sessions: Sequence[Session], kind: Kind) -> Curve:
    good = np.isfinite(series.values)
    values = series.values[good]
    window = {"games": RETURN_GAMES, "noisy": max(1, len(values) // 50)}.get(kind, 1)
    return Curve(
        frames=series.frames[good],
        seconds=running_seconds(series.wall_s[good], sessions),
        values=values,
        smooth=moving_average(values, window),
    )


def moving_average(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return at each value the mean of the last `window` values; of fewer where the series starts.

    Args:
      values: float64[n].
      window: values per mean.

    Returns:
      float64[n].
    """
    if window < 1:
        raise ValueError(f"Expect `window` >= 1, actually: {window}")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return np.asarray((sums[end] - sums[start]) / (end - start), dtype=np.float64)


def _about(run_dir: Path) -> dict[str, Any]:
    """Return what run.json says; {} where it cannot be read: the plots are as good without."""
    try:
        about = json.loads((run_dir / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return {key: about[key] for key in _ABOUT if key in about} if isinstance(about, dict) else {}


def _ladder(run_dir: Path) -> Ladder | None:
    """Return the ladder that config.yaml speaks of; None where it speaks of none."""
    try:
        config, _ = overlay(Config(), read_file(run_dir / "config.yaml"), "")
    except ConfigError:
        return None
    if config.actor.epsilon_schedule != "ladder":
        return None
    ladder = Ladder(config.num_environments, config.actor.epsilon, config.actor.epsilon_alpha)
    return None if config.problems() else ladder


# --- saved curves ------------------------------------------------------------------------------


def save_curves(run: RunCurves, path: Path) -> None:
    """Write a run's curves as JSON, thinned to SAVED_VALUES values per tag; its folder is made.

    The same curves make the same bytes. Moving averages are saved beside the values, since thinned
    values no longer have theirs.
    """
    head = {
        "format": _FORMAT,
        "label": run.label,
        "about": run.about,
        "ladder": None if run.ladder is None else run.ladder._asdict(),
        "units": "frames of the emulator; seconds the run had run",
    }
    # A line for each column: readable, and a changed run is a short difference.
    tags = []
    for tag, curve in run.curves.items():
        columns = [f"      {json.dumps(name)}: {json.dumps(c)}" for name, c in _columns(curve, tag)]
        tags.append(f"    {json.dumps(tag)}: {{\n" + ",\n".join(columns) + "\n    }")
    text = json.dumps(head, indent=2).removesuffix("\n}")
    text += ',\n  "scalars": {\n' + ",\n".join(tags) + "\n  }\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _columns(curve: Curve, tag: str) -> list[tuple[str, list[float]]]:
    most = len(curve.frames)
    kept = np.unique(np.linspace(0, most - 1, min(most, SAVED_VALUES)).round().astype(np.int64))
    columns: list[tuple[str, list[float]]] = [
        ("frames", [int(frames) for frames in curve.frames[kept]]),
        ("seconds", [round(float(seconds), 1) for seconds in curve.seconds[kept]]),
        ("values", [float(f"{value:.6g}") for value in curve.values[kept]]),
    ]
    if KINDS[tag] in ("games", "noisy"):
        columns.append(("smooth", [float(f"{value:.6g}") for value in curve.smooth[kept]]))
    return columns


def _of_file(path: Path) -> RunCurves:
    """Return what `save_curves` wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']}")
        curves = {
            tag: _of_columns(content["scalars"][tag]) for tag in KINDS if tag in content["scalars"]
        }
        ladder = content["ladder"]
        run = RunCurves(
            label=str(content["label"]),
            about=dict(content["about"]),
            ladder=None if ladder is None else Ladder(**ladder),
            curves=curves,
        )
        if run.ladder is not None and len(run.ladder.rates) == 0:
            raise ValueError("its ladder is empty")
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: is no file of `plot --save-scalars`, nor a run folder: {reason}"
        ) from error
    if not curves:
        raise ValueError(f"{path}: has no values to plot")
    return run


def _of_columns(columns: Mapping[str, Any]) -> Curve:
    frames, seconds, values = (
        np.array(columns[name], dtype=np.float64) for name in ("frames", "seconds", "values")
    )
    smooth = np.array(columns["smooth"], dtype=np.float64) if "smooth" in columns else values
    curve = Curve(frames, seconds, values, smooth)
    if frames.ndim != 1 or not len(frames) or len({len(column) for column in curve}) != 1:
        raise ValueError("its columns must be of one length >= 1")
    return curve
