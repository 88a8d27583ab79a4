"""PNGs of one run, or of several over each other, from their TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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

# Okabe and Ito's palette, which the colour-blind tell apart, without its yellow: too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DPI = 100
_WIDTH_IN = 9.0
_HUMAN_COLOUR = "#555555"


class Panel(NamedTuple):
    """One pair of axes.

    Fields:
      tag: what is drawn over frames.
      title: what it is, with its unit.
      kind: "games": every value faintly, and the mean of the last AVERAGE_GAMES of them;
        "evaluation": marked points, and the human score; "noisy": every value faintly, a moving
        average over a fiftieth of them, and limits that may cut off the outermost per cent;
        "plain": a line.
      from_zero: whether the y-axis starts at 0.
    """

    tag: str
    title: str
    kind: Literal["games", "evaluation", "noisy", "plain"]
    from_zero: bool


_RETURN = Panel(
    TRAIN_EPISODE_RETURN,
    f"Training return (line: mean of {AVERAGE_GAMES} games)",
    "games",
    False,
)
_EVALUATION = Panel(EVAL_EPISODE_RETURN, "Evaluation: mean return", "evaluation", False)
_LOSS = Panel(LEARNER_TD_LOSS, "TD loss", "noisy", True)
_Q_MEAN = Panel(LEARNER_Q_MEAN, "Mean Q-value of trained actions", "noisy", False)
_EPSILON = Panel(ACTORS_EPSILON, "Epsilon, mean of all environments", "plain", True)
_FRAMES_PER_S = Panel(ENV_FRAMES_PER_S, "Acting: frames per second", "noisy", True)
_STEPS_PER_S = Panel(LEARNER_STEPS_PER_S, "Learning: steps per second", "noisy", True)
_RATIO = Panel(REPLAY_SAMPLES_PER_INSERT, "Samples per insert", "plain", True)
_LAG = Panel(ACTORS_POLICY_LAG_LEARNER_STEPS, "Policy lag in learner steps", "noisy", True)

_SUBJECTS: dict[str, tuple[Panel, ...]] = {
    "return": (_RETURN,),
    "evaluation": (_EVALUATION,),
    "loss": (_LOSS, _Q_MEAN),
    "epsilon": (_EPSILON,),
    "throughput": (_FRAMES_PER_S, _STEPS_PER_S, _RATIO, _LAG),
}
_OVERVIEW = (_RETURN, _EVALUATION, _LOSS, _Q_MEAN, _FRAMES_PER_S, _RATIO)


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
    written = []
    for name, panels in {**_SUBJECTS, "overview": _OVERVIEW}.items():
        if name == "overview" or any(p.tag in run.scalars for p in panels for run in runs):
            written.append(out / f"{name}.png")
            _draw(written[-1], panels, runs)
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
        every = {tag: _finite(series) for tag, series in read_scalars(path).items()}
        scalars = {tag: series for tag, series in every.items() if len(series.frames)}
        if not scalars:
            raise ValueError(f"{path}: this run has no values to plot yet")
        runs.append(_Run(label, _COLOURS[i % len(_COLOURS)], _human_score(path), scalars))
    return runs


def _finite(series: Series) -> Series:
    good = np.isfinite(series.values)
    return Series(series.frames[good], series.values[good], series.wall_s[good])


def _human_score(run_dir: Path) -> float | None:
    """Return the human score of the game that `run.json` names; None where either is missing."""
    try:
        about = json.loads((run_dir / "run.json").read_text())
    except (OSError, ValueError):
        return None  # the plots are as good without the line
    game = about.get("game") if isinstance(about, dict) else None
    pair = RANDOM_AND_HUMAN.get(game) if isinstance(game, str) else None
    return None if pair is None else pair[1]


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


def _draw(path: Path, panels: Sequence[Panel], runs: list[_Run]) -> None:
    columns = min(len(panels), 2)
    rows = len(panels) // columns
    height_in = {1: 5.0, 2: 6.0}.get(rows, 3.1 * rows)
    with mpl.rc_context(
        {
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.alpha": 0.3,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        }
    ):
        figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)  # and no pyplot, which holds every figure until told otherwise
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=True):
            _draw_panel(axes, panel, runs)
        for axes in grid[-1]:
            axes.set_xlabel("frames")
        if len(runs) == 1:
            figure.suptitle(runs[0].label, fontsize=12, color=_HUMAN_COLOUR)
        else:
            handles = [Line2D([], [], color=run.colour, label=run.label) for run in runs]
            widest = max(len(run.label) for run in runs)
            figure.legend(
                handles=handles, loc="outside lower center", ncols=max(1, 90 // (widest + 8))
            )
        figure.savefig(path)


def _draw_panel(axes: Axes, panel: Panel, runs: list[_Run]) -> None:
    axes.set_title(panel.title, loc="left")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    shown = [run for run in runs if panel.tag in run.scalars]
    if not shown:
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", color="grey")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for run in shown:
        _draw_series(axes, panel, run)
    if panel.kind == "noisy":
        axes.set_ylim(*_noisy_limits([run.scalars[panel.tag].values for run in shown]))
    if panel.from_zero:
        axes.set_ylim(bottom=0, top=None if axes.get_ylim()[1] > 0 else 1)
    if panel.kind == "evaluation":
        _draw_human(axes, shown)
    last_frames = max(float(series.frames[-1]) for run in runs for series in run.scalars.values())
    axes.set_xlim(left=0, right=1.02 * last_frames or 1.0)  # the same in every plot of these runs


def _draw_series(axes: Axes, panel: Panel, run: _Run) -> None:
    frames, values, _ = run.scalars[panel.tag]
    lone = "o" if len(values) == 1 else ""  # a line through one value cannot be seen
    if panel.kind == "evaluation":
        axes.plot(frames, values, color=run.colour, marker="o", markersize=4)
        return
    if panel.kind == "plain":
        axes.plot(frames, values, color=run.colour, marker=lone)
        return
    window = AVERAGE_GAMES if panel.kind == "games" else max(1, len(values) // 50)
    if panel.kind == "games":
        alpha = float(np.clip(500 / len(values), 0.2, 0.6))
        axes.plot(frames, values, ".", color=run.colour, alpha=alpha, markersize=4, mew=0)
    else:
        axes.plot(frames, values, color=run.colour, alpha=0.25, linewidth=0.8)
    axes.plot(frames, moving_average(values, window), color=run.colour, marker=lone)


def _noisy_limits(columns: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Return y-limits in which the outermost per cent at either end may be cut off."""
    low = min(float(np.percentile(values, 1)) for values in columns)
    high = max(float(np.percentile(values, 99)) for values in columns)
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _draw_human(axes: Axes, runs: list[_Run]) -> None:
    for score in sorted({run.human_score for run in runs if run.human_score is not None}):
        axes.axhline(score, color=_HUMAN_COLOUR, linestyle="--", linewidth=1.2)
        axes.annotate(
            f"human {score:,.1f}",
            (0.01, score),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color=_HUMAN_COLOUR,
        )
