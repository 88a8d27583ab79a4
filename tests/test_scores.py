"""Random and human scores, as published, and what is made of them."""

from __future__ import annotations

import hashlib

import pytest
from ale_py import roms

from driver.view.scores import RANDOM_AND_HUMAN, human_normalized_score

# Of "game random human" lines of DQN Zoo, dqn_zoo/atari_data.py (f87bb1f), all of it.
PUBLISHED = "127cb719de3fb77a3d1cbc8e06b3747d2310175f1372ae0ccafe577bd7a9f846"


def test_table_is_the_published_one_by_the_names_of_the_roms() -> None:
    lines = [f"{game} {random} {human}" for game, (random, human) in RANDOM_AND_HUMAN.items()]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == PUBLISHED
    assert len(lines) == 57
    assert set(RANDOM_AND_HUMAN) <= set(roms.get_all_rom_ids())


def test_normalised_score_is_0_for_random_1_for_human_and_linear() -> None:
    for game, (random, human) in RANDOM_AND_HUMAN.items():
        assert human_normalized_score(game, random) == 0.0
        assert human_normalized_score(game, human) == 1.0
    # Pong at 20: (20 + 20.7) / (14.6 + 20.7)
    assert human_normalized_score("pong", 20.0) == pytest.approx(40.7 / 35.3)
    assert human_normalized_score("pong", -21.0) == pytest.approx(-0.3 / 35.3)


def test_other_games_have_no_normalised_score() -> None:
    assert human_normalized_score("adventure", 1.0) is None
    assert human_normalized_score("cartpole_v1", 500.0) is None
