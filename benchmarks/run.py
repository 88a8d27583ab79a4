"""`launch.py bench`: the chosen stages one after the other, both sides shown and saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import actor, learner, replay, startup
from benchmarks.rows import Row, save, show


def run_benchmarks(stage: str, json: Path | None, seconds: float) -> int:
    """Measure, print and save; return the exit code."""
    rows: list[Row] = []

    def pipeline() -> list[Row]:
        alone = [r.value for r in rows if r.stage == "learner" and r.settings["batch"] == 128]
        return startup.run_pipeline(seconds, alone[0] if alone else 0.0)

    stages: dict[str, Callable[[], list[Row]]] = {
        "actor": lambda: actor.run(seconds),
        "replay": lambda: replay.run(seconds),
        "learner": lambda: learner.run(seconds),
        "pipeline": pipeline,
        "startup": startup.run_startup,
    }
    for name, measure in stages.items():
        if stage in ("all", name):
            print(f"{name} ...", flush=True)
            rows += measure()
            if json is not None:
                save(rows, json)  # what is measured is kept, whatever comes after
    show(rows)
    return 0
