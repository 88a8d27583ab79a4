"""What a checkpoint holds for those who play."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from common.config import Config
from common.config_file import ConfigError, override
from common.networks import QNetwork, build_network, expect_flat_state, load_flat_state
from common.schema import one_line
from common.types import EnvironmentSpec, Weights
from learner.checkpoint import CheckpointError
from learner.payload import load_playable, spec_from_dict, weights_from_payload


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
