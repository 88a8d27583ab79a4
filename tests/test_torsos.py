"""Torsos: each says what it can see, and one more takes one entry."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from common.config import AgentConfig, NetworkName
from common.networks import build_network, state_bytes
from common.torsos import TORSOS, PictureTorso, network_problems
from common.types import EnvironmentSpec, ObservationSpec


class Residual(nn.Module):
    """Halves a picture, and adds to it what a convolution makes of it."""

    def __init__(self, stack: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(stack, 6, 5, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = nn.Conv2d(6, 6, 3, 1, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Return float32[B, 6, H', W']."""
        smaller = self.pool(self.first(frames))
        return smaller + self.block(torch.relu(smaller))


RESIDUAL = PictureTorso(
    windows=((5, 1, 0), (3, 2, 1)), channels=6, hidden=7, least_stack=1, make=Residual
)
ANOTHER: Any = AgentConfig(network="residual", dueling=False)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _another_torso(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TORSOS, "residual", RESIDUAL)


def spec_of(*frame_shape: int, stack: int = 2) -> EnvironmentSpec:
    return EnvironmentSpec("game", ObservationSpec(frame_shape, "uint8", stack), 3, 4, "")


def test_every_network_that_can_be_asked_for_has_its_torso() -> None:
    assert set(TORSOS) == {*get_args(NetworkName), "residual"}


def test_one_more_torso_is_built_behind_the_head_that_it_asks_for() -> None:
    spec = spec_of(9, 12)
    network = build_network(ANOTHER, spec)
    assert network(torch.zeros(5, 2, 9, 12, dtype=torch.uint8)).shape == (5, 3)
    # 9 x 12 shrinks to 5 x 8 and 3 x 4.
    convolutions = (2 * 6 * 25 + 6) + (6 * 6 * 9 + 6)
    numbers = convolutions + (6 * 3 * 4) * 7 + 7 + 7 * 3 + 3
    assert state_bytes(ANOTHER, spec) == 4 * numbers
    assert sum(p.numel() for p in network.parameters()) == numbers


def test_one_more_torso_is_offered_where_it_fits_and_refused_where_it_does_not() -> None:
    assert network_problems(ANOTHER, spec_of(9, 12)) == []
    (offered,) = network_problems(AgentConfig(network="nature_cnn"), spec_of(9, 12))
    assert offered.endswith("does not fit 2 frames of shape (9, 12); must be residual")
    (refused,) = network_problems(ANOTHER, spec_of(4, 12))
    assert refused.endswith(
        "--agent.network residual: does not fit 2 frames of shape (4, 12); must be mlp"
    )
    with pytest.raises(ValueError, match="two sizes >= 5 and `stack` >= 1 for network residual"):
        build_network(ANOTHER, spec_of(4, 12))


@pytest.mark.parametrize("name", ["residual", "nature_cnn", "nips_cnn", "pixel_cnn"])
def test_least_frames_of_a_torso_are_the_least_that_its_layers_take(name: str) -> None:
    """Tried size by size, so that what an entry says of itself is what torch makes of it."""
    torso = TORSOS[name]
    stated = re.search(r">= (\d+) and `stack` >= (\d+)$", torso.needs)
    assert stated is not None
    least, least_stack = map(int, stated.groups())
    for side in range(1, 48):
        observation = ObservationSpec((side, 50), "uint8", least_stack)
        assert torso.can_see(observation) == (side >= least)
        layers, features, _ = torso.build(AgentConfig(), observation)
        frames = torch.zeros(1, least_stack, side, 50)
        if side >= least:
            assert layers.eval()(frames).numel() == features
        else:
            with pytest.raises(RuntimeError):
                layers.eval()(frames)
    assert not torso.can_see(ObservationSpec((50, 50), "uint8", least_stack - 1))
    assert not torso.can_see(ObservationSpec((50,), "float32", least_stack))
    assert not torso.can_see(ObservationSpec((50, 50, 50), "uint8", least_stack))
