"""A running job that is broken on purpose: real processes, killed or stopped by real signals.

The first tests share one job, since a start costs more than a fault.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
from launching import STOP_S, Launched, result_of, started

from common.tensorboard import read_scalars
from learner.assembly import load_checkpoint
from learner.checkpoint import CheckpointFolder

pytestmark = pytest.mark.ray

# What issue and README promise of an actor; the others take the time that their imports take.
ACTOR_BACK_S = 30.0
HANG_S = 15.0
ROLES = {
    "actor": "ActorProcess",
    "evaluator": "EvaluatorProcess",
    "learner": "LearnerProcess",
    "replay": "ReplayProcess",
    "weight_store": "WeightStoreProcess",
}
FLAGS = (
    *("--preset", "cartpole", "--total-frames", "100_000_000", "--actors", "2"),
    *("--replay.shards", "2", "--checkpoint.every-minutes", "0.05", "--health.hang-s", str(HANG_S)),
    *("--evaluator.every-minutes", "0.05", "--evaluator.episodes", "1"),
)


class Job(NamedTuple):
    """A run that goes on until somebody ends it.

    Fields:
      launched: its processes.
      run: its folder.
    """

    launched: Launched
    run: Path

    def victims(self, role: str) -> list[psutil.Process]:
        """Return a role's live processes."""
        return self.launched.workers(ROLES[role])

    def said(self, pattern: str) -> int:
        """Return how often the driver said a line like this."""
        return len(re.findall(pattern, self.launched.said))

    def wait_until_more(self, count: Callable[[], float], what: str, timeout_s: float) -> None:
        """Wait until a count has grown."""
        before = count()
        self.launched.wait_until(lambda: count() > before, what, timeout_s)

    def comebacks(self, role: str) -> int:
        """Return how often the driver said that a process of a role is back."""
        return self.said(rf"{role} \d+ is back after")

    def wait_for_comeback(self, role: str, before: int, timeout_s: float, number: int = 1) -> None:
        """Wait until the driver has said so `number` times more than before."""
        self.wait_until(
            lambda: self.comebacks(role) >= before + number, f"comeback of {role}", timeout_s
        )

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait until something holds."""
        self.launched.wait_until(holds, what, timeout_s)

    def last(self, tag: str) -> float:
        """Return a scalar's newest value, 0 before the first."""
        scalars = read_scalars(self.run)
        return float(scalars[tag].values[-1]) if tag in scalars else 0.0

    def frames(self) -> float:
        """Return how many frames the newest scalars speak of."""
        return last_frame(self.run, "replay/transitions")

    def expect_progress(self, timeout_s: float = 60.0) -> None:
        """See acting and learning go on."""
        self.wait_until_more(self.frames, "more frames", timeout_s)
        self.wait_until_more(lambda: last_frame(self.run, "learner/td_loss"), "learning", timeout_s)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Return a job that has learned, evaluated and saved."""
    run = tmp_path_factory.mktemp("faults") / "run"
    with started(*FLAGS, "--run-dir", str(run)) as launched:
        job = Job(launched, run)
        launched.wait_until(lambda: "eval/episode_return" in read_scalars(run), "evaluation")
        launched.wait_until(lambda: snapshots(run) >= 2, "snapshots")
        launched.wait_until(lambda: checkpoints(run) >= 1, "checkpoint")
        yield job
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said


def last_frame(run: Path, tag: str) -> float:
    """Return the frames of a scalar's newest value, 0 before the first."""
    time.sleep(0.5)  # reading the events costs more than the run needs between two of them
    scalars = read_scalars(run)
    return float(scalars[tag].frames[-1]) if tag in scalars else 0.0


def snapshots(run: Path) -> int:
    """Return how many shards have a snapshot."""
    return len({path.parent for path in run.glob("checkpoints/replay_*/*.manifest")})


def checkpoint_names(run: Path) -> set[str]:
    """Return the names of the checkpoints."""
    return {path.name for path in run.glob("checkpoints/checkpoint_*.pt")}


def checkpoints(run: Path) -> int:
    """Return how many checkpoints there are."""
    return len(checkpoint_names(run))


@pytest.mark.parametrize(
    ("role", "back_s"),
    [
        ("actor", ACTOR_BACK_S),
        ("evaluator", 90.0),
        ("replay", 60.0),
        ("weight_store", 60.0),
        ("learner", 90.0),
    ],
)
def test_a_killed_process_is_replaced_and_the_run_goes_on(
    job: Job, role: str, back_s: float
) -> None:
    restarts = job.last(f"health/{role}_restarts")
    before = job.comebacks(role)
    job.victims(role)[0].kill()
    job.wait_for_comeback(role, before, back_s)
    job.launched.wait_until(
        lambda: job.last(f"health/{role}_restarts") == restarts + 1, "count of the restart"
    )
    job.expect_progress()


def test_all_actors_killed_at_once_come_back(job: Job) -> None:
    before = job.comebacks("actor")
    for victim in job.victims("actor"):
        victim.kill()
    job.wait_for_comeback("actor", before, ACTOR_BACK_S, number=2)
    job.expect_progress()


@pytest.mark.parametrize("role", ["actor", "replay", "learner"])
def test_a_stopped_process_is_noticed_killed_and_replaced(job: Job, role: str) -> None:
    hung = job.said(rf"{role} \d+ died, .* it hung: silent for")
    before = job.comebacks(role)
    victim = job.victims(role)[0]
    victim.suspend()
    job.launched.wait_until(
        lambda: job.said(rf"{role} \d+ died, .* it hung: silent for") > hung,
        f"word of the hung {role}",
        HANG_S + 10.0,
    )
    job.wait_for_comeback(role, before, 90.0)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.wait(timeout=5.0)
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    job.expect_progress()


def test_a_learner_and_a_shard_killed_together_come_back(job: Job) -> None:
    roles = ("replay", "learner")
    before = [job.comebacks(role) for role in roles]
    for role in roles:
        job.victims(role)[0].kill()
    for role, comebacks in zip(roles, before, strict=True):
        job.wait_for_comeback(role, comebacks, 120.0)
    job.expect_progress()


def test_what_a_killed_shard_lost_is_counted_and_the_sums_agree(job: Job) -> None:
    lost = job.last("replay/lost_transitions")
    for _ in range(3):  # one that is killed right after its snapshot loses nothing
        before = job.comebacks("replay")
        job.victims("replay")[0].kill()
        job.wait_for_comeback("replay", before, 60.0)
        job.expect_progress()
        if job.last("replay/lost_transitions") > lost:
            break
    assert job.last("replay/lost_transitions") > lost
    scalars = read_scalars(job.run)
    accepted = scalars["replay/transitions"].frames[-1]  # CartPole: a frame is an agent step
    held = scalars["replay/transitions"].values[-1]
    evicted = scalars["replay/evicted_transitions"].values[-1]
    assert accepted == held + evicted + scalars["replay/lost_transitions"].values[-1]


def test_after_all_that_the_learner_still_counts_the_frames_that_the_driver_counts(
    job: Job,
) -> None:
    before = checkpoint_names(job.run)
    job.wait_until(lambda: bool(checkpoint_names(job.run) - before), "checkpoint", 60.0)
    driver = job.frames()
    newest = CheckpointFolder(job.run / "checkpoints", 1).newest_sound()
    assert newest is not None
    learner = load_checkpoint(newest.path)["counters"]["agent_steps"]
    # Some seconds lie between the two, and each death may have cost the learner a second's worth.
    assert abs(driver - learner) < 0.2 * driver, (driver, learner)


# --- the driver, and Ray itself -------------------------------------------------------------------


def test_a_killed_driver_leaves_nothing_and_resume_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(*FLAGS, "--run-dir", str(run)) as launched:
        launched.wait_until(lambda: snapshots(run) >= 2 and checkpoints(run) >= 1, "checkpoint")
        launched.kill()
        launched.wait_until_gone(30.0)
        # Ray's own agents, which hold no port and no memory to speak of, wait a minute for news.
        assert [p for role in ROLES.values() for p in launched.workers(role)] == []
        assert launched.wait_until_gone(90.0) == []
    expect_resume(run)


@pytest.mark.parametrize("daemon", ["raylet", pytest.param("gcs_server", marks=pytest.mark.slow)])
def test_a_run_whose_ray_dies_ends_1_and_resume_goes_on(tmp_path: Path, daemon: str) -> None:
    run = tmp_path / "run"
    with started(*FLAGS, "--run-dir", str(run)) as launched:
        launched.wait_until(lambda: snapshots(run) >= 2 and checkpoints(run) >= 1, "checkpoint")
        (victim,) = [p for p in launched.processes() if p.name() == daemon]
        victim.kill()
        done = launched.wait(120.0)
        assert done.returncode == 1, launched.said
        assert "Traceback" not in launched.said
        launched.wait_until_gone(90.0)
    expect_resume(run)


def expect_resume(run: Path) -> None:
    """Resume a run, see it learn from what it held, and end it."""
    newest = CheckpointFolder(run / "checkpoints", 1).newest_sound()
    assert newest is not None
    before = load_checkpoint(newest.path)["counters"]
    with started("--resume", str(run)) as launched:
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


def test_numbers_that_are_not_finite_end_the_run_and_name_the_last_good_checkpoint(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    first = (*FLAGS, "--run-dir", str(run))
    with started(*first) as launched:
        launched.wait_until(lambda: checkpoints(run) >= 1, "checkpoint")
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said
    newest = CheckpointFolder(run / "checkpoints", 1).newest_sound()
    assert newest is not None
    with started("--resume", str(run), "--learner.learning-rate", "1e30") as launched:
        done = launched.wait()
    assert done.returncode == 1
    assert "the learner refused its own numbers: " in done.stdout
    assert f"the last good checkpoint is {newest.path}" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert CheckpointFolder(run / "checkpoints", 1).newest() == newest.path


def test_training_goes_on_when_the_checkpoint_folder_is_removed_or_cannot_be_written(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    with started(*FLAGS, "--run-dir", str(run)) as launched:
        launched.wait_until(lambda: snapshots(run) >= 2 and checkpoints(run) >= 1, "checkpoint")
        shutil.rmtree(run / "checkpoints")
        launched.wait_until(lambda: snapshots(run) >= 2 and checkpoints(run) >= 1, "another one")
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").write_text("in the way")
        launched.wait_for("learner 0 could not write its checkpoint: ")
        launched.wait_for("replay 0 could not write its snapshot: ")
        frames = last_frame(run, "learner/td_loss")
        launched.wait_until(lambda: last_frame(run, "learner/td_loss") > frames, "learning")
        (run / "checkpoints").unlink()
        launched.wait_until(lambda: snapshots(run) >= 2 and checkpoints(run) >= 1, "a last one")
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said
    assert "Traceback" not in (run / "log.txt").read_text()


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
    with started(*FLAGS, "--run-dir", str(run), environment=monitor) as launched:
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
