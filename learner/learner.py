"""The learner: networks, algorithm, optimiser; `step(batch)` is one gradient update."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common.config import AgentConfig, LearnerConfig
from common.endings import RunEnded
from common.networks import QNetwork, build_network, initialise
from common.types import EnvironmentSpec
from learner.algorithms.table import ALGORITHMS
from learner.device_batch import DeviceBatch
from learner.losses import weighted_mean
from learner.optimizers import make_optimizer

# Keeps the clipping factor finite, as in torch.nn.utils.clip_grad_norm_.
_NORM_EPSILON = 1e-6
# Of a compiler's error; with its include paths some are pages.
_REASON_CHARACTERS = 300
# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


class StepResult(NamedTuple):
    """What one learner step says, all on the device: reading a number waits for it.

    Fields:
      priority: float32[B], the algorithm's, not importance-weighted.
      metrics: float32[] each, by name, the same names with every step; each becomes a curve of the
        run. `td_loss` is the importance-weighted mean loss, `grad_norm` the global norm of the
        gradient before clipping; between them stand the algorithm's own.
    """

    priority: Tensor
    metrics: Mapping[str, Tensor]


class Learner:
    """Descends the losses of an algorithm, with importance weights.

    The loop it lives in:

        learner.warm_up()                  # optional: compile now, not in the first step
        while True:
            result = learner.step(batch)   # launches work on CUDA and does not wait for it
            send(result.priority)

    One thread only.
    """

    def __init__(
        self,
        *,
        agent: AgentConfig,
        config: LearnerConfig,
        spec: EnvironmentSpec,
        device: torch.device,
        seed: int,
        compile_step: bool,
    ) -> None:
        """Build the networks and the optimiser.

        Args:
          agent: algorithm and network.
          config: the optimisation.
          spec: the environment.
          device: where to learn.
          seed: of the weights.
          compile_step: torch.compile the update, in `warm_up` or with the first step.
        """
        self._config = config
        self._spec = spec
        self._device = device
        self._algorithm = ALGORITHMS[agent.algorithm](agent, config)
        self._network = build_network(agent, spec, config.precision).to(device)
        initialise(self._network, torch.Generator().manual_seed(seed))
        self._network.train()
        # Built apart rather than copied, so that not one tensor can be shared.
        self._target = build_network(agent, spec, config.precision).to(device)
        self._target.requires_grad_(False)
        self._copy_target()
        self._parameters = list(self._network.parameters())
        self._optimizer = make_optimizer(config, self._parameters)
        self._learner_step = 0
        self._episodes = 0
        self._be_eager()
        if compile_step:
            self._is_compiled = True
            self._run_gradients = _compiled(self._gradients)
            if self._optimizer.compiles:
                self._run_optimizer = _compiled(self._optimizer.update)

    @property
    def network(self) -> QNetwork:
        """The online network."""
        return self._network

    @property
    def target(self) -> QNetwork:
        """The target network."""
        return self._target

    @property
    def device(self) -> torch.device:
        """Where the learner learns."""
        return self._device

    @property
    def is_compiled(self) -> bool:
        """Whether the update is compiled."""
        return self._is_compiled

    @property
    def learner_step(self) -> int:
        """Gradient updates done, over all incarnations."""
        return self._learner_step

    def step(self, batch: DeviceBatch) -> StepResult:
        """Take one gradient step and copy the target when it is due; never wait for the device."""
        result = self._update(batch)
        self._learner_step += 1
        by_steps = self._config.target_period_episodes is None
        if by_steps and self._learner_step % self._config.target_period_learner_steps == 0:
            self._copy_target()
        return result

    def count_episodes(self, episodes: int) -> None:
        """Take how many training games of the run have ended; copy the target when it is due.

        With a period of P games, that is when another multiple of P was reached or passed.
        """
        period, before = self._config.target_period_episodes, self._episodes
        self._episodes = episodes
        if period is not None and episodes // period > before // period:
            self._copy_target()

    def warm_up(self) -> str:
        """Compile: run one update on zeros and take it back, so that nothing has changed.

        Returns:
          One line, where the update cannot be compiled here and so is eager from now on; else "".

        Raises:
          RunEnded: the same under `learner.compile on`. What fails eagerly, too, comes as it is.
        """
        try:
            self._try_update()
        except Exception as error:  # an import, a file, a compiler: anything may fail on the way
            if not self._is_compiled:
                raise
            self._be_eager()
            self._try_update()
            reason = _compilers_reason(error)
            if self._config.compile == "on":
                rule = "must not be on where steps cannot be compiled"
                raise RunEnded(f"--learner.compile on: {rule}: {reason}") from error
            return f"steps are not compiled: {reason}"
        return ""

    def _try_update(self) -> None:
        tensors = self._state_tensors()
        before = [tensor.clone() for tensor in tensors]
        try:
            self._update(self._zero_batch())
        finally:
            # In place: the compiled step holds on to these very tensors.
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(old)

    def _be_eager(self) -> None:
        self._is_compiled = False
        self._run_gradients = self._gradients
        self._run_optimizer = self._optimizer.update

    def state_dict(self) -> dict[str, Any]:
        """Return copies on the CPU of all that `step` depends on, as `checkpoint.save` takes it."""
        return {
            "network": _copies(self._network),
            "target": _copies(self._target),
            "optimizer": {
                "name": type(self._optimizer).__name__,
                "state": {
                    name: [tensor.to("cpu", copy=True) for tensor in tensors]
                    for name, tensors in self._optimizer.state.items()
                },
            },
            "learner_step": self._learner_step,
            "episodes": self._episodes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, in place.

        The next step then equals the one that the saved learner would have taken, bit for bit.

        Raises:
          ValueError: the state is of another architecture or optimiser; nothing was changed.
        """
        optimizer = state["optimizer"]
        actual = type(self._optimizer).__name__
        if optimizer["name"] != actual:
            raise ValueError(
                f"Expect the state of optimizer {actual}, actually: {optimizer['name']}"
            )
        pairs = [
            *_match("network", self._network.state_dict(), state["network"]),
            *_match("target", self._target.state_dict(), state["target"]),
        ]
        saved = optimizer["state"]
        for name, tensors in self._optimizer.state.items():
            here = dict(enumerate(tensors))
            pairs += _match(f"optimizer {name}", here, dict(enumerate(saved.get(name, []))))
        with torch.no_grad():
            for tensor, old in pairs:
                tensor.copy_(old)
        self._learner_step = int(state["learner_step"])
        self._episodes = int(state["episodes"])

    def _update(self, batch: DeviceBatch) -> StepResult:
        """Move the online weights."""
        result, gradients = self._run_gradients(batch)
        with torch.no_grad():
            self._run_optimizer(self._parameters, gradients)
        return result

    def _gradients(self, batch: DeviceBatch) -> tuple[StepResult, list[Tensor]]:
        """Return the result and the clipped gradients; all of this gets compiled."""
        losses = self._algorithm.loss(self._network, self._target, batch)
        td_loss = weighted_mean(losses.loss, batch.weight)
        gradients = torch.autograd.grad(td_loss, self._parameters)
        with torch.no_grad():
            clipped, grad_norm = clip_gradients(
                gradients, self._config.max_grad_norm, self._config.max_grad_value
            )
        metrics = {"td_loss": td_loss, **losses.metrics, "grad_norm": grad_norm}
        detached = {name: number.detach() for name, number in metrics.items()}
        return StepResult(losses.priority.detach(), detached), clipped

    def _zero_batch(self) -> DeviceBatch:
        """Return a batch like those to come. No tensor twice: that would compile apart."""
        rows = self._config.batch_size
        observation = self._spec.observation
        pixels = (rows, *observation.shape)
        dtype = getattr(torch, observation.dtype)
        return DeviceBatch(
            weight=torch.zeros(rows, device=self._device),
            s_tm1=torch.zeros(pixels, dtype=dtype, device=self._device),
            a_tm1=torch.zeros(rows, dtype=torch.int64, device=self._device),
            r_t=torch.zeros(rows, device=self._device),
            discount_t=torch.zeros(rows, device=self._device),
            s_t=torch.zeros(pixels, dtype=dtype, device=self._device),
        )

    def _copy_target(self) -> None:
        """Copy every parameter and buffer into the target's own storage."""
        online = self._network.state_dict().values()
        target = self._target.state_dict().values()
        with torch.no_grad():
            for theirs, ours in zip(target, online, strict=True):
                theirs.copy_(ours)

    def _state_tensors(self) -> list[Tensor]:
        """Return every tensor that an update may change, without gradient tracking."""
        return [
            *self._network.state_dict().values(),
            *self._target.state_dict().values(),
            *(tensor for tensors in self._optimizer.state.values() for tensor in tensors),
        ]


def clip_gradients(
    gradients: Sequence[Tensor], max_norm: float | None, max_value: float | None
) -> tuple[list[Tensor], Tensor]:
    """Return the clipped gradients and their global norm before clipping; no CPU-GPU sync.

    Args:
      gradients: one tensor per parameter.
      max_norm: scale all of them down so that their global norm is at most this (Pascanu et al.
        2013); None: off.
      max_value: then clip each element to +- this; None: off.
    """
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    clipped = list(gradients)
    if max_norm is not None:
        scale = (max_norm / (norm + _NORM_EPSILON)).clamp(max=1.0)
        clipped = [gradient * scale for gradient in clipped]
    if max_value is not None:
        clipped = [gradient.clamp(-max_value, max_value) for gradient in clipped]
    return clipped, norm


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.to("cpu", copy=True) for name, tensor in network.state_dict().items()}


def _match(
    what: str, here: dict[Any, Tensor], saved: dict[Any, Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Return (own tensor, saved tensor) pairs, or say where the two differ."""
    ours = {name: tuple(tensor.shape) for name, tensor in here.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    for name in ours.keys() | theirs.keys():
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"Expect the state of this configuration's {what}; at `{name}` it has shape "
                f"{theirs.get(name, 'nothing')}, actually needed: {ours.get(name, 'nothing')}"
            )
    return [(tensor, saved[name]) for name, tensor in here.items()]


def _compiled(update: Any) -> Any:
    """Return what compiles `update` with the first call, in one graph where torch can do that."""

    @functools.cache
    def compiled() -> Any:
        # Since some release after 2.9 torch.autograd.grad can be a part of the graph, if told so;
        # elsewhere the graph breaks there into the two compiled halves around it. The switch is for
        # the process, as everything of torch.compile.
        import torch._dynamo.config as dynamo  # makes its cache's folder, or fails to

        if hasattr(dynamo, "trace_autograd_ops"):
            dynamo.trace_autograd_ops = True
        return torch.compile(update, dynamic=False)

    return lambda *arguments: compiled()(*arguments)


def _compilers_reason(error: Exception) -> str:
    """Return one line: torch's, and of a compiler that was run the command and its own error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if "Command:" in lines and "Output:" in lines:
        command, output = (lines[lines.index(part) + 1 :] for part in ("Command:", "Output:"))
        errors = [line for line in output if "error" in line.lower()]
        reason += f": {command[0].split()[0]}: {(errors or output or ['said nothing'])[0]}"
    return reason[:_REASON_CHARACTERS]


def tune_allocator() -> bool:
    """Make malloc keep big blocks; return False where malloc is not glibc's.

    A step on the CPU allocates hundreds of megabytes of temporaries, and by default each is mapped,
    zeroed page by page and unmapped again: plain compiled steps of batch 512 went from 1,280 to
    1,600 samples/s on two cores with this. One arena serves all threads, since only the main one
    obeys, and Ray runs the learner in another thread (977 and 1,176 eager samples/s, 1,373 and
    1,379 with one arena). The process then never shrinks, so the learner's process calls it, at its
    start, and nothing does at import.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    largest_int = 2**31 - 1
    # Each returns 1 for success.
    return bool(
        libc.mallopt(_M_ARENA_MAX, 1)
        and libc.mallopt(_M_MMAP_MAX, 0)
        and libc.mallopt(_M_TRIM_THRESHOLD, largest_int)
    )
