"""One side of a run stands still and the other does not: nothing may grow but what has a bound."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from faulting import last_frame
from launching import STOP_S, Launched, result_of, started

from common.config import Config
from common.config_file import load_file
from driver.view.events import read_scalars
from driver.view.tags import REPLAY_TRANSITIONS

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STOOD_STILL_S = 120.0
# Allocators keep some of what they once had: this much is not growth. A push of this game is some
# 40 kB, and actors make dozens of them a second.
FLAT_BYTES = 48 << 20
FLAGS = (
    *("--preset", "pong-fast", "--total-frames", "100_000_000", "--actors", "2"),
    *("--replay.min-size", "1000", "--replay.capacity", "20_000", "--learner.compile", "off"),
    *("--health.hang-s", "3600", "--evaluator.no-enabled"),
)


@contextlib.contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """Stop processes for the time of the block, by SIGSTOP."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def memory_bytes(launched: Launched) -> int:
    """Return what the run's processes hold, shared memory (Ray's object store) included once.

    Without pages of files, such as libraries: how much of those counts as ours depends on who else
    on this machine has them open.
    """
    total = 0
    for process in launched.processes():
        with contextlib.suppress(OSError):  # it has just ended
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1]) << 10
    assert total > 100 << 20, "this kernel does not tell"
    return total


def learned_frame(run: Path) -> float:
    """Return how many frames the newest scalars of the learner speak of, 0 before the first."""
    return last_frame(run, "learner/td_loss")


def accepted_frames(run: Path, since_s: float) -> float:
    """Return by how much frames grew since the first scalars after a time.

    Args:
      run: its folder.
      since_s: seconds since the epoch, as `time.time()` gives them.
    """
    series = read_scalars(run)[REPLAY_TRANSITIONS]
    frames = series.frames[series.wall_s >= since_s]
    assert len(frames) > 1, "no scalars while a role stood still"
    return float(frames[-1] - frames[0])


def most_frames_without_a_learner(run: Path) -> float:
    """Return by how many frames a run whose learner stands still may grow, by its own config.

    The rate limiter's error may be anywhere from -band to band when the last batch is sampled, and
    inserts end at band. A push of every actor is allowed on top.
    """
    config = load_file(Config(), run / "config.yaml")
    assert config.samples_per_insert is not None
    transitions = 2 * config.band / config.samples_per_insert
    transitions += config.actor.count * config.transitions_per_push
    return transitions * config.env.action_repeat_frames


@pytest.mark.timeout(900)
@pytest.mark.parametrize("role", ["LearnerProcess", "ReplayProcess", "ActorProcess"])
def test_memory_is_flat_while_a_role_stands_still_and_the_run_goes_on_after(
    tmp_path: Path, role: str
) -> None:
    run = tmp_path / "run"
    with started(*FLAGS, "--run-dir", str(run)) as launched:
        # Until replay is full: from here on nothing has a reason to grow.
        launched.wait_until(lambda: learned_frame(run) > 4 * 25_000, "full replay", 600.0)
        with stopped(launched.workers(role)):
            stopped_s = time.time()
            time.sleep(15.0)  # queues fill up to their bounds
            before = memory_bytes(launched)
            time.sleep(STOOD_STILL_S)
            after = memory_bytes(launched)
            assert launched.is_running, launched.said
            if role == "LearnerProcess":  # the actors run, and only the limiter holds them
                grown = accepted_frames(run, stopped_s)
                assert grown <= most_frames_without_a_learner(run), launched.said
        assert after - before < FLAT_BYTES, f"{before / 1e6:.0f} MB -> {after / 1e6:.0f} MB"
        frames = learned_frame(run)
        launched.wait_until(lambda: learned_frame(run) > frames + 4_000, "progress", 120.0)
        assert "died" not in launched.said
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said


@pytest.mark.timeout(900)
def test_32_actors_on_few_cores_make_progress_and_end_in_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--preset", "cartpole", "--total-frames", "100_000_000", "--actors", "32")
    with started(*flags, "--run-dir", str(run)) as launched:
        launched.wait_for("every actor has pushed", 600.0)
        frames = learned_frame(run)
        launched.wait_until(lambda: learned_frame(run) > frames + 5_000, "progress", 300.0)
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said
    assert result_of(run)["learner_steps"] > 0
