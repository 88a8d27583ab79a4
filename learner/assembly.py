"""Builds the learner's cores from the configuration: the same for Ray and for `--serial`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from common.config import Config, to_dict
from common.networks import flatten_state
from common.seeding import derive_seed
from common.types import EnvironmentSpec, ObservationSpec, Weights, WeightsVersion
from learner.checkpoint import CheckpointError, load
from learner.learner import Learner, compiler_available
from learner.learner_loop import LearnerLoop

# Raised whenever a checkpoint of the version before could not be read any more.
CHECKPOINT_FORMAT = 2


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda:0" if name == "cuda" else name)


def resolve_threads(threads: int) -> int:
    """Return how many threads torch gets: as told, or one for each core this process may use."""
    return threads or len(os.sched_getaffinity(0))


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
    choice = config.learner.compile
    compiled = choice == "on" or (choice == "auto" and not serial and compiler_available())
    return Learner(
        agent=config.agent,
        config=config.learner,
        spec=spec,
        device=device,
        seed=derive_seed(config.seed, "network", 0),
        compile_step=compiled,
    )


def checkpoint_payload(
    config: Config, spec: EnvironmentSpec, learner: Learner, loop: LearnerLoop
) -> dict[str, Any]:
    """Return everything needed to resume or evaluate, as plain numbers, text and tensors."""
    return {
        "format": CHECKPOINT_FORMAT,
        "config": to_dict(config),
        "spec": spec_to_dict(spec),
        "weights": torch.from_numpy(flatten_state(learner.network)),
        "learner": learner.state_dict(),
        "counters": {
            "learner_step": learner.learner_step,
            "samples": loop.samples,
            "agent_steps": loop.agent_steps,
            "episodes": loop.episodes,
            "incarnation": loop.version.incarnation,
        },
    }


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `checkpoint_payload` or `weights_payload` wrote.

    Raises:
      CheckpointError: the file is not there, damaged, or no checkpoint of this format.
    """
    payload = load(path)
    missing = {"config", "spec", "weights", "counters"} - payload.keys()
    if payload.get("format") != CHECKPOINT_FORMAT or missing:
        raise CheckpointError(
            f"{path}: is no checkpoint of format {CHECKPOINT_FORMAT} of this program"
        )
    return payload


def weights_payload(
    config: Config, spec: EnvironmentSpec, weights: Weights, score: float
) -> dict[str, Any]:
    """Return what evaluating needs, without what resuming needs: `best.pt`."""
    return {
        "format": CHECKPOINT_FORMAT,
        "config": to_dict(config),
        "spec": spec_to_dict(spec),
        "weights": torch.from_numpy(weights.buffer.copy()),
        "score": score,
        "counters": {
            "learner_step": weights.version.learner_step,
            "agent_steps": weights.agent_steps,
            "incarnation": weights.version.incarnation,
        },
    }


def weights_from_payload(payload: dict[str, Any]) -> Weights:
    """Return the weights of either kind of checkpoint."""
    counters = payload["counters"]
    version = WeightsVersion(counters["incarnation"], counters["learner_step"])
    return Weights(version, payload["weights"].numpy(), counters["agent_steps"])


def spec_to_dict(spec: EnvironmentSpec) -> dict[str, Any]:
    """Return the spec as plain values."""
    plain = spec._asdict()
    plain["observation"] = spec.observation._asdict()
    plain["observation"]["frame_shape"] = list(spec.observation.frame_shape)
    return plain


def spec_from_dict(plain: dict[str, Any]) -> EnvironmentSpec:
    """Return the spec that `spec_to_dict` wrote."""
    observation = dict(plain["observation"])
    observation["frame_shape"] = tuple(observation["frame_shape"])
    return EnvironmentSpec(**{**plain, "observation": ObservationSpec(**observation)})
