"""A running job that is broken on purpose: real processes, killed or stopped by real signals.

The tests share one job, since a start costs more than a fault.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator

import psutil
import pytest
from faulting import (
    ACTOR_BACK_S,
    FLAGS,
    HANG_S,
    ROUND_S,
    Job,
    checkpoint_names,
    checkpoints,
    last_frame,
    snapshots,
)
from launching import ON_THE_PATH, ROOT, STOP_S, result_of, started
from unhurried import GAME

from driver.view.events import read_scalars
from driver.view.tags import save_held_tag
from learner.checkpoint import CheckpointFolder
from learner.payload import expect_resumable, load_playable

pytestmark = pytest.mark.ray

_RESTORED = r"replay \d+: goes on with the [1-9][\d,]* transitions of its snapshot"
# A save should hold its process up for less than 0.1 s; the rest is for a machine that others use,
# too, where a process may have to wait for a core in the middle of it.
_SAVE_HELD_S = 0.5


def _death(role: str) -> str:
    """Return the pattern of what the driver says of a role's process that was killed, and why."""
    return rf"{role} \d+ died, starting it again .*: .*(has died|unavailable)"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """Return a job that has learned, evaluated and saved."""
    run = tmp_path_factory.mktemp("faults") / "run"
    with started(*FLAGS, "--run-dir", str(run), environment=ON_THE_PATH) as launched:
        job = Job(launched, run)
        launched.wait_until(lambda: "eval/episode_return" in read_scalars(run), "evaluation")
        launched.wait_until(lambda: snapshots(run) >= 2, "snapshots")
        launched.wait_until(lambda: checkpoints(run) >= 1, "checkpoint")
        yield job
        if launched.is_running:
            launched.interrupt()


def _kill(job: Job, role: str, within_s: float) -> tuple[float, float]:
    """Kill a process of a role and see it told, counted and replaced.

    Returns:
      When it was killed and when it was back, seconds since the epoch.
    """
    tag = f"health/{role}_restarts"
    restarts = job.last(tag)
    comebacks, deaths = job.comebacks(role), job.said(_death(role))
    killed_s = time.time()
    job.victims(role)[0].kill()
    job.wait_for_comeback(role, comebacks, within_s)
    returned_s = time.time()
    assert job.said(_death(role)) == deaths + 1
    job.wait_until(lambda: job.last(tag) == restarts + 1, f"one more of {tag}", 60.0)
    return killed_s, returned_s


# Frames go on while these are away. Not without a shard or the learner: an actor stands still by
# design when its pushes to a dead shard fill its window, and when the limiter holds it.
@pytest.mark.parametrize(
    ("role", "within_s"), [("actor", ACTOR_BACK_S), ("evaluator", 90.0), ("weight_store", 60.0)]
)
def test_a_killed_process_that_nobody_waits_for_is_replaced_while_frames_go_on(
    job: Job, role: str, within_s: float
) -> None:
    killed_s, returned_s = _kill(job, role, within_s)
    job.wait_for_scalars_after(returned_s)
    # Of an actor the driver hears when its own first push is in: that does not count.
    until_s = returned_s - (ROUND_S if role == "actor" else 0.0)
    assert job.frames_by(killed_s + 1.5 * ROUND_S) < job.frames_by(until_s)
    job.expect_progress()


def test_a_learner_killed_before_anybody_heard_of_its_checkpoint_goes_on_from_it(
    job: Job,
) -> None:
    """The driver hears of a checkpoint with the next report, up to two seconds later."""
    folder, before = job.run / "checkpoints", checkpoint_names(job.run)
    give_up_s = time.monotonic() + 60.0
    while not (new := {n for n in os.listdir(folder) if n.startswith("checkpoint_")} - before):
        assert time.monotonic() < give_up_s, job.launched.said
    _kill(job, "learner", 90.0)
    (name,) = new
    job.wait_until(lambda: job.said(rf"learner 0: .*; goes on from .*{name}") == 1, name, 30.0)
    after = checkpoint_names(job.run)
    job.wait_until(lambda: bool(checkpoint_names(job.run) - after), "another checkpoint", 60.0)
    newest = CheckpointFolder(folder, 1).newest_sound(expect_resumable)
    assert newest is not None
    learner_step = int(name.removeprefix("checkpoint_").removesuffix(".pt"))
    assert newest.payload["counters"]["learner_step"] >= learner_step
    job.expect_progress()


def test_all_actors_killed_at_once_come_back(job: Job) -> None:
    before = job.comebacks("actor")
    for victim in job.victims("actor"):
        victim.kill()
    job.wait_for_comeback("actor", before, ACTOR_BACK_S, number=2)
    job.expect_progress()


def test_stopped_processes_are_noticed_killed_and_replaced_and_nobody_beside_them(
    job: Job,
) -> None:
    """One after the other: who waits for a silent shard is not silent itself."""
    for number, role in enumerate(("actor", "replay", "learner"), 1):
        comebacks, victim = job.comebacks(role), job.victims(role)[0]
        victim.suspend()
        job.wait_until(lambda: job.said("it hung") == number, role, HANG_S + 10.0)  # noqa: B023
        job.wait_for_comeback(role, comebacks, 90.0)
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.wait(timeout=5.0)
        assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
        job.expect_progress()
        assert job.said(rf"{role} \d+ died, .* it hung: silent for") == 1
        assert job.said("it hung") == number


def test_a_learner_and_a_shard_killed_together_come_back(job: Job) -> None:
    roles = ("replay", "learner")
    before = [job.comebacks(role) for role in roles]
    for role in roles:
        job.victims(role)[0].kill()
    for role, comebacks in zip(roles, before, strict=True):
        job.wait_for_comeback(role, comebacks, 120.0)
    job.expect_progress()


def test_a_killed_shard_goes_on_with_its_snapshot_and_what_it_lost_is_counted(job: Job) -> None:
    lost = job.last("replay/lost_transitions")
    for _ in range(3):  # one that is killed right after its snapshot loses nothing
        restored = job.said(_RESTORED)
        _kill(job, "replay", 60.0)
        job.wait_until(lambda: job.said(_RESTORED) > restored, "its snapshot", 30.0)  # noqa: B023
        assert job.said(_RESTORED) == restored + 1
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
    newest = CheckpointFolder(job.run / "checkpoints", 1).newest_sound(expect_resumable)
    assert newest is not None
    learner = load_playable(newest.path)["counters"]["agent_steps"]
    # Some seconds lie between the two, and each death may have cost the learner a second's worth.
    assert abs(driver - learner) < 0.2 * driver, (driver, learner)


def test_no_save_held_its_process_up_for_long(job: Job) -> None:
    scalars = read_scalars(job.run)
    for role in ("learner", "replay"):
        held_s = scalars[save_held_tag(role)].values
        assert len(held_s) > 0
        assert held_s.max() < _SAVE_HELD_S, (role, held_s.max())


def test_training_goes_on_when_the_checkpoint_folder_is_removed_or_cannot_be_written(
    job: Job,
) -> None:
    run, launched = job.run, job.launched
    tracebacks = (run / "log.txt").read_text().count("Traceback")
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
    assert (run / "log.txt").read_text().count("Traceback") == tracebacks


def test_a_folder_that_is_moved_under_its_run_is_found_by_everybody(job: Job) -> None:
    """The last one: it ends the job."""
    run, moved = job.run, job.run.parent / "else where"
    launched, job = job.launched, job._replace(run=moved)
    assert result_of(run)["end_reason"] == "running"
    run.rename(moved)
    launched.wait_for(f"the run folder {run} was moved; saving goes on in {moved}")
    for role in ("learner", "replay"):  # those who take over have never seen the old name
        comebacks = job.comebacks(role)
        job.victims(role)[0].kill()
        job.wait_for_comeback(role, comebacks, 90.0)
    job.expect_progress()
    before = checkpoint_names(moved)
    job.wait_until(lambda: bool(checkpoint_names(moved) - before), "a new checkpoint", 60.0)
    os.kill(launched.pid, signal.SIGUSR2)  # as a batch system does
    done = launched.wait(STOP_S)
    assert done.returncode == 130
    assert [path.name for path in run.parent.iterdir()] == ["else where"]
    assert done.stdout.count("was moved") == 1
    assert result_of(moved)["end_reason"] == "interrupted"
    words = f"python {ROOT / 'launch.py'} --resume '{moved}' --env {GAME}"
    assert f"continue with: {words}" in done.stdout
    assert "interrupted: " in (moved / "log.txt").read_text()
