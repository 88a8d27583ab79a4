"""`launch.py plot`: from folders of runs, or saved curves, to PNGs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from driver.command_line import PlotCommand
from driver.run_folder import RunFolder
from driver.view.curve_sources import load_curves
from driver.view.plots import plot_runs
from driver.view.provenance import provenance
from driver.view.saved_curves import save_curves


def draw(command: PlotCommand, say: Callable[[str], None]) -> None:
    """Draw what the command asks for, and say which files there are and where the curves are from.

    Raises:
      ValueError: something is no run, or has no values yet, or not what it takes to draw it so; one
        line says which.
      OSError: a file cannot be written.
    """
    for path in command.sources:
        if not path.is_file():
            RunFolder.of_run(path)
    runs = load_curves(command.sources, command.average)
    for path, run in zip(command.sources, runs, strict=True):
        if command.x == "games" and not run.has_games:
            raise ValueError(
                f"{path}: must be drawn by frames or minutes, since it does not say how many games "
                "had ended: an older version saved it"
            )
    files = plot_runs(runs, command.out or _beside(command.sources[0]), command.x)
    if command.save_scalars is not None:
        save_curves(runs[0], command.save_scalars)
        files.append(command.save_scalars)
    for run in runs:
        for line in provenance(run):
            say(f"{run.label}: {line}")
    for file in files:
        say(str(file))


def _beside(source: Path) -> Path:
    """Return where to draw unless told: `plots/` of a run, `FILE-plots/` beside FILE.json."""
    return source.with_name(f"{source.stem}-plots") if source.is_file() else source / "plots"
