"""ReturnGoal: which games end a run, and what result.json then says."""

from __future__ import annotations

import numpy as np
import pytest

from driver.goal import ReturnGoal


def test_hundred_training_games_that_average_the_goal_reach_it_and_not_one_game_earlier() -> None:
    goal = ReturnGoal(at_least=18.0, of="either", before=())
    goal.trained([21.0] * 99)
    assert goal.reached == ""
    goal.trained([-279.0])  # 99 * 21 - 279 = 1800
    assert goal.reached == "train return 18 >= 18 (mean of 100 games)"


def test_only_the_last_hundred_games_count() -> None:
    goal = ReturnGoal(at_least=10.0, of="train", before=())
    goal.trained([0.0] * 500)
    goal.trained([20.0] * 49)
    assert goal.reached == ""
    goal.trained([20.0])  # 50 of 0, 50 of 20
    assert goal.reached == "train return 10 >= 10 (mean of 100 games)"


def test_games_before_a_resumption_count_but_reach_nothing_by_themselves() -> None:
    goal = ReturnGoal(at_least=18.0, of="train", before=[18.0] * 150)
    goal.evaluated([21.0])
    assert goal.reached == ""
    goal.trained([18.0])
    assert goal.reached == "train return 18 >= 18 (mean of 100 games)"
    goal = ReturnGoal(at_least=18.0, of="train", before=[18.0] * 60)
    goal.trained([18.0] * 39)
    assert goal.reached == ""
    goal.trained([18.0])
    assert goal.reached != ""


def test_mean_is_looked_at_after_each_game_however_many_come_at_once() -> None:
    goal = ReturnGoal(at_least=1.0, of="train", before=())
    goal.trained([1.0] * 100 + [0.0] * 300)
    assert goal.reached == "train return 1 >= 1 (mean of 100 games)"


def test_mean_of_one_evaluation_reaches_the_goal() -> None:
    goal = ReturnGoal(at_least=18.0, of="either", before=())
    goal.evaluated(np.array([17.0, 18.0, 18.5]))
    assert goal.reached == ""
    goal.evaluated(np.array([19.0, 18.0, 18.5]))
    assert goal.reached == "eval return 18.5 >= 18 (mean of 3 games)"


def test_what_reached_it_first_is_what_is_named() -> None:
    goal = ReturnGoal(at_least=5.0, of="either", before=())
    goal.evaluated([6.0])
    goal.trained([7.0] * 100)
    goal.evaluated([8.0])
    assert goal.reached == "eval return 6 >= 5 (mean of 1 games)"


@pytest.mark.parametrize(("of", "by"), [("train", "evaluated"), ("eval", "trained")])
def test_the_other_kind_of_games_does_not_count(of: str, by: str) -> None:
    goal = ReturnGoal(at_least=5.0, of=of, before=())  # type: ignore[arg-type]
    getattr(goal, by)([1000.0] * 100)
    assert goal.reached == ""
    goal.trained([6.0] * 100)
    goal.evaluated([6.0] * 3)
    assert goal.reached.startswith(f"{of} return 6 >= 5")


def test_without_a_goal_nothing_reaches_it() -> None:
    goal = ReturnGoal(at_least=None, of="either", before=())
    goal.trained([1e9] * 1000)
    goal.evaluated([1e9])
    assert goal.reached == ""


def test_goals_below_zero_and_large_returns_are_said_readably() -> None:
    goal = ReturnGoal(at_least=-20.5, of="eval", before=())
    goal.evaluated([-21.0])
    assert goal.reached == ""
    goal.evaluated([-20.25])
    assert goal.reached == "eval return -20.25 >= -20.5 (mean of 1 games)"
    large = ReturnGoal(at_least=400_000.0, of="eval", before=())
    large.evaluated([412_345.0])
    assert large.reached == "eval return 412345 >= 400000 (mean of 1 games)"
