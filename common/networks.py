"""Q-networks: what actors and learner share, and how their weights travel."""

from __future__ import annotations

import math
from typing import Protocol, assert_never, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config import AgentConfig, Precision
from common.heads import HEADS, Head
from common.torsos import build_torso
from common.types import EnvironmentSpec, ObservationSpec


class QNetwork(nn.Module):
    """Action values of stacked observations: a torso to see with, and an algorithm's head.

    It is the only way from observations to values, for whoever acts and whoever learns.
    """

    def __init__(
        self,
        *,
        observation: ObservationSpec,
        scale: float,
        torso: nn.Module,
        head: Head,
        precision: Precision,
    ) -> None:
        """Put the parts together.

        Args:
          observation: what the network is fed.
          scale: what that is multiplied by first, on the device.
          torso: float32[B, k, *frame_shape] to what the head takes, once it is flattened.
          head: what stands behind it.
          precision: of the products in all layers but the head's last.
        """
        super().__init__()
        self._observation = observation
        self._scale = scale
        self._is_mixed = _is_mixed(precision)
        self.torso = torso
        self.head = head
        # By their own names, as checkpoints have them: a head is no module itself.
        for name, layer in head.layers.items():
            self.add_module(name, layer)
        self._has_batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in self.modules())

    def forward(self, observation: Tensor) -> Tensor:
        """Return float32[B, A] for dtype[B, k, *frame_shape]."""
        return self.values(self.as_float(observation))

    def values(self, floats: Tensor) -> Tensor:
        """Return float32[B, A] for what `as_float` returned, of this network or of its twin."""
        return self.head.values(self.outputs(floats))

    def acting_values(self, floats: Tensor) -> Tensor:
        """Return float32[B, A], the values as an actor would see them, also while this one trains.

        Batch normalisation then works by its running statistics and leaves them alone.
        """
        if not (self.training and self._has_batch_norm):
            return self.values(floats)
        self.eval()
        values = self.values(floats)
        self.train()
        return values

    def outputs(self, floats: Tensor) -> Tensor:
        """Return float32[B, A, ...], what the algorithm learns, for `as_float`'s result."""
        return self.head.outputs(self.features(floats))

    def features(self, floats: Tensor) -> Tensor:
        """Return float32[B, F], the last hidden layer for `as_float`'s result; nearly all work.

        What the head makes of them stays in float32: a value near 10 rounded to bfloat16 is off by
        up to 0.03, which is much beside the difference between two actions. Each pass has its own
        autocast: one keeps the weights that it cast, and in some releases those cast without
        gradient tracking get no gradient later (pytorch issue 158232).
        """
        if not self._is_mixed:
            return self._features(floats)
        with torch.autocast(floats.device.type, torch.bfloat16):
            features = self._features(floats)
        return features.float()

    def _features(self, floats: Tensor) -> Tensor:
        features = self.torso(floats)
        if features.dim() == 4:
            # Channels last, as it lies in memory: flattening is then a view and not a copy.
            features = features.permute(0, 2, 3, 1)
        return self.head.hidden_features(features.flatten(1))

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


def _is_mixed(precision: Precision) -> bool:
    match precision:
        case "float32":
            return False
        case "bfloat16":
            return True
        case _:
            assert_never(precision)


def build_network(
    agent: AgentConfig, spec: EnvironmentSpec, precision: Precision = "float32"
) -> QNetwork:
    """Return the network that `agent` names, in evaluation mode, with the weights of seed 0.

    Whoever wants others calls `initialise` or `load_flat_state`. No global generator is touched.
    The learner's alone may have another precision.

    Raises:
      ValueError: the network cannot see observations of this shape.
    """
    network = _plan_network(agent, spec, precision)
    network.to_empty(device="cpu")
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialise(network, torch.Generator().manual_seed(0))
    return network.eval()


def state_bytes(agent: AgentConfig, spec: EnvironmentSpec) -> int:
    """Return how many bytes the network's parameters and buffers have, without making it.

    Raises:
      ValueError: as `build_network`.
    """
    state = _plan_network(agent, spec, "float32").state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in state)


def _plan_network(agent: AgentConfig, spec: EnvironmentSpec, precision: Precision) -> QNetwork:
    """Return the network on the meta device, where nothing is allocated or drawn."""
    with torch.device("meta"):
        torso, features, hidden = build_torso(agent, spec.observation)
        head = HEADS[agent.algorithm](
            agent=agent,
            features=features,
            hidden=hidden,
            num_actions=spec.num_actions,
        )
        return QNetwork(
            observation=spec.observation,
            scale=spec.scale,
            torso=torso,
            head=head,
            precision=precision,
        )


@runtime_checkable
class Drawn(Protocol):
    """A layer of a kind of its own."""

    def draw(self, generator: torch.Generator) -> None:
        """Set all of its own parameters and buffers, which hold anything before."""
        ...


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw all weights and biases anew, uniform in +-1 / sqrt(fan in), PyTorch's own rule.

    Numbers are drawn on the CPU in the order of modules, so that they depend on the seed alone, and
    not on the device or the memory layout. Batch normalisation goes back to its start, running
    statistics included.

    Args:
      network: changed in place.
      generator: a CPU generator.

    Raises:
      TypeError: a module has parameters or buffers that nobody says how to draw.
    """
    for name, module in network.named_modules():
        if isinstance(module, Drawn):
            module.draw(generator)
        elif type(module) in (nn.Linear, nn.Conv2d):  # one derived from them may hold more
            assert isinstance(module, nn.Linear | nn.Conv2d)
            bound = 1.0 / math.sqrt(module.weight[0].numel())
            for parameter in module.parameters(recurse=False):
                drawn = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
                parameter.data.copy_(drawn)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise TypeError(
                f"Expect `{name}` to be a linear, convolution or batch normalisation layer, or one "
                f"that has `draw`, actually: {type(module).__name__}"
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
