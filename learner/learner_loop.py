"""Next batch -> step -> priorities -> publish: the plain loop of the learner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from common.metrics import PhaseTimer
from common.networks import flatten_state
from common.reports import LearnerReport, SaveStatus
from common.types import PriorityUpdate, Weights, WeightsVersion
from learner.device_batch import DeviceBatch
from learner.learner import Learner

# Weights travel at most so often, however fast the learner steps.
_LEAST_PUBLISH_S = 1.0


class _Unsent(NamedTuple):
    """Priorities on their way to the host.

    Fields:
      learner_step: the step that found them.
      ids: int64[B].
      priority: float32[B], on the host.
      copied: set once they have arrived; None: they have.
    """

    learner_step: int
    ids: NDArray[np.int64]
    priority: torch.Tensor
    copied: torch.cuda.Event | None


class Fetcher(Protocol):
    """Where device batches come from; see learner.prefetch."""

    def get(self, timeout_s: float) -> tuple[NDArray[np.int64], DeviceBatch] | None:
        """Return the next batch and its ids, or None if there is none in time."""
        ...


class LearnerLoop:
    """Turns batches into weights and priorities.

    The loop it lives in:

        loop.publish()                  # before anything acts
        while not done:
            loop.run_step(timeout_s)    # False: replay had nothing yet
            loop.publish_if_due()

    Priorities of a step leave once the next step is launched, so a CUDA device never waits for
    them. What is not finite does not leave: no priority reaches replay, no weights an actor or a
    checkpoint. One thread only.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        fetcher: Fetcher,
        send_priorities: Callable[[PriorityUpdate], None],
        send_weights: Callable[[Weights], None],
        agent_steps: Callable[[], int],
        episodes: Callable[[], int],
        incarnation: int,
        publish_period_learner_steps: int,
        samples: int,
        clock: Callable[[], float],
    ) -> None:
        """Wire the loop.

        Args:
          learner: networks and optimiser.
          fetcher: device batches.
          send_priorities: takes new priorities and does not wait.
          send_weights: takes weights for the actors and does not wait.
          agent_steps: agent steps of the whole run that replay has accepted.
          episodes: training games of the whole run that have ended.
          incarnation: how many times the run's learner was started before.
          publish_period_learner_steps: learner steps between two sets of weights.
          samples: transitions trained on before, in a resumed run.
          clock: seconds, monotonic.
        """
        self._learner = learner
        self._fetcher = fetcher
        self._send_priorities = send_priorities
        self._send_weights = send_weights
        self._agent_steps = agent_steps
        self._episodes = episodes
        self._incarnation = incarnation
        self._publish_period = publish_period_learner_steps
        self._samples = samples
        self._clock = clock
        self._published_s = -math.inf
        self._published: Weights | None = None
        self._unsent: _Unsent | None = None
        self._names: tuple[str, ...] = ()  # of the metrics
        # One for each metric from the first step on.
        self._sums = torch.zeros((), device=learner.device)
        self._steps_since_report = 0
        self._timer = PhaseTimer()

    @property
    def samples(self) -> int:
        """Transitions trained on, over all incarnations."""
        return self._samples

    @property
    def agent_steps(self) -> int:
        """Agent steps of the whole run that replay has accepted."""
        return self._agent_steps()

    @property
    def episodes(self) -> int:
        """Training games of the whole run that have ended."""
        return self._episodes()

    @property
    def version(self) -> WeightsVersion:
        """Version of the weights as they are now."""
        return WeightsVersion(self._incarnation, self._learner.learner_step)

    def publish(self) -> None:
        """Send the weights as they are now.

        Raises:
          FloatingPointError: as `weights`; nothing was sent.
        """
        with self._timer.phase("publish"):
            self._send(Weights(self.version, self.weights(), self._agent_steps()))

    def publish_if_due(self) -> None:
        """Publish if enough learner steps were taken since the last time, and a second is over.

        Raises:
          FloatingPointError: as `weights`; nothing was sent.
        """
        if self._unpublished_steps() >= self._publish_period and self._is_second_over():
            self.publish()

    def republish(self) -> None:
        """Send the weights sent last once more if the run has come to more agent steps since.

        The actors' exploration may follow these, and they come no other way. Another thread may
        call this while `run_step` does not run.
        """
        agent_steps = self._agent_steps()
        if self._published is not None and self._published.agent_steps != agent_steps:
            self._send(self._published._replace(agent_steps=agent_steps))

    def _send(self, weights: Weights) -> None:
        self._send_weights(weights)
        self._published, self._published_s = weights, self._clock()

    def _unpublished_steps(self) -> int:
        published = -1 if self._published is None else self._published.version.learner_step
        return self._learner.learner_step - published

    def _is_second_over(self) -> bool:
        return self._clock() - self._published_s >= _LEAST_PUBLISH_S

    def weights(self) -> NDArray[np.uint8]:
        """Return uint8[P], as `flatten_state`: the one door by which weights leave the learner.

        Raises:
          FloatingPointError: one of them is not finite.
        """
        expect_finite(self._learner.network.state_dict(), self._learner.learner_step)
        return flatten_state(self._learner.network)

    def waiting(self) -> AbstractContextManager[None]:
        """Book the time inside the `with` block as waiting, like that for a batch."""
        return self._timer.phase("wait")

    def run_step(self, timeout_s: float) -> bool:
        """Take one learner step; return False if no batch came in time.

        While none comes, as replay fills, weights are published again with the agent steps that
        the run has come to: the actors' exploration may follow these, and they come no other way.

        Raises:
          FloatingPointError: as `flush_priorities`.
        """
        with self._timer.phase("wait"):
            fetched = self._fetcher.get(timeout_s)
        if fetched is None:
            if self._unpublished_steps() == 0 and self._is_second_over():
                self.republish()
            return False
        ids, batch = fetched
        with self._timer.phase("step"):
            result = self._learner.step(batch)
            self._learner.count_episodes(self._episodes())
        with self._timer.phase("priorities"):
            self.flush_priorities()
            self._unsent = _Unsent(self._learner.learner_step, ids, *_copy_to_host(result.priority))
        self._names = tuple(result.metrics)
        self._sums = self._sums + torch.stack(list(result.metrics.values())).float()
        self._steps_since_report += 1
        self._samples += len(ids)
        return True

    def flush_priorities(self) -> None:
        """Send the priorities of the step before.

        Raises:
          FloatingPointError: one of them is not finite; none was sent.
        """
        if self._unsent is not None:
            learner_step, ids, on_host, copied = self._unsent
            self._unsent = None
            if copied is not None:
                copied.synchronize()
            priority = on_host.numpy()
            finite = np.isfinite(priority)
            if not finite.all():
                raise FloatingPointError(
                    f"Expect finite priorities from the learner, actually at learner step "
                    f"{learner_step}: {priority[~finite][0]}"
                )
            self._send_priorities(PriorityUpdate(ids, priority))

    def report(self, *, dropped_priority_updates: int, save: SaveStatus) -> LearnerReport:
        """Return what happened since the last report.

        Waits for the device, so call it about once a second.

        Args:
          dropped_priority_updates: how many priorities went nowhere so far.
          save: how checkpoints go.

        Raises:
          FloatingPointError: the loss, the gradient or another of the metrics is no longer finite;
            training on would be worthless.
        """
        metrics: dict[str, float] = {}
        if steps := self._steps_since_report:
            metrics = dict(zip(self._names, (self._sums / steps).tolist(), strict=True))
        self._sums = torch.zeros_like(self._sums)
        self._steps_since_report = 0
        if not all(map(math.isfinite, metrics.values())):
            numbers = ", ".join(f"{name} {mean}" for name, mean in metrics.items())
            raise FloatingPointError(
                f"Expect finite numbers from the learner, actually at learner step "
                f"{self._learner.learner_step}: {numbers}"
            )
        return LearnerReport(
            version=self.version,
            learner_step=self._learner.learner_step,
            samples=self._samples,
            agent_steps=self._agent_steps(),
            metrics=metrics,
            phases=self._timer.drain(),
            dropped_priority_updates=dropped_priority_updates,
            save=save,
        )


def expect_finite(state: Mapping[str, torch.Tensor], learner_step: int) -> None:
    """Raise FloatingPointError unless every tensor is finite. A CPU-GPU sync point.

    A tensor with a NaN has NaN as its least and largest. Finding these takes 0.5 ms for nature_cnn
    on one core, at most once a second, as flattening does; `isfinite` over all takes 7 ms.

    Args:
      state: tensors by name; those of integers are finite.
      learner_step: for the message.
    """
    tensors = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    extremes = torch.stack([torch.stack(torch.aminmax(tensor)) for tensor in tensors.values()])
    finite = extremes.isfinite()
    if not finite.all():
        name = list(tensors)[int(finite.all(dim=1).logical_not().nonzero()[0])]
        raise FloatingPointError(
            f"Expect finite numbers from the learner, actually at learner step {learner_step}: "
            f"{float(extremes[~finite][0])} in `{name}`"
        )


def _copy_to_host(priority: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    """Start copying to pinned memory; the event says when it is done (None: it is already)."""
    if priority.device.type != "cuda":
        return priority, None
    host = torch.empty(priority.shape, dtype=priority.dtype, pin_memory=True)
    host.copy_(priority, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event
