"""Builds the learner's cores from the configuration: the same for Ray and for `--serial`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, assert_never

import torch

from common.config import Config
from common.machine import available_cores
from common.networks import QNetwork
from common.seeding import derive_seed
from common.types import EnvironmentSpec, PriorityUpdate, Weights, WeightsVersion
from learner.learner import Learner
from learner.learner_loop import Fetcher, LearnerLoop
from learner.trained import load_trained
from replay.sampler import ReplaySampler


def resolve_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device that `learner.device` means on this machine."""
    match name:
        case "auto":
            return resolve_device("cuda" if torch.cuda.is_available() else "cpu")
        case "cpu":
            return torch.device("cpu")
        case "cuda":
            return torch.device("cuda:0")
        case _:
            assert_never(name)


def resolve_threads(threads: int, neighbours: int) -> int:
    """Return how many threads torch gets: as told, or what the neighbours leave, one at least.

    Torch's threads meet at the end of every operation, so that one that has to share its core
    holds up all: beside one busy process, two threads on two cores learned a tenth of what one
    does (docs/decisions.md).

    Args:
      threads: `learner.threads`, 0 to find out.
      neighbours: other busy processes on this host.
    """
    return threads or max(1, available_cores() - neighbours)


def make_learner(
    config: Config, spec: EnvironmentSpec, *, device: torch.device, serial: bool
) -> Learner:
    """Return the networks and the optimiser, initialised from the run's seed.

    Args:
      config: the run.
      spec: its environment.
      device: where to learn.
      serial: one process for everything; then `learner.compile auto` means off, to start fast.
    """
    return Learner(
        agent=config.agent,
        config=config.learner,
        spec=spec,
        device=device,
        seed=derive_seed(config.seed, "network", 0),
        compile_step=_compiles(config.learner.compile, serial),
    )


def _compiles(choice: Literal["auto", "on", "off"], serial: bool) -> bool:
    match choice:
        case "auto":
            return not serial
        case "on":
            return True
        case "off":
            return False
        case _:
            assert_never(choice)


class Counts(Protocol):
    """What came into replay since this start of the run; a ReplaySampler knows it, too."""

    @property
    def accepted(self) -> int:
        """Transitions that replay accepted; each is one agent step."""
        ...

    @property
    def episodes(self) -> int:
        """Training games that ended."""
        ...


def make_learner_loop(
    config: Config,
    *,
    learner: Learner,
    sampler: ReplaySampler,
    saved: Mapping[str, Any] | None,
    catch_up_s: float,
    make_fetcher: Callable[[], Fetcher],
    send_priorities: Callable[[PriorityUpdate], None],
    send_weights: Callable[[Weights], None],
    counts: Counts,
    agent_steps_before: int,
    episodes_before: int,
    incarnation: int,
    clock: Callable[[], float],
) -> LearnerLoop:
    """Return the loop of a learner that goes on from where it was saved.

    Args:
      config: the run.
      learner: as made; restored here.
      sampler: as made; restored here, and set in where the shards stand.
      saved: what `expect_resumable` returned, None for a learner that begins.
      catch_up_s: how long to wait for the shards, where others learned before.
      make_fetcher: called once the sampler may be drawn from.
      send_priorities: as in LearnerLoop.
      send_weights: as in LearnerLoop.
      counts: what came into replay since this start of the run.
      agent_steps_before: agent steps accepted before it.
      episodes_before: training games that ended before it.
      incarnation: how many times the run's learner was started before.
      clock: as in LearnerLoop.
    """
    samples = 0
    if saved is not None:
        learner.load_state_dict(saved["learner"])
        sampler.rng_state = saved["rng"]
        samples = saved["counters"]["samples"]
    sampler.version = WeightsVersion(incarnation, learner.learner_step)
    if incarnation > 0:
        sampler.catch_up(catch_up_s)
    return LearnerLoop(
        learner=learner,
        fetcher=make_fetcher(),
        send_priorities=send_priorities,
        send_weights=send_weights,
        agent_steps=lambda: agent_steps_before + counts.accepted,
        episodes=lambda: episodes_before + counts.episodes,
        incarnation=incarnation,
        publish_period_learner_steps=config.learner.publish_period_learner_steps,
        samples=samples,
        clock=clock,
    )


def load_network(path: Path | str) -> QNetwork:
    """Return a checkpoint's network, to play with: in evaluation mode, on the CPU.

    It takes dtype[B, k, *frame_shape], the last k frames of B games with the newest last, and
    returns float32[B, A]. On Atari that is uint8[B, 4, 84, 84] of `AtariPreprocessing` and
    `FrameStackObservation(..., 4, padding_type="zero")`, k being the run's `env.stack`;
    CartPole-v1-pixels has k = 2, anything else k = 1.

    Raises:
      CheckpointError: as `load_trained`.
    """
    network = load_trained(Path(path)).network
    network.requires_grad_(False)
    return network
