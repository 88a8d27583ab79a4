"""PNGs of one run or of several over each other, drawn from their TensorBoard events. The x-axis is frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from common.scores import RANDOM_AND_HUMAN
from common.tensorboard import (
    ACTORS_EPSILON,
    ACTORS_POLICY_LAG_LEARNER_STEPS,
    ENV_FRAMES_PER_S,
    EVAL_EPISODE_RETURN,
    LEARNER_Q_MEAN,
    LEARNER_STEPS_PER_S,
    LEARNER_TD_LOSS,
    REPLAY_SAMPLES_PER_INSERT,
    TRAIN_EPISODE_RETURN,
    Series,
    event_files,
    read_scalars,
)

# Games in the moving average of the training return.
AVERAGE_GAMES = 100

# Okabe and Ito's palette, which the colour-blind tell apart; its yellow is too pale for lines on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=_COLOURS),
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.8,
}
_DPI = 100
# Raw values behind a moving average.
_RAW = {"alpha": 0.3, "linewidth": 0.8}


class _Run(NamedTuple):
    """One run as the plots see it.

    Fields:
      label: what the legend calls it.
      colour: of its lines.
      human_score: of the run's game, None where nobody published one.
      scalars: tag -> values, infinities dropped.
    """

    label: str
    colour: str
    human_score: float | None
    scalars: dict[str, Series]


_Panel = Callable[[Axes, list[_Run]], None]


def plot_runs(run_dirs: list[Path], out: Path) -> list[Path]:
    """Draw `return`, `evaluation`, `loss`, `epsilon`, `throughput` and `overview`.png.

    Args:
      run_dirs: run folders; several are drawn over each other, with a legend by the folders' names.
      out: folder for the PNGs, made if need be.

    Returns:
      The files written. A subject of which no run has a value yet has no file of its own.

    Raises:
      ValueError: a folder is not a run, or has no values yet; the text names it.
    """
    runs = _load(run_dirs)
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def draw(name: str, width: float, height: float, columns: int, panels: list[_Panel]) -> None:
        with _figure(out / f"{name}.png", width, height) as figure:
            axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False)
            for ax, panel in zip(axes.flat, panels, strict=True):
                _draw_panel(ax, panel, runs)
            if len(runs) > 1:
                _add_legend(figure, runs)
        written.append(out / f"{name}.png")

    for name, panels in _SUBJECTS.items():
        if any(_TAGS[panel] in run.scalars for panel in panels for run in runs):
            many = len(panels) > 2
            draw(name, 9.0, 6.0 if many else 5.0, min(len(panels), 2), panels)
    draw("overview", 9.0, 9.6, 2, _OVERVIEW)
    return written


def _load(run_dirs: list[Path]) -> list[_Run]:
    if not run_dirs:
        raise ValueError("Expect at least one run folder, actually: none")
    labels = [path.resolve().name for path in run_dirs]
    if len(set(labels)) < len(labels):  # two runs of one name lie in different folders
        labels = ["/".join(path.resolve().parts[-2:]) for path in run_dirs]
    runs = []
    for i, (path, label) in enumerate(zip(run_dirs, labels, strict=True)):
        if not path.is_dir():
            raise ValueError(f"{path}: is not a run folder: there is no such folder")
        if not event_files(path):
            raise ValueError(f"{path}: is not a run folder: there are no TensorBoard events in it")
        scalars = {tag: _finite(series) for tag, series in read_scalars(path).items()}
        if not any(len(series.frames) for series in scalars.values()):
            raise ValueError(f"{path}: this run has no values to plot yet")
        runs.append(_Run(label, _COLOURS[i % len(_COLOURS)], _human_score(path), scalars))
    return runs


def _finite(series: Series) -> Series:
    good = np.isfinite(series.values)
    return Series(series.frames[good], series.values[good], series.wall_s[good])


def _human_score(run_dir: Path) -> float | None:
    """Return the human score of the game that `run.json` names, None if it or the score is missing."""
    try:
        about = json.loads((run_dir / "run.json").read_text())
    except (OSError, ValueError):
        return None  # the plots are as good without the line
    game = about.get("game") if isinstance(about, dict) else None
    pair = RANDOM_AND_HUMAN.get(game) if isinstance(game, str) else None
    return None if pair is None else pair[1]


def moving_average(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the mean of the last `window` values at each value, of as many as there are at the start.

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
