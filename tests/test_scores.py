from __future__ import annotations

import pytest
from ale_py import roms

from common.scores import RANDOM_AND_HUMAN, human_normalized_score


def test_table_has_57_games_by_their_rom_names() -> None:
    assert len(RANDOM_AND_HUMAN) == 57
    assert set(RANDOM_AND_HUMAN) <= set(roms.get_all_rom_ids())
    assert all(random < human for random, human in RANDOM_AND_HUMAN.values())


@pytest.mark.parametrize(
    ("game", "random", "human"),
    [
        # DQN Zoo, dqn_zoo/atari_data.py
        ("pong", -20.7, 14.6),
        ("breakout", 1.7, 30.5),
        ("ms_pacman", 307.3, 6951.6),
        ("skiing", -17098.1, -4336.9),
        ("zaxxon", 32.5, 9173.3),
    ],
)
def test_published_scores_are_0_and_1(game: str, random: float, human: float) -> None:
    assert RANDOM_AND_HUMAN[game] == (random, human)
    assert human_normalized_score(game, random) == 0.0
    assert human_normalized_score(game, human) == 1.0


def test_table_has_the_published_sums() -> None:
    # One wrong digit anywhere shows here.
    assert sum(random for random, _ in RANDOM_AND_HUMAN.values()) == pytest.approx(50_864.9)
    assert sum(human for _, human in RANDOM_AND_HUMAN.values()) == pytest.approx(606_494.2)


def test_normalised_score_is_linear() -> None:
    # Pong at 20: (20 + 20.7) / (14.6 + 20.7)
    assert human_normalized_score("pong", 20.0) == pytest.approx(40.7 / 35.3)
    assert human_normalized_score("pong", -21.0) == pytest.approx(-0.3 / 35.3)


def test_other_games_have_no_normalised_score() -> None:
    assert human_normalized_score("adventure", 1.0) is None
    assert human_normalized_score("cartpole_v1", 500.0) is None
