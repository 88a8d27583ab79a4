"""What a benchmark says: one row per stage, both sides and their ratio."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.files import write_whole
from common.machine import machine


class Row(NamedTuple):
    """One measured stage.

    Fields:
      stage: its name, as `launch.py bench --json` writes it.
      value: what we measured of ourselves.
      unit: of value and reference.
      reference: what it is held against, measured in the same run unless `reference_what` says
        otherwise.
      reference_what: one phrase.
      ratio: value / reference.
      settings: what to set to measure the same again.
    """

    stage: str
    value: float
    unit: str
    reference: float
    reference_what: str
    ratio: float
    settings: dict[str, Any]


def row(
    stage: str,
    value: float,
    unit: str,
    reference: float,
    reference_what: str,
    settings: dict[str, Any],
    *,
    ratio: float | None = None,
) -> Row:
    """Return a row; the ratio is value / reference unless a paired one was measured."""
    ratio = value / reference if ratio is None else ratio
    return Row(stage, value, unit, reference, reference_what, ratio, settings)


def alternate(
    rounds: int, **sides: Callable[[], float]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Measure all sides in turn, A B C A B C ..., and return (median of each, all figures of each).

    On a noisy machine only figures taken side by side may be compared.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            figures[name].append(measure())
    return {name: statistics.median(values) for name, values in figures.items()}, figures


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    facts = machine()
    print(f"\n{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB")
    for r in rows:
        print(
            f"{r.stage:24} {r.value:12,.1f} {r.unit:22} ratio {r.ratio:6.2f} to "
            f"{r.reference:12,.1f} ({r.reference_what})"
        )


def save(rows: Sequence[Row], path: Path) -> None:
    """Write rows and machine as JSON."""
    content = {"machine": machine(), "rows": [r._asdict() for r in rows]}
    write_whole(path, [(json.dumps(content, indent=2) + "\n").encode()])
