"""launch.py as a user meets it: real processes, real Ray, real signals."""

from __future__ import annotations

import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from design_tags import DESIGN_TAGS
from launching import (
    HAS_COMPILER,
    ROOT,
    STOP_S,
    Launched,
    launch,
    left_in,
    raylets,
    result_of,
    started,
)

from driver.view.events import read_scalars
from launch import main
from learner.checkpoint import CheckpointFolder, load

# A run of the whole line in well under a minute; and one that goes on until somebody ends it.
QUICK = ("--preset", "cartpole")
ENDLESS = (*QUICK, "--total-frames", "100_000_000", "--evaluator.every-minutes", "60")

ROLES = ("actor", "replay", "learner")


def expect_tags(run: Path, expected: set[str]) -> None:
    """Assert that a run wrote the tags, and each role's shares of its time."""
    written = set(read_scalars(run))
    assert expected <= written, expected - written
    for role in ROLES:
        assert any(re.fullmatch(f"time/{role}_.+_share", tag) for tag in written), (role, written)


def has_learned(run: Path) -> bool:
    """Return whether the run's scalars speak of learner steps."""
    time.sleep(0.5)
    return "learner/td_loss" in read_scalars(run)


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.ray
def test_the_command_of_the_readme_ends_0_writes_everything_and_can_be_scored_and_plotted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = readme_arguments()
    arguments[arguments.index("--total-frames") + 1] = "12000"
    # Games of 500 frames, so that some end; few samples, since a step takes 0.2 s on a busy core; a
    # narrow band, so that the actors wait for a learner that compiles.
    small = (
        *("--replay.min-size", "1000", "--replay.samples-per-insert", "2"),
        *("--replay.band", "640", "--actor.segment-transitions", "20"),
        *("--env.max-game-frames", "500", "--evaluator.episodes", "1", "--run-dir", str(run)),
    )
    cache = tmp_path / "cache"
    done = launch(*arguments, *small, environment={"TORCHINDUCTOR_CACHE_DIR": str(cache)})
    assert done.returncode == 0, done.stdout + done.stderr
    if HAS_COMPILER:
        assert "not compiled" not in launched_log(run)
        assert list(cache.rglob("*.cpp")), "nothing was compiled"
    result = result_of(run)
    assert result["end_reason"] == "done"
    assert result["frames"] >= 12_000
    assert result["learner_steps"] > 0
    assert result["last_train_return"] <= 0  # nobody wins the start of his first games of Pong
    assert result["last_eval_score"] <= 0
    quartiles = {f"train/episode_return_epsilon_quartile_{q}" for q in range(1, 5)}
    expect_tags(
        run, DESIGN_TAGS | quartiles | {"eval/human_normalized_score", "time/actor_push_share"}
    )
    newest = CheckpointFolder(run / "checkpoints", 1).newest()
    assert newest is not None
    assert load(newest)["counters"]["learner_step"] == result["learner_steps"]
    assert load(run / "checkpoints" / "best.pt")["score"] == pytest.approx(
        result["last_eval_score"], abs=1e-3
    )
    assert yaml.safe_load((run / "config.yaml").read_text())["actor"]["count"] == 2
    assert (run / "run.json").exists()
    assert "every actor has pushed" in launched_log(run)
    assert main(["eval", str(run), "--episodes", "1"]) == 0
    assert "1 game" in capsys.readouterr().out
    assert main(["plot", str(run)]) == 0
    assert list((run / "plots").glob("*.png"))


@pytest.mark.ray
def test_two_runs_at_once_do_not_meet_and_forcing_one_to_stop_does_not_touch_the_other(
    tmp_path: Path,
) -> None:
    forced, other = tmp_path / "forced", tmp_path / "other"
    flags = ("--actors", "1", "--run-dir")
    with (
        started(*ENDLESS, *flags, str(forced)) as first,
        started(*QUICK, "--total-frames", "5000", *flags, str(other)) as second,
    ):
        first.wait_until(lambda: has_learned(forced), "learner step")
        (learner,) = first.workers("LearnerProcess")
        learner.suspend()  # so it cannot save, and the first signal does not end the run
        first.interrupt()
        first.wait_for("Ctrl-C again to force")
        time.sleep(1.5)  # what comes within a second counts as the first one's echo
        assert first.is_running
        expect_130(first, signal.SIGINT)
        done = second.wait()
        assert done.returncode == 0, done.stdout + done.stderr
    assert result_of(forced)["end_reason"] == "forced to stop"
    assert result_of(other)["end_reason"] == "done"
    assert result_of(other)["frames"] >= 5000


def readme_arguments() -> list[str]:
    """Return what README's quick run gives to launch.py."""
    block = re.search(r"<!-- run -->\n```bash\n(.+)\n```", (ROOT / "README.md").read_text())
    assert block is not None
    install, _, run = block[1].partition(" && ")
    assert install == "pip install -e ."
    python, script, *arguments = shlex.split(run)
    assert (python, script) == ("python", "launch.py")
    return arguments


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.ray
def test_ctrl_c_saves_and_exits_130_and_resume_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(*ENDLESS, "--run-dir", str(run)) as launched:
        launched.wait_until(lambda: has_learned(run), "learner step")
        expect_130(launched, signal.SIGINT)
        assert f"--resume {run}" in launched.said
    first = result_of(run)
    assert first["end_reason"] == "interrupted"
    newest = CheckpointFolder(run / "checkpoints", 1).newest()
    assert newest is not None
    assert load(newest)["counters"]["learner_step"] == first["learner_steps"] > 0

    total = first["frames"] + 4_000
    done = launch("--resume", str(run), "--total-frames", str(total))
    assert done.returncode == 0, done.stdout + done.stderr
    second = result_of(run)
    assert second["end_reason"] == "done"
    assert second["frames"] >= total
    assert second["learner_steps"] > first["learner_steps"]
    frames, _, _ = read_scalars(run)["replay/transitions"]
    assert (frames[1:] >= frames[:-1]).all(), "the curve must go on, not start again"


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_ray_starts_exits_130_and_leaves_nothing(
    tmp_path: Path, base: Path, number: int
) -> None:
    run = tmp_path / "run"
    shell = {"TMPDIR": str(base)}
    with started(*ENDLESS, "--run-dir", str(run), environment=shell) as launched:
        launched.wait_for("run folder")
        if number == signal.SIGINT:
            launched.wait_until(lambda: len(launched.processes()) > 1, "process of Ray's")
        else:
            launched.wait_until(lambda: bool(raylets(launched)), "raylet")
        expect_130(launched, number)
        assert "Traceback" not in launched.said
    assert left_in(base) == []
    assert result_of(run)["end_reason"] == "interrupted"


@pytest.mark.ray
def test_ctrl_c_while_workers_start_exits_130_and_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(*ENDLESS, "--run-dir", str(run)) as launched:
        launched.wait_until(lambda: bool(launched.workers("Learner")), "learner process")
        expect_130(launched, signal.SIGINT)
        assert "Traceback" not in launched.said
    assert result_of(run)["end_reason"] == "interrupted"
    assert "--resume" not in launched_log(run), "there is nothing to resume from"


def test_ctrl_c_while_modules_are_imported_exits_130_in_silence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(*ENDLESS, "--run-dir", str(run)) as launched:
        launched.wait_until(lambda: imports_torch(launched), "import of torch")
        expect_130(launched, signal.SIGINT)
        assert launched.said == ""
    assert not run.exists()


def expect_130(launched: Launched, number: int) -> None:
    """Send the signal and see the run end as DESIGN says."""
    launched.interrupt(number)
    done = launched.wait(STOP_S)
    assert done.returncode == 130, launched.said
    assert launched.wait_until_gone(STOP_S) == []


def imports_torch(launched: Launched) -> bool:
    """Return whether the driver has torch's library open, long before it can run a command."""
    (process,) = launched.processes()
    return any("libtorch" in mapped.path for mapped in process.memory_maps())


def launched_log(run: Path) -> str:
    """Return what the run said into its folder."""
    return (run / "log.txt").read_text()


# --- bad input ------------------------------------------------------------------------------------


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
        (("--resume", "/nonexistent"), "/nonexistent: is not a run folder"),
        (("eval", "/nonexistent"), "/nonexistent: is not a run folder"),
        (("plot", "/nonexistent"), "/nonexistent: is not a run folder"),
        (("trein",), "trein: must be train"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(
    tmp_path: Path,
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    errors = refusal(arguments, capsys)
    assert said in " ".join(errors.split()), errors
    # Of the flags themselves tyro tells, in its own way.
    assert errors.count("\n") == 1 or not errors.startswith("launch.py: "), errors
    assert list(tmp_path.iterdir()) == [], "nothing may be written"


def test_bad_input_ends_the_process_with_2_and_no_traceback(tmp_path: Path) -> None:
    done = launch("--env", "Pnog", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "--env.id Pnog" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_cuda_without_a_device_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    errors = refusal(("--device", "cuda", "--run-dir", str(tmp_path / "run")), capsys)
    assert "--learner.device cuda: this machine has no CUDA device" in errors


def test_a_folder_that_is_not_a_run_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    assert "is not a run" in refusal(("--run-dir", str(tmp_path)), capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_all_problems_are_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--actors", "0", "--agent.n-step", "0", "--run-dir", str(tmp_path / "run"))
    errors = refusal(flags, capsys)
    assert "--actor.count 0" in errors
    assert "--agent.n-step 0" in errors


def refusal(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command says when it refuses, in this process."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    return capsys.readouterr().err
