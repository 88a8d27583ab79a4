from __future__ import annotations

import pytest
from ale_py import roms

from driver.view.scores import RANDOM_AND_HUMAN, human_normalized_score

# Game, random score, human score: DQN Zoo, dqn_zoo/atari_data.py (f87bb1f), all of it.
PUBLISHED = """
alien 227.8 7127.7
amidar 5.8 1719.5
assault 222.4 742
asterix 210 8503.3
asteroids 719.1 47388.7
atlantis 12850 29028.1
bank_heist 14.2 753.1
battle_zone 2360 37187.5
beam_rider 363.9 16926.5
berzerk 123.7 2630.4
bowling 23.1 160.7
boxing 0.1 12.1
breakout 1.7 30.5
centipede 2090.9 12017
chopper_command 811 7387.8
crazy_climber 10780.5 35829.4
defender 2874.5 18688.9
demon_attack 152.1 1971
double_dunk -18.6 -16.4
enduro 0 860.5
fishing_derby -91.7 -38.7
freeway 0 29.6
frostbite 65.2 4334.7
gopher 257.6 2412.5
gravitar 173 3351.4
hero 1027 30826.4
ice_hockey -11.2 0.9
jamesbond 29 302.8
kangaroo 52 3035
krull 1598 2665.5
kung_fu_master 258.5 22736.3
montezuma_revenge 0 4753.3
ms_pacman 307.3 6951.6
name_this_game 2292.3 8049
phoenix 761.4 7242.6
pitfall -229.4 6463.7
pong -20.7 14.6
private_eye 24.9 69571.3
qbert 163.9 13455
riverraid 1338.5 17118
road_runner 11.5 7845
robotank 2.2 11.9
seaquest 68.4 42054.7
skiing -17098.1 -4336.9
solaris 1236.3 12326.7
space_invaders 148 1668.7
star_gunner 664 10250
surround -10 6.5
tennis -23.8 -8.3
time_pilot 3568 5229.2
tutankham 11.4 167.6
up_n_down 533.4 11693.2
venture 0 1187.5
video_pinball 16256.9 17667.9
wizard_of_wor 563.5 4756.5
yars_revenge 3092.9 54576.9
zaxxon 32.5 9173.3
"""
GAMES = [
    (game, float(random), float(human))
    for game, random, human in map(str.split, PUBLISHED.strip().splitlines())
]


def test_table_has_57_games_by_their_rom_names() -> None:
    assert len(RANDOM_AND_HUMAN) == 57
    assert set(RANDOM_AND_HUMAN) <= set(roms.get_all_rom_ids())
    assert all(random < human for random, human in RANDOM_AND_HUMAN.values())


def test_table_is_the_published_one() -> None:
    assert {game: (random, human) for game, random, human in GAMES} == RANDOM_AND_HUMAN


@pytest.mark.parametrize(("game", "random", "human"), GAMES, ids=[game for game, *_ in GAMES])
def test_published_scores_are_0_and_1_and_all_others_on_their_line(
    game: str, random: float, human: float
) -> None:
    assert human_normalized_score(game, random) == 0.0
    assert human_normalized_score(game, human) == 1.0
    for score in (-21.0, 0.0, 864.0, 999_999.0):
        expected = (score - random) / (human - random)
        assert human_normalized_score(game, score) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_normalised_score_is_linear() -> None:
    # Pong at 20: (20 + 20.7) / (14.6 + 20.7)
    assert human_normalized_score("pong", 20.0) == pytest.approx(40.7 / 35.3)
    assert human_normalized_score("pong", -21.0) == pytest.approx(-0.3 / 35.3)


def test_other_games_have_no_normalised_score() -> None:
    assert human_normalized_score("adventure", 1.0) is None
    assert human_normalized_score("cartpole_v1", 500.0) is None
