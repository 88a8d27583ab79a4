"""Builds the learner's cores from the configuration: the same for Ray and for `--serial`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypedDict, assert_never

import torch

from common.config import Config
from common.config_file import ConfigError, override, to_dict
from common.machine import available_cores
from common.networks import QNetwork, build_network, expect_flat_state, load_flat_state
from common.schema import INCARNATION, Bounds, Count, Misfit, counted, fit, one_line, shown
from common.seeding import derive_seed, expect_generator_state
from common.types import (
    EnvironmentSpec,
    ObservationSpec,
    PriorityUpdate,
    Weights,
    WeightsVersion,
)
from learner.checkpoint import CheckpointError, load
from learner.learner import Learner
from learner.learner_loop import Fetcher, LearnerLoop, expect_finite
from replay.sampler import ReplaySampler

# Raised whenever a checkpoint of the version before could not be read any more.
CHECKPOINT_FORMAT = 2


def resolve_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device that is meant here."""
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


class Trained(NamedTuple):
    """What a checkpoint holds for those who play.

    Fields:
      config: settings of the run that wrote it.
      spec: its environment.
      weights: of the network.
      network: with these weights, in evaluation mode, on the CPU.
    """

    config: Config
    spec: EnvironmentSpec
    weights: Weights
    network: QNetwork


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


def load_trained(path: Path) -> Trained:
    """Return what either kind of checkpoint holds for those who play.

    Raises:
      CheckpointError: the file is not there, damaged, no checkpoint of this format, or its weights
        are not those of the network it speaks of; one line says which.
    """
    payload = load_playable(path)
    try:
        config = override(Config(), payload["config"], str(path))
        if problems := config.problems():
            raise ConfigError(problems)
        spec = spec_from_dict(payload["spec"])
        weights = weights_from_payload(payload)
        # Before a network of any size at all is made for them.
        expect_flat_state(config.agent, spec, weights.buffer)
        network = build_network(config.agent, spec)
        load_flat_state(network, weights.buffer)
    # What a dictionary of anything at all may lead to; ConfigError is a ValueError.
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        reason = "; ".join(str(error).strip().splitlines()) or type(error).__name__
        raise CheckpointError(
            f"{path}: holds no network that can be played: {one_line(reason, 400)}"
        ) from error
    return Trained(config, spec, weights, network)


def expect_same_network(
    trained: Trained, path: Path, config: Config, spec: EnvironmentSpec, run_dir: Path
) -> None:
    """Refuse a checkpoint of another game or network than the run's.

    Args:
      trained: what the checkpoint holds.
      path: of the checkpoint, for the message.
      config: the run's settings.
      spec: the run's environment.
      run_dir: the run's folder, for the message.

    Raises:
      CheckpointError: they differ; one line names every difference.
    """
    theirs = _identity(trained.config, trained.spec, trained.network)
    ours = _identity(config, spec, build_network(config.agent, spec))
    differences = [
        f"{name} {theirs[name]}, not {ours[name]}" for name in ours if theirs[name] != ours[name]
    ]
    if differences:
        raise CheckpointError(
            f"{path}: is of another game or network than {run_dir}: {'; '.join(differences)}"
        )


def _identity(config: Config, spec: EnvironmentSpec, network: QNetwork) -> dict[str, Any]:
    """Return what decides whether a network can be played in a run's name."""
    agent = config.agent
    return {
        "game": spec.name,
        "actions": spec.num_actions,
        "frames per action": spec.action_repeat_frames,
        "observation": f"{spec.observation.dtype}{list(spec.observation.shape)}",
        "algorithm": agent.algorithm,
        "network": agent.network,
        "dueling": agent.dueling,
        "hidden layers": list(agent.hidden) if agent.network == "mlp" else None,
        "weights": sum(tensor.numel() for tensor in network.state_dict().values()),
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
