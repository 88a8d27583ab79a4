"""Tags: families of names, and the quartiles of the ladder."""

from __future__ import annotations

import math

import pytest

from driver.view import tags


def test_quartiles_count_from_the_one_that_explores_most() -> None:
    found = [
        tags.episode_return_quartile_tag(position) for position in (0.0, 0.25, 0.5, 0.75, 0.999)
    ]
    assert [tag[-1] for tag in found] == ["1", "2", "3", "4", "4"]
    assert found[0] == "train/episode_return_epsilon_quartile_1"


def test_families_of_tags_have_their_documented_names() -> None:
    assert tags.phase_share_tag("actor", "inference") == "time/actor_inference_share"
    assert tags.restarts_tag("learner") == "health/learner_restarts"


@pytest.mark.parametrize("position", [-0.1, 1.0, math.nan])
def test_position_off_the_ladder_is_refused(position: float) -> None:
    with pytest.raises(ValueError, match=r"Expect 0 <= `ladder_position` < 1, actually"):
        tags.episode_return_quartile_tag(position)
