"""What a checkpoint holds: made, and fitted when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import torch

from common.config import Config
from common.config_file import to_dict
from common.schema import INCARNATION, Bounds, Count, Misfit, counted, fit, one_line, shown
from common.seeding import expect_generator_state
from common.types import EnvironmentSpec, ObservationSpec, Weights, WeightsVersion
from learner.checkpoint import CheckpointError, load
from learner.learner import Learner
from learner.learner_loop import LearnerLoop, expect_finite

# Raised whenever a checkpoint of the version before could not be read any more.
CHECKPOINT_FORMAT = 2


def checkpoint_payload(
    config: Config,
    spec: EnvironmentSpec,
    learner: Learner,
    loop: LearnerLoop,
    rng: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything needed to resume or evaluate, as plain numbers, text and tensors.

    Args:
      config: the run.
      spec: its environment.
      learner: networks and optimiser.
      loop: its counters.
      rng: state of the sampler's generator; learning itself draws nothing.

    Raises:
      FloatingPointError: weights, target or optimiser are not finite, so that neither is possible.
    """
    saved = learner.state_dict()
    moments = saved["optimizer"]["state"].items()
    expect_finite(
        {f"target.{name}": tensor for name, tensor in saved["target"].items()}
        | {f"{name}[{k}]": moment for name, all_ in moments for k, moment in enumerate(all_)},
        learner.learner_step,
    )
    return {
        "format": CHECKPOINT_FORMAT,
        "config": to_dict(config),
        "spec": spec_to_dict(spec),
        "weights": torch.from_numpy(loop.weights()),
        "learner": saved,
        "counters": {
            "learner_step": learner.learner_step,
            "samples": loop.samples,
            "agent_steps": loop.agent_steps,
            "episodes": loop.episodes,
            "incarnation": loop.version.incarnation,
        },
        "rng": dict(rng),
    }


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


class _Counters(TypedDict):
    learner_step: Count
    agent_steps: Count
    incarnation: Annotated[int, INCARNATION]


class _Playable(TypedDict):
    config: dict[str, Any]
    spec: _Spec
    weights: torch.Tensor
    counters: _Counters


class _AllCounters(_Counters):
    samples: Count
    episodes: Count


class _Optimizer(TypedDict):
    name: str
    state: dict[str, list[torch.Tensor]]


class _Learner(TypedDict):
    network: dict[str, torch.Tensor]
    target: dict[str, torch.Tensor]
    optimizer: _Optimizer
    learner_step: Count
    episodes: Count


class _Resumable(TypedDict):
    counters: _AllCounters
    learner: _Learner
    rng: dict[str, Any]


def load_playable(path: Path) -> dict[str, Any]:
    """Return what `checkpoint_payload` or `weights_payload` wrote.

    Raises:
      CheckpointError: the file is not there, damaged, or no checkpoint of this format.
    """
    return _expect(path, load(path), _Playable)


def expect_resumable(path: Path, payload: dict[str, Any]) -> dict[str, Any]:
    """Return the payload that was read from `path`.

    Raises:
      CheckpointError: it is not what `checkpoint_payload` made, or nobody could learn on with it.
    """
    payload = _expect(path, payload, _Playable, _Resumable)
    state = payload["learner"]
    moments = state["optimizer"]["state"].items()
    tensors = [*state["network"].items(), *state["target"].items()]
    tensors += [(name, tensor) for name, some in moments for tensor in some]
    try:
        expect_generator_state(payload["rng"])
        for name, tensor in tensors:
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"`{shown(name)}` is not finite")
    except (ValueError, RuntimeError) as error:  # torch's, of tensors that it cannot look at
        reason = one_line(str(error) or type(error).__name__, 200)
        raise CheckpointError(f"{path}: holds nothing to go on with: {reason}") from error
    return payload


def _expect(path: Path, payload: dict[str, Any], *kinds: Any) -> dict[str, Any]:
    number = payload.get("format")
    if type(number) is not int or number != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: is no checkpoint of format {CHECKPOINT_FORMAT} of this program"
        )
    try:
        for kind in kinds:
            payload = fit(payload, kind)
    except Misfit as misfit:
        raise CheckpointError(f"{path}: cannot be used: {misfit}") from misfit
    return payload


class _Observation(TypedDict):
    frame_shape: tuple[Annotated[int, counted(10**6)], ...]
    dtype: Literal["uint8", "float32"]
    stack: Annotated[int, counted(255)]


class _OlderSpec(TypedDict):
    name: str
    observation: _Observation
    num_actions: Annotated[int, counted(10**6)]
    action_repeat_frames: Annotated[int, counted(10**6)]
    protocol: str


class _Spec(_OlderSpec, total=False):
    scale: Annotated[float, Bounds(1e-9, 1e9, "> 0", "<= 1e9")]


def spec_to_dict(spec: EnvironmentSpec) -> dict[str, Any]:
    """Return the spec as plain values."""
    plain = spec._asdict()
    plain["observation"] = spec.observation._asdict()
    plain["observation"]["frame_shape"] = list(spec.observation.frame_shape)
    return plain


def spec_from_dict(plain: dict[str, Any]) -> EnvironmentSpec:
    """Return the spec that `spec_to_dict` wrote.

    One without a scale is older than scales: then every byte was divided by 255, in vectors too.

    Raises:
      Misfit: it did not.
    """
    spec = fit(plain, _Spec, "spec")
    observation = ObservationSpec(**spec["observation"])
    scale = {"scale": 1.0 / 255.0 if observation.dtype == "uint8" else 1.0}
    return EnvironmentSpec(**{**scale, **spec, "observation": observation})
