"""Whole runs of launch.py: how long until many actors play, and what a run reaches end to end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.rows import Row, row
from common.machine import machine
from driver.view.events import read_scalars

_LAUNCH = Path(__file__).resolve().parent.parent / "launch.py"
_ACTORS = 16
_MOST_STARTUP_S = 90.0
_PIPELINE_SETTLE_S = 30.0
_PATIENCE_S = 600.0


def run_startup() -> list[Row]:
    """Return the seconds from the command to the first push of the last of 16 actors."""
    with _run("--actors", str(_ACTORS), "--total-frames", "100000000") as (process, folder):
        started_s = time.monotonic()
        said = _wait_for(process, folder, "every actor has pushed")
        seconds = time.monotonic() - started_s
    return [
        row(
            "startup",
            seconds,
            "s",
            _MOST_STARTUP_S,
            f"most allowed on 2 cores; here {machine()['cores']}",
            {"actors": _ACTORS, "envs_per_actor": 8, "preset": "apex", "said": said.strip()},
        )
    ]


def run_pipeline(seconds: float, learner_samples_per_s: float) -> list[Row]:
    """Return what a whole run trains on per second, against the learner alone (0: not measured)."""
    arguments = (
        "--preset",
        "pong-fast",
        # The learner's rows are of this network and batch.
        "--agent.network",
        "nature_cnn",
        "--agent.dueling",
        "--learner.batch-size",
        "128",
        "--replay.samples-per-insert",
        "8",
        "--replay.min-size",
        "2000",
        "--total-frames",
        "100000000",
    )
    with _run(*arguments) as (process, folder):
        _wait_for(process, folder, "every actor has pushed")
        deadline_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline_s:  # torch.compile takes its time
            steps = read_scalars(folder).get("throughput/learner_steps_per_s")
            if steps is not None and steps.values[-1] > 0:
                break
            time.sleep(1.0)
        time.sleep(_PIPELINE_SETTLE_S + seconds)
        scalars = read_scalars(folder)
        count = max(1, int(seconds / 5.0))
        sampled = float(np.median(scalars["throughput/transitions_sampled_per_s"].values[-count:]))
        frames = float(np.median(scalars["throughput/env_frames_per_s"].values[-count:]))
    return [
        row(
            "pipeline",
            sampled,
            "samples/s",
            learner_samples_per_s or float("nan"),
            "the learner fed by replay alone, batch 128, same run",
            {
                "preset": "pong-fast, but nature_cnn, dueling, batch 128",
                "actors": 2,
                "env_frames_per_s": round(frames, 1),
                "samples_per_insert": 8,
            },
        )
    ]


@contextlib.contextmanager
def _run(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "run"
        process = subprocess.Popen(
            [sys.executable, str(_LAUNCH), *arguments, "--run-dir", str(folder)],
            stdout=subprocess.DEVNULL,
        )
        try:
            yield process, folder
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=120)


def _wait_for(process: subprocess.Popen[bytes], folder: Path, text: str) -> str:
    """Return the line of the run's log that holds `text`, once it is there."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s and process.poll() is None:
        if (folder / "log.txt").exists():
            for line in (folder / "log.txt").read_text().splitlines():
                if text in line:
                    return line
        time.sleep(0.1)
    raise RuntimeError(f"{text!r} was not said in {_PATIENCE_S:.0f} s, or the run ended before")
