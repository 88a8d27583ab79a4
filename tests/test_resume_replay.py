"""A resumed run and its replay: what it says, what it waits for, what it refuses."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from launching import result_of

import launch
from actors.environments import resolve
from common.config import Config
from common.config_file import load_file
from common.presets import PRESETS
from common.source import own_source
from learner import worker as learner_worker
from learner.worker import LearnerProcess

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")

MIN_SIZE = 200
FIRST_FRAMES = 400
CARTPOLE = (
    *("--preset", "cartpole", "--evaluator.no-enabled", "--learner.batch-size", "8"),
    *("--replay.min-size", str(MIN_SIZE), "--replay.samples-per-insert", "1"),
)
WITHOUT_REPLAY = ("--checkpoint.replay", "false")


def new_run(folder: Path, *flags: str) -> dict[str, Any]:
    """Play FIRST_FRAMES and return the run's result; it has learned and saved."""
    frames = ("--total-frames", str(FIRST_FRAMES))
    assert launch.main([*CARTPOLE, "--serial", *frames, "--run-dir", str(folder), *flags]) == 0
    result = result_of(folder)
    assert result["learner_steps"] > 0
    assert FIRST_FRAMES <= result["frames"] < FIRST_FRAMES + MIN_SIZE // 2
    return result


def resume(folder: Path, frames: int, *flags: str) -> str:
    """Play until the run has so many frames, and return what the log says of it."""
    before = len(log_of(folder))
    total = ("--total-frames", str(frames))
    assert launch.main(["--resume", str(folder), "--serial", *total, *flags]) == 0
    assert result_of(folder)["frames"] >= frames
    return log_of(folder)[before:]


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()


def changes(said: str) -> list[str]:
    return re.findall(r"changed: (.*)", said)


def snapshots(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("replay_*"))


# --- without --------------------------------------------------------------------------------------


def test_a_run_that_does_not_save_its_replay_says_so_and_learns_once_it_is_full_enough_again(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    first = new_run(run, *WITHOUT_REPLAY)
    assert snapshots(run) == []
    said = resume(run, first["frames"] + MIN_SIZE // 2)
    assert (
        f" without its replay: learning waits until it holds {MIN_SIZE} transitions again" in said
    )
    assert "starts empty" not in said  # as was asked for: nobody lost anything
    waited = result_of(run)
    assert waited["learner_steps"] == first["learner_steps"]
    resume(run, waited["frames"] + 2 * MIN_SIZE)
    assert result_of(run)["learner_steps"] > first["learner_steps"]
    assert snapshots(run) == []


def test_a_run_that_saves_its_replay_learns_at_once_when_it_is_resumed(tmp_path: Path) -> None:
    """So that it is the missing replay which the learner above waits for."""
    run = tmp_path / "run"
    first = new_run(run)
    assert snapshots(run) == ["replay_0"]
    assert "starts empty" not in log_of(run)
    said = resume(run, first["frames"] + MIN_SIZE // 2)
    assert f"replay 0: goes on with the {first['frames']} transitions of its snapshot" in said
    assert "without its replay" not in said
    assert result_of(run)["learner_steps"] > first["learner_steps"]


@pytest.mark.parametrize("shards", [1, 2])
def test_a_shard_whose_snapshots_are_gone_says_that_it_starts_empty(
    shards: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = new_run(run, "--replay.shards", str(shards))
    last = shards - 1
    shutil.rmtree(run / "checkpoints" / f"replay_{last}")
    said = resume(run, first["frames"] + 40)
    assert f"replay {last}: starts empty: it has no snapshot" in said
    assert said.count("starts empty") == 1
    assert said.count("transitions of its snapshot") == shards - 1


# --- other settings -------------------------------------------------------------------------------


def test_a_changed_setting_is_applied_and_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = new_run(run)
    said = resume(run, first["frames"] + 40, "--learner.learning-rate", "0.002")
    total = f"total_frames {FIRST_FRAMES} -> {first['frames'] + 40}"
    assert changes(said) == [total, "learner.learning_rate 0.0005 -> 0.002"]
    said = resume(run, first["frames"] + 80)  # its own by now
    assert changes(said) == [f"total_frames {first['frames'] + 40} -> {first['frames'] + 80}"]
    config = load_file(Config(), run / "config.yaml")
    assert config.learner.learning_rate == 0.002


def test_another_number_of_shards_is_refused_by_name_unless_replay_is_given_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    first = new_run(run)
    before = log_of(run)
    with pytest.raises(SystemExit) as refused:
        resume(run, first["frames"] + 40, "--replay.shards", "2")
    assert refused.value.code == 2
    assert "--replay.shards 2: must stay 1 in a resumed run" in capsys.readouterr().err
    assert (log_of(run), result_of(run)) == (before, first)
    said = resume(run, first["frames"] + 40, "--replay.shards", "2", "--checkpoint.no-replay")
    assert "changed: replay.shards 1 -> 2" in said
    assert "without its replay" in said


# --- the learner ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("incarnation", "is_told"), [(0, False), (1, True)])
def test_a_learner_that_died_before_its_first_checkpoint_says_that_it_learns_anew(
    incarnation: int, is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PRESETS["cartpole"].config
    # It would hold for this whole process.
    monkeypatch.setattr(learner_worker, "tune_allocator", lambda: None)
    monkeypatch.setattr(learner_worker, "_CATCH_UP_S", 0.0)  # the shard never answers
    nobody: Any = SimpleNamespace()
    process: Any = LearnerProcess(
        config, resolve(config.env), [nobody], nobody, tmp_path, "", 0, 0,
        incarnation, incarnation == 0, 0, False, own_source(),
    )  # fmt: skip
    process._prefetcher.close()
    said = process.describe()
    assert said.startswith("learning on ")
    assert said.endswith("; no checkpoint yet: learns anew from the start") == is_told
