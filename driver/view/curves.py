"""The curves of a run: read from its folder, or from the small JSON that documents keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from common.config import LADDER_EXPONENT, Config
from common.config_file import ConfigError, overlay, read_file
from common.files import UnreadableFile, follow, read_json, write_whole
from common.schedules import epsilon_ladder
from common.schema import SHARE, counted, fit, shown
from driver.about import About
from driver.run_folder import RunFolder
from driver.view.events import Series, Session, event_files, read_events, running_seconds
from driver.view.scores import RANDOM_AND_HUMAN
from driver.view.tags import (
    ACTORS_EPSILON,
    ACTORS_POLICY_LAG_LEARNER_STEPS,
    ENV_FRAMES_PER_S,
    EVAL_EPISODE_RETURN,
    LEARNER_Q_MEAN,
    LEARNER_STEPS_PER_S,
    LEARNER_TD_LOSS,
    REPLAY_SAMPLES_PER_INSERT,
    RETURN_GAMES,
    TRAIN_EPISODE_RETURN,
)

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
"""The tags that are drawn, and how: "games" with the average that is asked for (see
average_returns); "evaluation" as marked points; "noisy" with a moving average over a fiftieth of
the values; "plain" as they are."""

# Values of a tag that a saved file keeps, spread evenly over them; a plot is 900 pixels wide.
SAVED_VALUES = 300

# A century: no run takes longer, whatever its events say.
_MOST_SECONDS = 3.2e9
_FORMAT = "troop-scalars-1"
_MOST_BYTES = 1 << 26
# What a saved file repeats of run.json: what it takes to judge or repeat the run.
_ABOUT = (
    *("game", "command", "started", "git_commit", "git_changed", "versions", "machine"),
    "resumed",
)


class _Ladder(TypedDict):
    environments: Annotated[int, counted(10**7)]
    epsilon: Annotated[float, SHARE]
    alpha: Annotated[float, LADDER_EXPONENT]


class _AlwaysColumns(TypedDict):
    frames: list[float]
    seconds: list[float]
    values: list[float]


class _Columns(_AlwaysColumns, total=False):
    games: list[float]
    smooth: list[float]


class _OlderSaved(TypedDict):
    format: str
    label: str
    about: About
    ladder: _Ladder | None
    scalars: dict[str, _Columns]


class _Saved(_OlderSaved, total=False):
    """A file that `save_curves` wrote."""

    average: float


class Curve(NamedTuple):
    """One tag's finite values.

    Fields:
      frames: float64[n], strictly increasing.
      seconds: float64[n], how long the run had run.
      games: float64[n], how many training games had ended by that frame; None where an older file
        does not say.
      values: float64[n].
      smooth: float64[n], their moving average, taken over every value that the run has.
    """

    frames: NDArray[np.float64]
    seconds: NDArray[np.float64]
    games: NDArray[np.float64] | None
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
      average: which average `smooth` of the training returns is (see average_returns).
      curves: tag -> curve, of the tags in KINDS that have values.
    """

    label: str
    about: Mapping[str, Any]
    ladder: Ladder | None
    average: float
    curves: Mapping[str, Curve]

    @property
    def has_games(self) -> bool:
        """Whether every curve can be drawn over training games."""
        return all(curve.games is not None for curve in self.curves.values())

    @property
    def human_score(self) -> float | None:
        """The human score of its game, None where nobody published one."""
        game = self.about.get("game")
        pair = RANDOM_AND_HUMAN.get(game) if isinstance(game, str) else None
        return None if pair is None else pair[1]


def load_curves(sources: Sequence[Path], average: float = RETURN_GAMES) -> list[RunCurves]:
    """Return the runs' curves, each under a label of its own.

    Args:
      sources: run folders, and files that `save_curves` wrote.
      average: of the training returns (see average_returns).

    Raises:
      ValueError: one of them is neither, or has no values yet, or is a file of another average that
        does not hold every game; the text names it.
    """
    if not sources:
        raise ValueError("Expect at least one run folder, actually: none")
    runs = [
        _of_file(path, average) if path.is_file() else _of_folder(path, average) for path in sources
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


class Past(NamedTuple):
    """What a run's events tell of its earlier starts.

    Fields:
      returns: raw returns of the last RETURN_GAMES training games.
      seconds: how long it has run, time that a crash made worthless included.
    """

    returns: Sequence[float]
    seconds: float


NO_PAST = Past(returns=(), seconds=0.0)


def read_past(run_dir: Path, frames: int) -> Past:
    """Return what a run that goes on from `frames` has behind it."""
    scalars, sessions = read_events(run_dir)
    # A clock may have been set back.
    spans_s = [session.end_s - session.start_s for session in sessions]
    seconds = min(sum(span_s for span_s in spans_s if span_s > 0.0), _MOST_SECONDS)
    series = scalars.get(TRAIN_EPISODE_RETURN)
    if series is None:
        return Past((), seconds)
    played = series.values[(series.frames <= frames) & np.isfinite(series.values)]
    return Past(tuple(map(float, played[-RETURN_GAMES:])), seconds)


def is_average(average: float) -> bool:
    """Return whether there is such an average of training returns (see average_returns)."""
    return 0 < average < 1 or (average >= 1 and float(average).is_integer())


def average_returns(values: NDArray[np.float64], average: float) -> NDArray[np.float64]:
    """Return what the line through training returns is.

    Args:
      values: float64[n], the returns of all games.
      average: A, whole and >= 1: at each game the mean of the last A games; 0 < A < 1: exponential
        smoothing by the factor A, y_1 = x_1 and y_t = A * y_(t-1) + (1 - A) * x_t.

    Returns:
      float64[n].
    """
    if not is_average(average):
        raise ValueError(
            f"Expect `average` whole and >= 1, or between 0 and 1, actually: {average}"
        )
    if average >= 1:
        return moving_average(values, int(average))
    smoothed = accumulate(values.tolist(), lambda y, x: average * y + (1 - average) * x)
    return np.array(list(smoothed), dtype=np.float64)


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
    start = np.maximum(end - min(window, len(values)), 0)
    return np.asarray((sums[end] - sums[start]) / (end - start), dtype=np.float64)


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


# --- saved curves ------------------------------------------------------------------------------


def save_curves(run: RunCurves, path: Path) -> None:
    """Write a run's curves as JSON, thinned to SAVED_VALUES values per tag; its folder is made.

    The same curves make the same bytes. Moving averages are saved beside the values, since thinned
    values no longer have theirs; `average` says which one that of the training returns is.
    """
    head = {
        "format": _FORMAT,
        "label": run.label,
        "about": run.about,
        "ladder": None if run.ladder is None else run.ladder._asdict(),
        "average": int(run.average) if run.average >= 1 else run.average,
        "units": "frames of the emulator; seconds the run had run; training games ended by then",
    }
    # A line for each column: readable, and a changed run is a short difference.
    tags = []
    for tag, curve in run.curves.items():
        columns = [f"      {json.dumps(name)}: {json.dumps(c)}" for name, c in _columns(curve, tag)]
        tags.append(f"    {json.dumps(tag)}: {{\n" + ",\n".join(columns) + "\n    }")
    text = json.dumps(head, indent=2).removesuffix("\n}")
    text += ',\n  "scalars": {\n' + ",\n".join(tags) + "\n  }\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, [text.encode()])


def _columns(curve: Curve, tag: str) -> list[tuple[str, list[float]]]:
    most = len(curve.frames)
    kept = np.unique(np.linspace(0, most - 1, min(most, SAVED_VALUES)).round().astype(np.int64))
    columns: list[tuple[str, list[float]]] = [
        ("frames", [int(frames) for frames in curve.frames[kept]]),
        ("seconds", [round(float(seconds), 1) for seconds in curve.seconds[kept]]),
    ]
    if curve.games is not None:
        columns.append(("games", [int(games) for games in curve.games[kept]]))
    columns.append(("values", [float(f"{value:.6g}") for value in curve.values[kept]]))
    if KINDS[tag] in ("games", "noisy"):
        columns.append(("smooth", [float(f"{value:.6g}") for value in curve.smooth[kept]]))
    return columns


def _of_file(path: Path, average: float) -> RunCurves:
    """Return what `save_curves` wrote, its training returns averaged as asked for."""
    try:
        # A link of the user's own is followed.
        content = fit(read_json(follow(path), _MOST_BYTES), _Saved)
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {shown(content['format'])}")
        scalars, ladder = content["scalars"], content["ladder"]
        curves = {tag: _of_columns(scalars[tag]) for tag in KINDS if tag in scalars}
        run = RunCurves(
            label=shown(content["label"]),
            about=content["about"],
            ladder=None if ladder is None else Ladder(**ladder),
            average=content.get("average", 100),  # of older files, which do not say
            curves=curves,
        )
        if not is_average(run.average):
            raise ValueError(f"its average is {run.average}")
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: is no file of `plot --save-scalars`, nor a run folder: {reason}"
        ) from error
    if not curves:
        raise ValueError(f"{path}: has no values to plot")
    return run if run.average == average else _averaged_anew(run, average, path)


def _of_columns(columns: Mapping[str, Any]) -> Curve:
    frames, seconds, values = (
        np.array(columns[name], dtype=np.float64) for name in ("frames", "seconds", "values")
    )
    games, smooth = (
        np.array(columns[name], dtype=np.float64) if name in columns else None
        for name in ("games", "smooth")
    )
    curve = Curve(frames, seconds, games, values, values if smooth is None else smooth)
    lengths = {len(column) for column in curve if column is not None}
    if not len(frames) or len(lengths) != 1:
        raise ValueError("its columns must be of one length >= 1")
    return curve


def _averaged_anew(run: RunCurves, average: float, path: Path) -> RunCurves:
    """Return a saved run with another average, which only all of its games together have."""
    curves = dict(run.curves)
    if (curve := curves.get(TRAIN_EPISODE_RETURN)) is not None:
        every_game = np.arange(1, len(curve.values) + 1)
        if curve.games is None or not np.array_equal(curve.games, every_game):
            raise ValueError(
                f"{path}: its average must stay `--average {run.average:g}`, since the file does "
                "not hold every game of the run"
            )
        smooth = average_returns(curve.values, average)
        curves[TRAIN_EPISODE_RETURN] = curve._replace(smooth=smooth)
    return run._replace(average=average, curves=curves)
