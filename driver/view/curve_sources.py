"""Curves from where they lie: a run's folder, or a file that `save_curves` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config import Config
from common.config_file import ConfigError, overlay, read_file
from common.files import UnreadableFile
from driver.about import About
from driver.run_folder import RunFolder
from driver.view.averages import average_returns, moving_average
from driver.view.curves import KINDS, Curve, Kind, Ladder, RunCurves
from driver.view.events import Series, Session, event_files, read_events, running_seconds
from driver.view.saved_curves import read_saved_curves
from driver.view.tags import RETURN_GAMES, TRAIN_EPISODE_RETURN

# What a saved file repeats of run.json: what it takes to judge or repeat the run.
_ABOUT = (
    *("game", "command", "started", "git_commit", "git_changed", "versions", "machine"),
    "resumed",
)


def load_curves(sources: Sequence[Path], average: float = RETURN_GAMES) -> list[RunCurves]:
    """Return the runs' curves, each under a label of its own.

    Args:
      sources: run folders, and files that `save_curves` wrote.
      average: of the training returns (see average_returns).

    Raises:
      ValueError: one of them is neither, or has no values yet, or is a file of another average that
        does not hold every game; the text names it.
    """
    runs = [
        read_saved_curves(path, average) if path.is_file() else _of_folder(path, average)
        for path in sources
    ]
    if len({run.label for run in runs}) == len(runs):
        return runs
    # Two runs of one name lie in different folders.
    return [
        run._replace(label="/".join(path.resolve().parts[-2:]))
        for run, path in zip(runs, sources, strict=True)
    ]


def _of_folder(path: Path, average: float) -> RunCurves:
    if not path.is_dir():
        raise ValueError(f"{path}: is not a run folder: there is no such folder")
    if not event_files(path):
        raise ValueError(f"{path}: has no values to plot: there are no TensorBoard events in it")
    scalars, sessions = read_events(path)
    games = scalars.get(TRAIN_EPISODE_RETURN)
    ends_frames = np.zeros(0) if games is None else games.frames
    found = {
        tag: _curve(scalars[tag], sessions, ends_frames, kind, average)
        for tag, kind in KINDS.items()
        if tag in scalars
    }
    curves = {tag: curve for tag, curve in found.items() if len(curve.frames)}
    if not curves:
        raise ValueError(f"{path}: this run has no values to plot yet")
    return RunCurves(path.resolve().name, _about(path), _ladder(path), average, curves)


def _curve(
    series: Series,
    sessions: Sequence[Session],
    ends_frames: NDArray[np.float64],
    kind: Kind,
    average: float,
) -> Curve:
    """Return a tag's curve; every training game counts at the frame in `ends_frames`."""
    good = np.isfinite(series.values)
    frames, values = series.frames[good], series.values[good]
    window = max(1, len(values) // 50) if kind == "noisy" else 1
    return Curve(
        frames=frames,
        seconds=running_seconds(series.wall_s[good], sessions),
        games=np.searchsorted(ends_frames, frames, side="right").astype(np.float64),
        values=values,
        smooth=(
            average_returns(values, average) if kind == "games" else moving_average(values, window)
        ),
    )


def _about(run_dir: Path) -> dict[str, Any]:
    """Return what run.json says; {} where it cannot be read: the plots are as good without."""
    try:
        about = RunFolder(run_dir).read_json("run.json", About)
    except UnreadableFile:
        return {}
    return {key: about[key] for key in _ABOUT if key in about}


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
