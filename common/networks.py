"""Q-networks: what actors and learner share, and how their weights travel."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import AgentConfig
from common.types import EnvironmentSpec, ObservationSpec


class _Shape(NamedTuple):
    """What a convolutional network is made of.

    Fields:
      layers: output channels, kernel size and stride of each convolution.
      hidden: width of the last hidden layer; 0: none.
      of_differences: it sees each frame less the one before, and normalises every convolution.
    """

    layers: tuple[tuple[int, int, int], ...]
    hidden: int
    of_differences: bool


_CONVOLUTIONAL = {
    # Mnih et al. 2015, Methods.
    "nature_cnn": _Shape(((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512, of_differences=False),
    # Mnih et al. 2013, section 4.1: under a third of the arithmetic.
    "nips_cnn": _Shape(((16, 8, 4), (32, 4, 2)), 256, of_differences=False),
    # For CartPole's pixels (the PyTorch DQN tutorial of 2017).
    "pixel_cnn": _Shape(((16, 5, 2), (32, 5, 2), (32, 5, 2)), 0, of_differences=True),
}


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
    observation = spec.observation
    with torch.device("meta"):
        if agent.network in _CONVOLUTIONAL:
            shape = _CONVOLUTIONAL[agent.network]
            torso, features = _convolutional_torso(agent.network, observation)
            hidden = shape.hidden
        else:
            torso, features = _mlp_torso(observation, agent.hidden[:-1])
            hidden = agent.hidden[-1]
        return QNetwork(
            observation=observation,
            scale=spec.scale,
            torso=torso,
            features=features,
            hidden=hidden,
            num_actions=spec.num_actions,
            dueling=agent.dueling,
        )


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


def network_problems(agent: AgentConfig, spec: EnvironmentSpec) -> list[str]:
    """Return a line, with those that fit, if the network does not fit the observations."""
    network, seen = agent.network, spec.observation
    # mlp takes anything, but is meant for what no other can see.
    fitting = [name for name in _CONVOLUTIONAL if _sizes_left(name, seen)] or ["mlp"]
    if network in fitting:
        return []
    return [
        f"--agent.network {network}: does not fit {seen.stack} frames of shape {seen.frame_shape}; "
        f"must be {' or '.join(fitting)}"
    ]


def _sizes_left(name: str, observation: ObservationSpec) -> list[int]:
    """Return what the convolutions leave of the two sides of a frame; [] if they cannot see it."""
    shape, sizes = _CONVOLUTIONAL[name], list(observation.frame_shape)
    for _, kernel, stride in shape.layers:
        sizes = [(size - kernel) // stride + 1 for size in sizes]
    is_seen = len(sizes) == 2 and min(sizes) > 0 and observation.stack > shape.of_differences
    return sizes if is_seen else []


def _convolutional_torso(name: str, observation: ObservationSpec) -> tuple[nn.Module, int]:
    """Return the convolutions of the network `name` and how many numbers they put out."""
    shape, sizes = _CONVOLUTIONAL[name], _sizes_left(name, observation)
    if not sizes:
        least, least_stack = 1, 1 + shape.of_differences
        for _, kernel, stride in reversed(shape.layers):
            least = (least - 1) * stride + kernel
        raise ValueError(
            f"Expect `frame_shape` of two sizes >= {least} and `stack` >= {least_stack} for "
            f"network {name}, actually: {observation.frame_shape} and {observation.stack}; vector "
            "observations take mlp"
        )
    layers: list[nn.Module] = []
    channels = observation.stack
    if shape.of_differences:
        layers.append(FrameDifferences())
        channels -= 1
    for outputs, kernel, stride in shape.layers:
        # The normalisation would take any bias out again.
        bias = not shape.of_differences
        layers.append(nn.Conv2d(channels, outputs, kernel, stride, bias=bias))
        if shape.of_differences:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU())
        channels = outputs
    return nn.Sequential(*layers), channels * sizes[0] * sizes[1]


def _mlp_torso(observation: ObservationSpec, widths: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Return all hidden layers but the last, and how many numbers they put out."""
    layers: list[nn.Module] = [nn.Flatten()]
    features = math.prod(observation.shape)
    for width in widths:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers), features


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
