"""A running job that is broken on purpose: real processes, killed or stopped by real signals.

The tests share one job, since a start costs more than a fault.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import psutil
import pytest
from faulting import (
    ACTOR_BACK_S,
    FLAGS,
    HANG_S,
    HEARD_OF_S,
    ROUND_S,
    Job,
    checkpoint_names,
    checkpoint_steps,
    checkpoints,
    snapshots,
)
from launching import STOP_S, started

from driver.view.events import read_scalars
from driver.view.tags import save_held_tag
from learner.assembly import expect_resumable, load_playable
from learner.checkpoint import CheckpointFolder

pytestmark = pytest.mark.ray

# While one of these is away frames go on. An actor stands still by design when its pushes to a
# dead shard fill its window, and when the limiter holds it since the learner is away.
_NOBODY_WAITS_FOR = ("actor", "evaluator", "weight_store")
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
    with started(*FLAGS, "--run-dir", str(run)) as launched:
        job = Job(launched, run)
        launched.wait_until(lambda: "eval/episode_return" in read_scalars(run), "evaluation")
        launched.wait_until(lambda: snapshots(run) >= 2, "snapshots")
        launched.wait_until(lambda: checkpoints(run) >= 1, "checkpoint")
        yield job
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said


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
    before, deaths, restored = job.comebacks(role), job.said(_death(role)), job.said(_RESTORED)
    killed_s = time.time()
    kept = checkpoint_steps(job.run, until_s=killed_s - HEARD_OF_S)
    job.victims(role)[0].kill()
    job.wait_for_comeback(role, before, back_s)
    returned_s = time.time()
    assert job.said(_death(role)) == deaths + 1
    job.launched.wait_until(
        lambda: job.last(f"health/{role}_restarts") == restarts + 1, "count of the restart"
    )
    if role in _NOBODY_WAITS_FOR:
        job.wait_for_scalars_after(returned_s)
        # Of an actor the driver hears when its own first push is in: that does not count.
        until_s = returned_s - (ROUND_S if role == "actor" else 0.0)
        assert job.frames_by(killed_s + 1.5 * ROUND_S) < job.frames_by(until_s)
    if role == "replay":
        job.wait_until(lambda: job.said(_RESTORED) > restored, "its snapshot", 30.0)
        assert job.said(_RESTORED) == restored + 1
    if role == "learner":
        job.wait_until(
            lambda: checkpoint_steps(job.run, since_s=returned_s) != [], "a new checkpoint", 60.0
        )
        assert checkpoint_steps(job.run, since_s=returned_s)[0] >= kept[-1] > 0
    job.expect_progress()


def test_a_learner_killed_before_anybody_heard_of_its_checkpoint_goes_on_from_it(
    job: Job,
) -> None:
    """The driver hears of a checkpoint with the next report, up to two seconds later."""
    victim, folder = job.victims("learner")[0], job.run / "checkpoints"
    before, comebacks = checkpoint_names(job.run), job.comebacks("learner")
    give_up_s = time.monotonic() + 60.0
    while not (new := {n for n in os.listdir(folder) if n.startswith("checkpoint_")} - before):
        assert time.monotonic() < give_up_s, job.launched.said
    victim.kill()
    (name,) = new
    job.wait_for_comeback("learner", comebacks, 90.0)
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
