"""Which network goes with which observations, and where a run ends."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from fakes import NOTHING_BEFORE, new_plan

from common.config import AgentConfig, Config
from common.networks import build_network
from common.torsos import network_problems
from common.types import EnvironmentSpec, ObservationSpec

ATARI = ObservationSpec((84, 84), "uint8", 4)
CART = ObservationSpec((40, 90), "uint8", 2)
VECTOR = ObservationSpec((4,), "float32", 1)


def spec_of(observation: ObservationSpec) -> EnvironmentSpec:
    return EnvironmentSpec("game", observation, 2, 4, "")


@pytest.mark.parametrize(
    ("network", "observation", "fits"),
    [
        ("nature_cnn", ATARI, True),
        ("nature_cnn", CART, True),
        ("nature_cnn", ObservationSpec((35, 90), "uint8", 2), False),
        ("nature_cnn", VECTOR, False),
        ("pixel_cnn", CART, True),
        ("pixel_cnn", ATARI, True),
        ("pixel_cnn", ObservationSpec((29, 29), "uint8", 2), True),
        ("pixel_cnn", ObservationSpec((28, 90), "uint8", 2), False),
        ("pixel_cnn", CART._replace(stack=1), False),
        ("pixel_cnn", VECTOR._replace(stack=2), False),
    ],
)
def test_networks_that_do_not_fit_are_named_before_they_are_built(
    network: Any, observation: ObservationSpec, fits: bool
) -> None:
    config, spec = Config(agent=AgentConfig(network=network)), spec_of(observation)
    problems = network_problems(config.agent, spec)
    if fits:
        assert problems == []
        build_network(config.agent, spec)
    else:
        (problem,) = problems
        assert problem.startswith(f"--agent.network {network}: does not fit {observation.stack} ")
        with pytest.raises(ValueError, match=f"for network {network}"):
            build_network(config.agent, spec)


def test_vectors_take_the_mlp_and_pictures_do_not() -> None:
    config = Config(agent=AgentConfig(network="mlp"))
    assert network_problems(config.agent, spec_of(VECTOR)) == []
    for observation in (ATARI, CART):
        (problem,) = network_problems(config.agent, spec_of(observation))
        assert problem.endswith("; must be nature_cnn or nips_cnn or pixel_cnn")


@pytest.mark.parametrize(
    ("observation", "fitting"),
    [
        (ObservationSpec((50, 25), "float32", 1), "nips_cnn"),
        (ObservationSpec((50, 50), "float32", 1), "nature_cnn or nips_cnn"),
        (ObservationSpec((50, 19), "uint8", 1), "mlp"),
        (ObservationSpec((96, 96, 3), "uint8", 1), "mlp"),
        (VECTOR, "mlp"),
    ],
)
@pytest.mark.parametrize("network", ["nature_cnn", "nips_cnn", "pixel_cnn", "mlp"])
def test_message_names_the_networks_that_do_fit(
    network: Any, observation: ObservationSpec, fitting: str
) -> None:
    config, spec = Config(agent=AgentConfig(network=network)), spec_of(observation)
    problems = network_problems(config.agent, spec)
    if network in fitting.split(" or "):
        assert problems == []
        build_network(config.agent, spec)
    else:
        assert problems[0].endswith(f"; must be {fitting}")


def test_run_ends_after_its_frames_or_its_games_less_those_played_before(tmp_path: Path) -> None:
    plan = dataclasses.replace(
        new_plan(Config(total_frames=1_001, total_episodes=30), spec_of(ATARI), tmp_path),
        before=NOTHING_BEFORE._replace(agent_steps=100, episodes=12),
    )
    assert plan.agent_steps_left == 251 - 100  # 1,001 frames are 251 agent steps of 4
    assert plan.episodes_left == 30 - 12
    endless = dataclasses.replace(plan, config=Config(total_frames=1_001))
    assert endless.episodes_left == math.inf
