"""Curves in a small JSON file that documents keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

from common.config import LADDER_EXPONENT
from common.files import follow, read_json, write_whole
from common.schema import SHARE, counted, fit, shown
from driver.about import About
from driver.view.averages import average_returns, is_average
from driver.view.curves import KINDS, Curve, Ladder, RunCurves
from driver.view.tags import TRAIN_EPISODE_RETURN

# Values of a tag that a saved file keeps, spread evenly over them; a plot is 900 pixels wide.
SAVED_VALUES = 300

_FORMAT = "troop-scalars-1"
_MOST_BYTES = 1 << 26


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


def read_saved_curves(path: Path, average: float) -> RunCurves:
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
