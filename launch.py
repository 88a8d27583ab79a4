"""The command: dispatch and exit codes.

python launch.py --actors 16                     train
python launch.py eval RUN_DIR | plot RUN_DIR... | bench [STAGE] | presets
"""

from __future__ import annotations

import driver.ray_environment  # noqa: F401  before anything that imports Ray
from driver.interrupts import end_at_once, raise_at_signals
from driver.missing_modules import tell_in_one_line
from driver.view.standard_streams import take_standard_streams
from driver.warning_filters import raise_no_warnings

if __name__ == "__main__":
    import sys

    take_standard_streams()
    raise_no_warnings()
    sys.excepthook = tell_in_one_line
    end_at_once(130)  # the imports below take seconds, and a traceback would come of a Ctrl-C

# isort: split
import sys
from collections.abc import Sequence

from common.presets import PRESETS
from driver.command_line import parse_bench, parse_eval, parse_plot
from driver.evaluate import evaluate
from driver.refusals import refuse
from driver.train import train


def main(arguments: Sequence[str]) -> int:
    """Run one command; return 0 when done, 2 on bad input, 130 when interrupted, else 1."""
    try:
        return run_command(arguments)
    except KeyboardInterrupt:
        return 130


def run_command(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names, `train` where it names none."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("train", [])
    if name == "eval":
        return evaluate(parse_eval(rest))
    if name == "plot":
        return plot(rest)
    if name == "bench":
        return bench(rest)
    if name == "presets":
        return presets()
    if name != "train" and not name.startswith("-"):
        refuse([f"{name}: must be train, eval, plot, bench or presets, or a flag (see --help)"])
    return train(rest if name == "train" else arguments)


def plot(arguments: Sequence[str]) -> int:
    """Draw the runs' PNGs."""
    from driver.plot_command import draw  # matplotlib: a second every other command can spare

    try:
        draw(parse_plot(arguments), print)
    except ValueError as error:
        refuse([str(error)])
    except OSError as error:
        refuse([f"{error.filename2 or error.filename}: cannot be written: {error.strerror}"])
    return 0


def bench(arguments: Sequence[str]) -> int:
    """Measure the stages against their floors."""
    from benchmarks.run import run_benchmarks  # a benchmark machine's needs are not everybody's

    command = parse_bench(arguments)
    if command.json is not None and not (
        command.json.parent.is_dir() and not command.json.is_dir()
    ):
        refuse([f"--json {command.json}: must be a file in a folder that exists"])
    return run_benchmarks(command.stage, command.json, command.seconds)


def presets() -> int:
    """List the presets with their source."""
    for name, preset in PRESETS.items():
        frames = f"{preset.config.total_frames:,} frames"
        print(f"{name:20} {preset.config.env.id}, {frames}: {preset.source}")
    return 0


if __name__ == "__main__":
    sys.excepthook = sys.__excepthook__  # what is raised from here on is a fault
    raise_at_signals()
    exit_code = main(sys.argv[1:])
    end_at_once(exit_code)  # all is done and Ray is gone: an impatient Ctrl-C changes nothing
    sys.exit(exit_code)
