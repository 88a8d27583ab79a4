"""What a network sees with: one entry for each `agent.network`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from common.config import AgentConfig
from common.types import EnvironmentSpec, ObservationSpec


class Seeing(NamedTuple):
    """A torso for observations of one shape.

    Fields:
      torso: float32[B, k, *frame_shape] to anything of `features` numbers per row.
      features: size of the torso's output per row.
      hidden: width of the head's hidden layer behind it; 0: none.
    """

    torso: nn.Module
    features: int
    hidden: int


class Torso(Protocol):
    """One way to see."""

    @property
    def needs(self) -> str:
        """What observations it asks for."""
        ...

    def can_see(self, observation: ObservationSpec) -> bool:
        """Return whether these observations are such."""
        ...

    def build(self, agent: AgentConfig, observation: ObservationSpec) -> Seeing:
        """Return the layers for observations that it can see."""
        ...


class PictureTorso(NamedTuple):
    """Convolutions over a stack of frames.

    Fields:
      windows: size, stride and padding, in pixels, of all that makes frames smaller: convolutions
        and poolings, in their order.
      channels: of what comes out.
      hidden: width of the head's hidden layer; 0: none.
      least_stack: frames that an observation must have.
      make: returns the layers for so many frames.
    """

    windows: tuple[tuple[int, int, int], ...]
    channels: int
    hidden: int
    least_stack: int
    make: Callable[[int], nn.Module]

    @property
    def needs(self) -> str:
        """The least frames."""
        least = 1
        for size, stride, padding in reversed(self.windows):
            least = max(1, (least - 1) * stride + size - 2 * padding)
        return f"`frame_shape` of two sizes >= {least} and `stack` >= {self.least_stack}"

    def can_see(self, observation: ObservationSpec) -> bool:
        """Return whether anything is left of a frame, and the stack is deep enough."""
        sides = self._sides_left(observation)
        return len(sides) == 2 and min(sides) > 0 and observation.stack >= self.least_stack

    def build(self, agent: AgentConfig, observation: ObservationSpec) -> Seeing:
        """Return the layers."""
        features = self.channels * math.prod(self._sides_left(observation))
        return Seeing(self.make(observation.stack), features, self.hidden)

    def _sides_left(self, observation: ObservationSpec) -> list[int]:
        sides = list(observation.frame_shape)
        for size, stride, padding in self.windows:
            sides = [(side + 2 * padding - size) // stride + 1 for side in sides]
        return sides


class VectorTorso:
    """Linear layers of `agent.hidden` over whatever there is, flattened."""

    needs = "anything"

    def can_see(self, observation: ObservationSpec) -> bool:
        """Return True."""
        return True

    def build(self, agent: AgentConfig, observation: ObservationSpec) -> Seeing:
        """Return all hidden layers but the last, which is the head's."""
        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(observation.shape)
        *widths, hidden = agent.hidden
        for width in widths:
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        return Seeing(nn.Sequential(*layers), features, hidden)


class FrameDifferences(nn.Module):
    """Each frame of a stack subtracted from the one before it.

    CartPole's frames hold ink on an empty sheet, the screen's negative (actors.cartpole_pixels), so
    this is the screen less the one before.
    """

    def forward(self, frames: Tensor) -> Tensor:
        """Return float32[B, k - 1, H, W] for float32[B, k, H, W]."""
        differences = frames[:, :-1] - frames[:, 1:]
        # Or the convolutions would copy them each time: a third of the pass on a CPU.
        return differences.contiguous(memory_format=torch.channels_last)


def _convolutions(
    *layers: tuple[int, int, int], hidden: int, of_differences: bool = False
) -> PictureTorso:
    """Return a torso of convolutions without padding.

    Args:
      layers: output channels, kernel size and stride of each.
      hidden: width of the head's hidden layer; 0: none.
      of_differences: it sees each frame less the one before, and normalises every convolution.
    """

    def make(stack: int) -> nn.Module:
        channels, made = stack, list[nn.Module]()
        if of_differences:
            made.append(FrameDifferences())
            channels -= 1
        for outputs, kernel, stride in layers:
            # The normalisation would take any bias out again.
            made.append(nn.Conv2d(channels, outputs, kernel, stride, bias=not of_differences))
            if of_differences:
                made.append(nn.BatchNorm2d(outputs))
            made.append(nn.ReLU())
            channels = outputs
        return nn.Sequential(*made)

    return PictureTorso(
        windows=tuple((kernel, stride, 0) for _, kernel, stride in layers),
        channels=layers[-1][0],
        hidden=hidden,
        least_stack=2 if of_differences else 1,
        make=make,
    )


# For what no other can see.
_LAST_RESORT = "mlp"

TORSOS: dict[str, Torso] = {
    # Mnih et al. 2015, Methods.
    "nature_cnn": _convolutions((32, 8, 4), (64, 4, 2), (64, 3, 1), hidden=512),
    # Mnih et al. 2013, section 4.1: under a third of the arithmetic.
    "nips_cnn": _convolutions((16, 8, 4), (32, 4, 2), hidden=256),
    # For CartPole's pixels (the PyTorch DQN tutorial of 2017).
    "pixel_cnn": _convolutions((16, 5, 2), (32, 5, 2), (32, 5, 2), hidden=0, of_differences=True),
    _LAST_RESORT: VectorTorso(),
}
"""By `agent.network`."""


def build_torso(agent: AgentConfig, observation: ObservationSpec) -> Seeing:
    """Return the torso that `agent` names.

    Raises:
      ValueError: it cannot see observations of this shape.
    """
    torso = TORSOS[agent.network]
    if not torso.can_see(observation):
        raise ValueError(
            f"Expect {torso.needs} for network {agent.network}, actually: "
            f"{observation.frame_shape} and {observation.stack}; vector observations take "
            f"{_LAST_RESORT}"
        )
    return torso.build(agent, observation)


def network_problems(agent: AgentConfig, spec: EnvironmentSpec) -> list[str]:
    """Return a line, with those that fit, if the network does not fit the observations."""
    seen = spec.observation
    able = [name for name, torso in TORSOS.items() if torso.can_see(seen)]
    # The last resort can see anything.
    fitting = [name for name in able if name != _LAST_RESORT] or able
    if agent.network in fitting:
        return []
    return [
        f"--agent.network {agent.network}: does not fit {seen.stack} frames of shape "
        f"{seen.frame_shape}; must be {' or '.join(fitting)}"
    ]
