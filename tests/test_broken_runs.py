"""Runs that end by a fault of their own or of what carries them, and what goes on after."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from faulting import FLAGS, ROLES, Job, checkpoints, last_frame, snapshots
from launching import ON_THE_PATH, STOP_S, launch, result_of, started
from unhurried import GAME

from launch import main
from learner.checkpoint import CheckpointFolder
from learner.payload import expect_resumable, load_playable

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_a_start_that_fails_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    run = tmp_path / "run"
    new = ("--preset", "cartpole", "--total-frames", "1100", "--run-dir", str(run))
    done = launch(*new, environment={"RAY_AUTH_MODE": "disabled"})
    assert done.returncode != 0 and "RAY_AUTH_MODE" in done.stdout + done.stderr
    assert "--resume" not in done.stdout
    assert not (run / "run.json").exists()
    assert main([*new, "--serial", "--evaluator.no-enabled"]) == 0


# --- the driver, and Ray itself -------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_driver_leaves_nothing_and_resume_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(*FLAGS, "--run-dir", str(run), environment=ON_THE_PATH) as launched:
        launched.wait_until(lambda: snapshots(run) >= 2 and checkpoints(run) >= 1, "checkpoint")
        launched.kill()
        launched.wait_until_gone(30.0)
        # Ray's own agents, which hold no port and no memory to speak of, wait a minute for news.
        assert [p for role in ROLES.values() for p in launched.workers(role)] == []
        assert launched.wait_until_gone(90.0) == []
    assert result_of(run)["end_reason"] == "running"
    expect_resume(run)


@pytest.mark.parametrize(
    "daemons",
    [
        pytest.param(["raylet"], id="raylet"),
        pytest.param(["gcs_server"], id="gcs_server", marks=pytest.mark.slow),
        pytest.param(["raylet", "gcs_server"], id="both", marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_ray_dies_ends_1_and_resume_goes_on(tmp_path: Path, daemons: list[str]) -> None:
    run = tmp_path / "run"
    with started(*FLAGS, "--run-dir", str(run), environment=ON_THE_PATH) as launched:
        launched.wait_until(lambda: snapshots(run) >= 2 and checkpoints(run) >= 1, "checkpoint")
        victims = [process for process in launched.processes() if process.name() in daemons]
        assert sorted(victim.name() for victim in victims) == sorted(daemons)
        for victim in victims:
            victim.kill()
        done = launched.wait(120.0)
        assert done.returncode == 1, launched.said
        reason = rf"Ray died: its ({'|'.join(daemons)}) is gone"
        assert re.search(rf"the run cannot go on: {reason}", done.stdout), done
        assert re.match(reason, result_of(run)["end_reason"])
        assert "Traceback" not in launched.said
        launched.wait_until_gone(90.0)
    expect_resume(run)


def expect_resume(run: Path) -> None:
    """Resume a run, see it learn from what it held, and end it."""
    newest = CheckpointFolder(run / "checkpoints", 1).newest_sound(expect_resumable)
    assert newest is not None
    before = load_playable(newest.path)["counters"]
    with started("--resume", str(run), "--env", GAME, environment=ON_THE_PATH) as launched:
        launched.wait_for("transitions of its snapshot")
        launched.wait_until(
            lambda: last_frame(run, "learner/td_loss") > before["agent_steps"] + 500,
            "learning beyond the checkpoint",
        )
        launched.interrupt(signal.SIGTERM)
        assert launched.wait(STOP_S).returncode == 130, launched.said
    after = result_of(run)
    assert after["frames"] > before["agent_steps"]
    assert after["learner_steps"] > before["learner_step"]


# --- numbers, disks, and what does not get better -------------------------------------------------


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_numbers_that_are_not_finite_end_the_run_and_name_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    serial = ("--serial", "--total-frames", "1100", "--evaluator.no-enabled")
    assert main([*FLAGS[:2], *serial, "--run-dir", str(run)]) == 0
    newest = CheckpointFolder(run / "checkpoints", 1).newest_sound(expect_resumable)
    assert newest is not None
    more = ("--total-frames", "100_000_000", "--learner.learning-rate", "1e30")
    done = launch("--resume", str(run), *more)
    assert done.returncode == 1
    assert "the learner refused its own numbers: " in done.stdout
    assert f"the last good checkpoint is {newest.path}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert CheckpointFolder(run / "checkpoints", 1).newest() == newest.path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_actor_that_dies_at_once_ten_times_ends_the_run_with_that_reason(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with started(*FLAGS[:4], "--actors", "1", "--run-dir", str(run)) as launched:
        killed: set[int] = set()
        deadline_s = time.monotonic() + 600.0
        while launched.is_running and time.monotonic() < deadline_s:
            for victim in launched.workers("ActorProcess"):
                if victim.pid not in killed:
                    killed.add(victim.pid)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        victim.kill()
            time.sleep(0.2)
        done = launched.wait(60.0)
    assert done.returncode == 1
    assert len(killed) == 10
    assert "actor 0 died 10 times in a row" in result_of(run)["end_reason"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_that_rays_memory_monitor_kills_is_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    memory = psutil.virtual_memory()
    # The run itself takes some 3 GB; the monitor counts what the whole machine uses.
    threshold = memory.percent / 100.0 + 5e9 / memory.total
    monitor = {
        "RAY_memory_usage_threshold": f"{threshold:.3f}",
        "RAY_memory_monitor_refresh_ms": "250",
    }
    with started(*FLAGS, "--run-dir", str(run), environment=monitor | ON_THE_PATH) as launched:
        job = Job(launched, run)
        launched.wait_until(lambda: snapshots(run) >= 2 and checkpoints(run) >= 1, "checkpoint")
        hog = np.ones(int(6e9), np.uint8)
        launched.wait_until(lambda: job.said(r"\d+ died, .*") > 0, "kill by the monitor", 60.0)
        del hog
        assert re.search(r"\d+ died, .*(memory|OOM)", launched.said), launched.said
        launched.wait_until(lambda: job.said(r"\d+ is back after") > 0, "comeback", 120.0)
        job.expect_progress()
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said
