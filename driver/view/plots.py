"""PNGs of one run, or of several over each other."""

from __future__ import annotations

import driver.view.matplotlib_environment  # noqa: F401  before anything that imports matplotlib

# isort: split
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from common.files import write_whole
from driver.view.curves import KINDS, Curve, RunCurves
from driver.view.provenance import drawable, provenance
from driver.view.tags import (
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

XAxis = Literal["frames", "minutes", "games"]

# Okabe and Ito's palette, which the colour-blind tell apart, without its yellow: too pale on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DPI = 100
_WIDTH_IN = 9.0
_GREY = "#555555"
# Characters of the smallest type that are as wide as a figure.
_FOOTNOTE_WIDTH = 175


class Panel(NamedTuple):
    """One pair of axes.

    Fields:
      tag: what is drawn, as its kind says (see driver.view.curves.KINDS); or _LADDER_TAG, which is
        no tag of TensorBoard's.
      title: what it is, with its unit.
      from_zero: whether the y-axis starts at 0.
    """

    tag: str
    title: str
    from_zero: bool


_LADDER_TAG = "ladder"

_EVALUATION = Panel(EVAL_EPISODE_RETURN, "Evaluation: mean return", False)
_LOSS = Panel(LEARNER_TD_LOSS, "TD loss", True)
_Q_MEAN = Panel(LEARNER_Q_MEAN, "Mean Q-value of trained actions", False)
_LADDER = Panel(_LADDER_TAG, "Epsilon of each environment", False)
_EPSILON = Panel(ACTORS_EPSILON, "Epsilon, mean of all environments", True)
_FRAMES_PER_S = Panel(ENV_FRAMES_PER_S, "Acting: frames per second", True)
_STEPS_PER_S = Panel(LEARNER_STEPS_PER_S, "Learning: steps per second", True)
_RATIO = Panel(REPLAY_SAMPLES_PER_INSERT, "Samples per insert", True)
_LAG = Panel(ACTORS_POLICY_LAG_LEARNER_STEPS, "Policy lag in learner steps", True)


def _subjects(runs: Sequence[RunCurves]) -> dict[str, tuple[Panel, ...]]:
    """Return the panels of each PNG by its name."""
    # A ladder does not change with the frames, a schedule does not with the environment.
    has_ladder = any(run.ladder is not None for run in runs)
    has_schedule = any(run.ladder is None and ACTORS_EPSILON in run.curves for run in runs)
    epsilon = (*((_LADDER,) if has_ladder else ()), *((_EPSILON,) if has_schedule else ()))
    one_epsilon = _LADDER if has_ladder and not has_schedule else _EPSILON
    training_return = _return_panel({run.average for run in runs})
    return {
        "return": (training_return,),
        "evaluation": (_EVALUATION,),
        "loss": (_LOSS, _Q_MEAN),
        "epsilon": epsilon,
        "throughput": (_FRAMES_PER_S, _STEPS_PER_S),
        "samples_per_insert": (_RATIO,),
        "policy_lag": (_LAG,),
        "overview": (
            *(training_return, _EVALUATION, _LOSS, one_epsilon),
            *(_FRAMES_PER_S, _STEPS_PER_S, _RATIO, _LAG),
        ),
    }


def _return_panel(averages: set[float]) -> Panel:
    assert len(averages) == 1, averages
    (average,) = averages
    line = f"mean of {average:.15g} games" if average >= 1 else f"smoothed by {average}"
    return Panel(TRAIN_EPISODE_RETURN, f"Training return (line: {line})", False)


class _Figure(NamedTuple):
    """What the panels of one PNG share.

    Fields:
      runs: what is drawn.
      colours: of the runs, in their order.
      x: what lies on the x-axis.
      last: where the x-axis ends, the same in every plot of these runs.
    """

    runs: Sequence[RunCurves]
    colours: Sequence[str]
    x: XAxis
    last: float


def plot_runs(runs: Sequence[RunCurves], out: Path, x: XAxis) -> list[Path]:
    """Draw `return`, `evaluation`, `loss`, `epsilon`, ... and `overview`.png.

    The same curves make the same bytes, under one version of matplotlib.

    Args:
      runs: several are drawn over each other, with a legend; all of one `average`, as load_curves
        returns them.
      out: folder for the PNGs, made if need be.
      x: what lies on the x-axis; by minutes, which count from the run's start, the files are called
        `*_by_minutes.png`; by training games, which all runs must have, `*_by_games.png`.

    Returns:
      The files written. A subject of which no run has a value yet has no file of its own.
    """
    out.mkdir(parents=True, exist_ok=True)
    runs = [run._replace(label=drawable(run.label)) for run in runs]
    last = max(float(_along(curve, x)[-1]) for run in runs for curve in run.curves.values())
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(runs))]
    figure = _Figure(runs, colours, x, 1.02 * last or 1.0)
    written = []
    for name, panels in _subjects(runs).items():
        if any(_has(run, panel) for panel in panels for run in runs):
            written.append(out / f"{name}{'' if x == 'frames' else f'_by_{x}'}.png")
            _draw(written[-1], panels, figure)
    return written


def _along(curve: Curve, x: XAxis) -> NDArray[np.float64]:
    if x == "games":
        assert curve.games is not None, "no games to draw by"
        return curve.games
    return curve.frames if x == "frames" else curve.seconds / 60.0


def _has(run: RunCurves, panel: Panel) -> bool:
    return run.ladder is not None if panel.tag == _LADDER_TAG else panel.tag in run.curves


def _draw(path: Path, panels: Sequence[Panel], what: _Figure) -> None:
    columns = min(len(panels), 2)
    rows = len(panels) // columns
    height_in = 5.0 if rows == 1 else 2.6 * rows
    with mpl.rc_context(
        _defaults()
        | {
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
            _draw_panel(axes, panel, what)
        for axes, panel in zip(grid[-1], panels[-columns:], strict=True):
            if panel.tag != _LADDER_TAG:
                axes.set_xlabel(what.x)
        if len(what.runs) == 1:
            figure.suptitle(what.runs[0].label, fontsize=12, color=_GREY, parse_math=False)
        else:
            _draw_legend(figure, what)
        _draw_footnote(figure, what.runs)
        drawn = io.BytesIO()
        figure.savefig(drawn)
    write_whole(path, [drawn.getbuffer()])


def _defaults() -> dict[Any, Any]:
    """Return matplotlib's own settings, whatever this process has set meanwhile."""
    return {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"}


def _draw_footnote(figure: Figure, runs: Sequence[RunCurves]) -> None:
    """Say below where the curves come from; of several runs, under the name of each."""
    lines = [
        part
        for run in runs
        for line in (provenance(run) if len(runs) == 1 else _named_provenance(run))
        for part in textwrap.wrap(line, _FOOTNOTE_WIDTH)
    ]
    if lines:
        figure.supxlabel(
            "\n".join(lines), fontsize=6.5, color=_GREY, x=0.01, ha="left", parse_math=False
        )


def _named_provenance(run: RunCurves) -> list[str]:
    said = "; ".join(provenance(run))
    return [f"{run.label}: {said}"] if said else []


def _draw_legend(figure: Figure, what: _Figure) -> None:
    handles = [
        Line2D([], [], color=colour, label=run.label)
        for run, colour in zip(what.runs, what.colours, strict=True)
    ]
    widest = max(len(run.label) for run in what.runs)
    columns = max(1, 90 // (widest + 8))
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_panel(axes: Axes, panel: Panel, what: _Figure) -> None:
    axes.set_title(panel.title, loc="left")
    shown = [
        (run, colour)
        for run, colour in zip(what.runs, what.colours, strict=True)
        if _has(run, panel)
    ]
    if not shown:
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", color="grey")
        axes.set_xticks([])
        axes.set_yticks([])
        return
    if panel.tag == _LADDER_TAG:
        _draw_ladders(axes, shown)
        return
    for run, colour in shown:
        _draw_curve(axes, panel, run.curves[panel.tag], colour, what.x)
    if KINDS[panel.tag] == "noisy":
        axes.set_ylim(*_noisy_limits([run.curves[panel.tag].values for run, _ in shown]))
    if panel.from_zero:
        axes.set_ylim(bottom=0, top=None if axes.get_ylim()[1] > 0 else 1)
    if panel is _EVALUATION:
        _draw_human(axes, [run for run, _ in shown])
    axes.set_xlim(left=0, right=what.last)
    if what.x == "frames":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_ladders(axes: Axes, shown: Sequence[tuple[RunCurves, str]]) -> None:
    """Draw every environment's rate over its rank."""
    least = 1.0
    for run, colour in shown:
        assert run.ladder is not None, run.label
        rates = run.ladder.rates
        least = min(least, float(rates.min()))
        size = 5.0 if len(rates) <= 64 else 2.0
        axes.plot(rates, marker="o", markersize=size, linewidth=0.8, color=colour)
    if least > 0:  # no logarithm has room for a 0
        axes.set_yscale("log")
    axes.set_xlabel("environment, by rank (0 explores most)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_curve(axes: Axes, panel: Panel, curve: Curve, colour: str, x: XAxis) -> None:
    along, kind = _along(curve, x), KINDS[panel.tag]
    lone = "o" if len(along) == 1 else ""  # a line through one value cannot be seen
    if kind == "evaluation":
        axes.plot(along, curve.values, color=colour, marker="o", markersize=4)
        return
    if kind == "games":
        alpha = float(np.clip(500 / len(along), 0.2, 0.6))
        axes.plot(along, curve.values, ".", color=colour, alpha=alpha, markersize=4, mew=0)
    elif kind == "noisy":
        axes.plot(along, curve.values, color=colour, alpha=0.25, linewidth=0.8)
    axes.plot(along, curve.smooth, color=colour, marker=lone)


def _noisy_limits(columns: list[NDArray[np.float64]]) -> tuple[float, float]:
    """Return y-limits in which the outermost per cent at either end may be cut off."""
    low = min(float(np.percentile(values, 1)) for values in columns)
    high = max(float(np.percentile(values, 99)) for values in columns)
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _draw_human(axes: Axes, runs: Sequence[RunCurves]) -> None:
    """Draw the human scores; what would leave the curve less than half the axis is only told."""
    low, high = axes.get_ylim()
    height = high - low
    for score in sorted({run.human_score for run in runs if run.human_score is not None}):
        said, where, at = f"human {score:,.1f}", axes.get_yaxis_transform(), score
        if low - height <= score <= high + height:
            axes.axhline(score, color=_GREY, linestyle="--", linewidth=1.2)
        elif score > high:
            said, where, at = f"{said}, far above", axes.transAxes, 1.0
        else:
            said, where, at = f"{said}, far below", axes.transAxes, 0.0
        is_at_the_top = score > axes.get_ylim()[1] - 0.1 * height  # no room above for a word
        axes.annotate(
            said,
            (0.01, at),
            xycoords=where,
            xytext=(0, -12 if is_at_the_top else 3),
            textcoords="offset points",
            color=_GREY,
        )
