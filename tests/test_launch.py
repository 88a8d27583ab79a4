"""launch.py as a user meets it: real processes, real Ray, real signals."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from launching import interrupt, launch, result_of, started, wait_for_line

from common.tensorboard import read_scalars
from learner.checkpoint import load

# A run of the whole line in well under a minute.
QUICK = ("--preset", "cartpole", "--learner.compile", "off")

TAGS = {
    "throughput/env_frames_per_s",
    "throughput/learner_steps_per_s",
    "throughput/transitions_sampled_per_s",
    "throughput/transitions_inserted_per_s",
    "train/episode_return",
    "eval/episode_return",
    "learner/td_loss",
    "learner/q_mean",
    "learner/grad_norm",
    "replay/transitions",
    "replay/bytes",
    "replay/samples_per_insert",
    "replay/stale_priority_updates",
    "actors/policy_lag_learner_steps",
    "actors/epsilon",
    "health/actor_restarts",
    "health/replay_restarts",
    "health/learner_restarts",
}


@pytest.mark.ray
def test_a_run_through_ray_ends_0_and_writes_everything(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = launch(*QUICK, "--actors", "2", "--total-frames", "12000", "--run-dir", str(run))
    assert done.returncode == 0, done.stdout + done.stderr
    result = result_of(run)
    assert result["end_reason"] == "done"
    assert result["frames"] >= 12_000
    assert result["learner_steps"] > 0
    assert result["last_train_return"] > 0
    assert result["last_eval_score"] > 0
    tags = read_scalars(run)
    assert TAGS <= set(tags), TAGS - set(tags)
    for role in ("actor", "replay", "learner"):
        assert any(tag.startswith(f"time/{role}_") for tag in tags), sorted(tags)
    (checkpoint,) = [p for p in (run / "checkpoints").glob("checkpoint_*.pt")][-1:]
    assert load(checkpoint)["counters"]["learner_step"] == result["learner_steps"]
    assert (run / "checkpoints" / "best.pt").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["actor"]["count"] == 2
    scored = launch("eval", str(run), "--episodes", "3")
    assert scored.returncode == 0, scored.stderr
    assert "3 games" in scored.stdout
    drawn = launch("plot", str(run))
    assert drawn.returncode == 0, drawn.stderr
    assert list((run / "plots").glob("*.png"))


@pytest.mark.ray
def test_two_runs_at_once_do_not_meet(tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    flags = (*QUICK, "--total-frames", "4000", "--actors", "1")
    with (
        started(*flags, "--run-dir", str(runs[0])) as a,
        started(*flags, "--seed", "2", "--run-dir", str(runs[1])) as b,
    ):
        for process in (a, b):
            output, errors = process.communicate(timeout=240)
            assert process.returncode == 0, output + errors
    assert [result_of(run)["end_reason"] for run in runs] == ["done", "done"]


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_exits_130_and_resume_goes_on(tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    with started(*QUICK, "--total-frames", "10000000", "--run-dir", str(run)) as process:
        wait_for_line(process, "every actor has pushed")
        wait_until_learning(run)
        interrupt(process, number)
        began_s = time.monotonic()
        process.communicate(timeout=60)
        assert time.monotonic() - began_s < 15
        assert process.returncode == 130
    first = result_of(run)
    assert first["end_reason"] == "interrupted"
    total = str(first["frames"] + 4_000)
    done = launch("--resume", str(run), "--total-frames", total)
    assert done.returncode == 0, done.stdout + done.stderr
    second = result_of(run)
    assert second["frames"] >= first["frames"] + 4_000
    assert second["learner_steps"] > first["learner_steps"]
    frames, _, _ = read_scalars(run)["replay/transitions"]
    assert (frames[1:] >= frames[:-1]).all(), "the curve must go on, not start again"


@pytest.mark.ray
def test_a_killed_actor_is_started_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = (*QUICK, "--actors", "2", "--total-frames", "10000000", "--run-dir", str(run))
    with started(*flags) as process:
        wait_for_line(process, "every actor has pushed")
        children = psutil.Process(process.pid).children(recursive=True)
        victim = next(p for p in children if p.name().startswith("ray::ActorProc"))
        victim.kill()
        wait_for_line(process, "actor")
        deadline_s = time.monotonic() + 90
        while time.monotonic() < deadline_s and "died" not in (run / "log.txt").read_text():
            time.sleep(0.5)
        time.sleep(12)  # one row of scalars
        interrupt(process)
        process.communicate(timeout=60)
    _, restarts, _ = read_scalars(run)["health/actor_restarts"]
    assert restarts[-1] == 1


def wait_until_learning(run: Path, timeout_s: float = 90.0) -> None:
    """Wait for the first scalars of the learner."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        scalars = read_scalars(run)
        if "throughput/learner_steps_per_s" in scalars:
            _, steps_per_s, _ = scalars["throughput/learner_steps_per_s"]
            if (steps_per_s > 0).any():
                return
        time.sleep(0.5)
    raise AssertionError("the learner did not start")


def test_serial_runs_of_one_seed_are_the_same_to_the_bit(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        run = tmp_path / name
        done = launch(
            *QUICK, "--serial", "--seed", seed, "--total-frames", "3000", "--run-dir", str(run)
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (checkpoint,) = (run / "checkpoints").glob("checkpoint_*.pt")
        digests.append(load(checkpoint)["weights"])
    assert torch.equal(digests[0], digests[1])
    assert not torch.equal(digests[0], digests[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--env", "Pnog"), "--env.id Pnog"),
        (("--env", "ALE/Pnog-v5"), "--env.id ALE/Pnog-v5"),
        (("--preset", "apxe"), "--preset apxe"),
        (("--no-such-flag", "1"), "no-such-flag"),
        (("--actors", "0"), "--actor.count 0: must be >= 1"),
        (("--replay.capacity", "-5"), "--replay.capacity -5: must be >= 1"),
        (("--agent.n-step", "0"), "--agent.n-step 0: must be >= 1"),
        (("--learner.batch-size", "60000"), "--replay.min-size 50000: must be >= the batch size"),
        (("--replay.capacity", "2000000000"), "--replay.capacity 2000000000: takes up to"),
        (("--address", "127.0.0.1:1"), "--address 127.0.0.1:1: no Ray cluster answers"),
        (("--serial", "--address", "auto"), "--serial"),
        (("eval", "/nonexistent"), "/nonexistent: is not a run folder"),
        (("plot", "/nonexistent"), "/nonexistent: is not a run folder"),
        (("trian",), "trian: must be train"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(
    tmp_path: Path, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = launch(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [], "nothing may be written"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_device_is_refused(tmp_path: Path) -> None:
    done = launch("--device", "cuda", "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "--learner.device cuda: this machine has no CUDA device" in done.stderr


def test_a_folder_that_is_not_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    done = launch("--run-dir", str(tmp_path))
    assert done.returncode == 2
    assert "is not a run" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    done = launch("--actors", "0", "--agent.n-step", "0", "--run-dir", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "--actor.count 0" in done.stderr
    assert "--agent.n-step 0" in done.stderr
