"""Q-networks: what actors and learner share, and how their weights travel."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import AgentConfig
from common.torsos import build_torso
from common.types import EnvironmentSpec, ObservationSpec


class QNetwork(nn.Module):
    """Action values of stacked observations.

    `torso` makes features, `hidden` is the last hidden layer, if there is one; `value` and
    `advantage` are linear. With two streams (Wang et al. 2016, equation 9)

        Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a').

    The streams' hidden layers are one matrix, value's rows first: the same function, but the
    features are read once and the product is twice as large, which is worth 1 to 3 % of a
    learner step of batch 512 on a CPU.
    """

    def __init__(
        self,
        *,
        observation: ObservationSpec,
        scale: float,
        torso: nn.Module,
        features: int,
        hidden: int,
        num_actions: int,
        dueling: bool,
    ) -> None:
        """Put the parts together.

        Args:
          observation: what the network is fed.
          scale: what that is multiplied by first, on the device.
          torso: float32[B, k, *frame_shape] to anything of `features` numbers per row.
          features: size of the torso's output per row.
          hidden: width of the last hidden layer of each stream; 0: none.
          num_actions: A.
          dueling: two streams, or only the one called `advantage`, which is then Q itself.
        """
        super().__init__()
        self._observation = observation
        self._scale = scale
        self._width = hidden
        self.torso = torso
        self.hidden = nn.Linear(features, hidden * (2 if dueling else 1)) if hidden else None
        self.value = nn.Linear(hidden or features, 1) if dueling else None
        self.advantage = nn.Linear(hidden or features, num_actions)

    def forward(self, observation: Tensor) -> Tensor:
        """Return float32[B, A] for dtype[B, k, *frame_shape]."""
        return self.values(self.as_float(observation))

    def values(self, floats: Tensor) -> Tensor:
        """Return float32[B, A] for what `as_float` returned, of this network or of its twin."""
        return self.heads(self.features(floats))

    def features(self, floats: Tensor) -> Tensor:
        """Return float32[B, F], the last hidden layer for `as_float`'s result; nearly all work."""
        features = self.torso(floats)
        if features.dim() == 4:
            # Channels last, as it lies in memory: flattening is then a view and not a copy.
            features = features.permute(0, 2, 3, 1)
        features = features.flatten(1)
        return features if self.hidden is None else torch.relu(self.hidden(features))

    def heads(self, features: Tensor) -> Tensor:
        """Return float32[B, A], the action values of what `features` returned."""
        if self.value is None:
            return self._linear(self.advantage, features)
        # Without a hidden layer both streams see the same features.
        width = self._width or features.shape[1]
        advantage = self._linear(self.advantage, features[:, -width:])
        value = self._linear(self.value, features[:, :width])
        return value + advantage - advantage.mean(dim=1, keepdim=True)

    def as_float(self, observation: Tensor) -> Tensor:
        """Return float32[B, k, *frame_shape], scaled as the spec says, for the stored dtype."""
        expected = (self._observation.shape, self._observation.dtype)
        actual = (tuple(observation.shape[1:]), str(observation.dtype).removeprefix("torch."))
        assert actual == expected, (actual, expected)
        pictures = observation.dim() == 4
        layout = torch.channels_last if pictures else torch.contiguous_format
        floats = observation.to(torch.float32, memory_format=layout)
        if self._scale == 1.0:
            return floats
        # In place where the conversion has just made this tensor.
        return (
            floats.mul_(self._scale) if observation.dtype == torch.uint8 else floats * self._scale
        )

    @staticmethod
    def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
        output: Tensor = layer(x)
        return output


def build_network(agent: AgentConfig, spec: EnvironmentSpec) -> QNetwork:
    """Return the network that `agent` names, in evaluation mode, with the weights of seed 0.

    Whoever wants others calls `initialise` or `load_flat_state`. No global generator is touched.

    Raises:
      ValueError: the network cannot see observations of this shape.
    """
    network = _plan_network(agent, spec)
    network.to_empty(device="cpu")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialise(network, torch.Generator().manual_seed(0))
    return network.eval()


def state_bytes(agent: AgentConfig, spec: EnvironmentSpec) -> int:
    """Return how many bytes the network's parameters and buffers have, without making it.

    Raises:
      ValueError: as `build_network`.
    """
    state = _plan_network(agent, spec).state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in state)


def _plan_network(agent: AgentConfig, spec: EnvironmentSpec) -> QNetwork:
    """Return the network on the meta device, where nothing is allocated or drawn."""
    with torch.device("meta"):
        torso, features, hidden = build_torso(agent, spec.observation)
        return QNetwork(
            observation=spec.observation,
            scale=spec.scale,
            torso=torso,
            features=features,
            hidden=hidden,
            num_actions=spec.num_actions,
            dueling=agent.dueling,
        )


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights and biases anew, uniform in +-1 / sqrt(fan in), PyTorch's own rule.

    Numbers are drawn on the CPU in the order of modules, so that they depend on the seed alone, and
    not on the device or the memory layout. Batch normalisation goes back to its start, running
    statistics included.

    Args:
      network: changed in place.
      generator: a CPU generator.

    Raises:
      TypeError: a module has parameters that this function does not know how to draw.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.data.copy_(drawn)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
        elif any(True for _ in module.parameters(recurse=False)):
            raise TypeError(
                f"Expect `{name}` to be a linear, convolution or batch normalisation layer, "
                f"actually: {type(module).__name__}"
            )


def flatten_state(network: nn.Module) -> NDArray[np.uint8]:
    """Return uint8[P], a copy of every parameter and buffer back to back, as in `state_dict`.

    Buffers (batch normalisation's running statistics and its int64 counter) go along: without them
    an actor would act on other values than the learner's. One copy from the device: a CPU-GPU sync
    point.
    """
    parts = [
        # Contiguous means the logical order of elements, whatever the layout in memory.
        tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        for tensor in network.state_dict().values()
    ]
    flat: NDArray[np.uint8] = torch.cat(parts).cpu().numpy()
    return flat


def expect_flat_state(agent: AgentConfig, spec: EnvironmentSpec, buffer: NDArray[np.uint8]) -> None:
    """Raise ValueError unless `buffer` is as long as the network's state, which is not made."""
    _expect_buffer(buffer, state_bytes(agent, spec))


def _expect_buffer(buffer: NDArray[np.uint8], num_bytes: int) -> None:
    if buffer.dtype != np.uint8 or buffer.shape != (num_bytes,):
        raise ValueError(
            f"Expect `buffer` uint8[{num_bytes}], the weights of this network, "
            f"actually: {buffer.dtype}[{', '.join(map(str, buffer.shape))}]"
        )


def load_flat_state(network: nn.Module, buffer: NDArray[np.uint8]) -> None:
    """Write what `flatten_state` returned into a network of the same architecture, in place.

    Args:
      network: changed in place, on any device.
      buffer: uint8[P]; may be read-only, as Ray's arrays are, and is not kept.

    Raises:
      ValueError: the buffer is not one of this architecture's; nothing was changed.
    """
    tensors = list(network.state_dict().values())
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    _expect_buffer(buffer, sum(sizes))
    if not tensors:
        return
    flat = torch.from_numpy(buffer.copy()).to(tensors[0].device)
    with torch.no_grad():
        for tensor, part in zip(tensors, torch.split(flat, sizes), strict=True):
            # A clone starts at an aligned address, which a view as a wider type needs.
            tensor.copy_(part.clone().view(tensor.dtype).reshape(tensor.shape))
