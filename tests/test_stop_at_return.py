"""`--stop-at-return` as a user meets it: the run ends in order and says what reached the goal."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from launching import launch, result_of

from driver.serial_run import SerialRun
from driver.view.events import read_scalars
from launch import main
from learner.checkpoint import CheckpointFolder, load

QUICK = ("--preset", "cartpole", "--total-frames", "60000")
TRAINED = r"train return (\S+) >= 25 \(mean of 100 games\)"


def expect_ended_in_order(run: Path) -> dict[str, Any]:
    """Assert what a run that is done leaves behind, and return its result."""
    result = result_of(run)
    newest = CheckpointFolder(run / "checkpoints", 1).newest()
    assert newest is not None
    assert load(newest)["counters"]["learner_step"] == result["learner_steps"]
    assert 0 < result["frames"] < 60_000
    assert result["last_eval_score"] > 0
    assert (run / "checkpoints" / "best.pt").exists()
    assert result["end_reason"] in (run / "log.txt").read_text()
    return result


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_serial_run_ends_when_100_training_games_average_the_goal_and_at_the_same_step_each_time(
    tmp_path: Path,
) -> None:
    results = []
    for name in ("one", "two"):
        flags = ("--stop-at-return", "25", "--stop-at-return-of", "train")
        assert main([*QUICK, *flags, "--serial", "--run-dir", str(tmp_path / name)]) == 0
        results.append(expect_ended_in_order(tmp_path / name))
    first, second = results
    assert first["learner_steps"] > 0
    match = re.fullmatch(TRAINED, first["end_reason"])
    assert match is not None, first
    assert float(match[1]) >= 25
    # The games that were reported by then are those that count.
    assert first["last_train_return"] == pytest.approx(float(match[1]), rel=0.2)
    _, returns, _ = read_scalars(tmp_path / "one")["train/episode_return"]
    assert len(returns) >= 100
    before = [returns[end - 100 : end].mean() for end in range(100, len(returns) - 5)]
    assert max(before) < 25, "it should have ended earlier"
    for key in ("frames", "learner_steps", "end_reason", "last_train_return"):
        assert first[key] == second[key], key


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_serial_run_ends_when_an_evaluation_averages_the_goal(tmp_path: Path) -> None:
    run = tmp_path / "run"
    # A game of CartPole lasts 8 steps at least, and 100 training games are soon played.
    flags = ("--stop-at-return", "5", "--stop-at-return-of", "eval", "--serial")
    often = ("--evaluator.every-minutes", "0.05")
    assert main([*QUICK, *flags, *often, "--run-dir", str(run)]) == 0
    reason = expect_ended_in_order(run)["end_reason"]
    assert re.fullmatch(r"eval return \S+ >= 5 \(mean of 10 games\)", reason), reason


@pytest.mark.usefixtures("torch_is_left_as_it_was")
@pytest.mark.parametrize("reason", ["train return 26.0 >= 25 (mean of 100 games)", "interrupted"])
def test_interrupt_of_the_last_evaluation_leaves_the_reason_of_a_run_that_is_over(
    tmp_path: Path,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"

    def end(serial_run: Any) -> str:
        serial_run._interrupts.requested.set()
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / "checkpoint_0000000001.pt").touch()
        return reason

    monkeypatch.setattr(SerialRun, "run", end)
    assert main([*QUICK, "--serial", "--run-dir", str(run)]) == 130
    assert result_of(run)["end_reason"] == reason
    assert ("continue with" in capsys.readouterr().out) == (reason == "interrupted")


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_resumed_run_counts_the_games_of_the_sitting_before(tmp_path: Path) -> None:
    run = tmp_path / "run"
    goal = ("--stop-at-return", "9", "--stop-at-return-of", "train", "--serial")  # any game's
    sitting = ("--evaluator.no-enabled", "--total-episodes")
    assert main([*QUICK, *goal, *sitting, "60", "--run-dir", str(run)]) == 0
    first = result_of(run)
    assert (first["end_reason"], first["episodes"]) == ("done", 60)
    assert main(["--resume", str(run), "--serial", "--total-episodes", "150"]) == 0
    result = result_of(run)
    assert result["end_reason"].startswith("train return ")
    assert 100 <= result["episodes"] < 110
    _, returns, _ = read_scalars(run)["train/episode_return"]
    assert result["last_train_return"] == pytest.approx(returns[-100:].mean(), abs=1e-3)


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_run_whose_goal_is_out_of_reach_is_done_with_its_frames(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--stop-at-return", "501", "--total-frames", "3000", "--serial")
    assert main([*QUICK, *flags, "--run-dir", str(run)]) == 0
    result = result_of(run)
    assert result["end_reason"] == "done"
    assert result["frames"] >= 3_000


@pytest.mark.ray
@pytest.mark.parametrize(("of", "goal", "games"), [("train", 25, 100), ("eval", 5, 10)])
def test_run_through_ray_ends_in_order_and_names_what_reached_the_goal(
    tmp_path: Path, of: str, goal: int, games: int
) -> None:
    run = tmp_path / "run"
    flags = ("--stop-at-return", str(goal), "--stop-at-return-of", of)
    # Untrained, a game lasts some 10 steps: the goal of 25 takes learning.
    small = ("--actors", "1", "--evaluator.every-minutes", "0.2", "--run-dir", str(run))
    done = launch(*QUICK, *flags, *small)
    assert done.returncode == 0, done.stdout + done.stderr
    reason = expect_ended_in_order(run)["end_reason"]
    assert re.fullmatch(rf"{of} return \S+ >= {goal} \(mean of {games} games\)", reason), reason
