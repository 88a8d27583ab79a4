"""What a run asks of the machine, and what of that the machine does not have."""

from __future__ import annotations

from common.config import Config
from common.schema import shown
from common.types import EnvironmentSpec

# A row of replay beside its frame (measured: `launch.py bench replay`), and the share of a pixel
# frame that is left of it on the games that compress worst.
_ROW_BYTES = 120
_COMPRESSED_SHARE = 0.15
# What is set aside for a row that may come: itself, and two numbers of the sum tree.
_LEAST_ROW_BYTES = 62
# Of a process of its own, beside what processes share (measured: 252 MB with eight games of Pong).
_ACTOR_BYTES = 200_000_000
# A game with its emulator or canvas (measured: 1.6 MB of Pong, 2.8 MB of CartPole's pixels), and
# one without.
_PICTURED_GAME_BYTES = 1_500_000
_GAME_BYTES = 5_000


def machine_problems(
    config: Config,
    spec: EnvironmentSpec,
    *,
    weights_bytes: int,
    is_serial: bool,
    memory_bytes: int,
    cores: int,
    has_cuda: bool,
) -> list[str]:
    """Return one line for each thing that the settings ask of this machine and it does not have."""
    needs = _needs(config, spec, weights_bytes, is_serial)
    too_much = [(flag, needed) for flag, needed in needs.items() if needed > memory_bytes]
    problems = [
        f"--{flag}: takes about {needed / 1e9:,.0f} GB at least, this machine has "
        f"{memory_bytes / 1e9:.0f} GB"
        for flag, needed in too_much[:1]  # one may be the reason of the next
    ]
    if config.learner.device == "cuda" and not has_cuda:
        problems.append("--learner.device cuda: this machine has no CUDA device; use auto or cpu")
    cpus, count = config.actor.cpus, config.actor.count
    if cpus != "auto" and cpus * count > cores:
        problems.append(
            f"--actor.cpus {cpus}: {count} actors would reserve {cpus * count:g} CPUs, this "
            f"machine has {cores}; use auto"
        )
    most = config.replay.max_bytes
    if most is not None and most > memory_bytes:
        problems.append(
            f"--replay.max-bytes {most}: must be <= this machine's memory, {memory_bytes}"
        )
    shards = config.replay.shards
    least = 2 * shards * config.actor.segment_transitions * (spec.observation.frame_bytes + 100)
    if most is not None and most < least:
        problems.append(
            f"--replay.max-bytes {most}: must be >= {least}, room for a segment in each shard"
        )
    needed = config.replay.capacity * _bytes_per_transition(spec)
    if most is None and needed > memory_bytes // 2:
        problems.append(
            f"--replay.capacity {config.replay.capacity}: takes up to {needed / 1e9:.0f} GB, and "
            f"replay may take half of this machine's {memory_bytes / 1e9:.0f} GB; lower it, or "
            "bound it by --replay.max-bytes"
        )
    return problems


def _needs(
    config: Config, spec: EnvironmentSpec, weights_bytes: int, is_serial: bool
) -> dict[str, int]:
    """Return what is taken, by flag and value, before anything is played or learned: bytes."""
    actor, learner, replay = config.actor, config.learner, config.replay
    observation_bytes = spec.observation.stack * spec.observation.frame_bytes
    # An actor holds the frames of the segments that are not full yet.
    open_bytes = actor.envs * actor.segment_transitions * spec.observation.frame_bytes
    process_bytes = 0 if is_serial else _ACTOR_BYTES
    is_pixels = spec.observation.dtype == "uint8"
    game_bytes = (_PICTURED_GAME_BYTES if is_pixels else _GAME_BYTES) + observation_bytes
    process_bytes += actor.envs * game_bytes
    needs = {
        # Weights, target, gradients and two moments.
        f"agent.hidden {shown(config.agent.hidden)}": 5 * weights_bytes,
        f"actor.count {actor.count} --actor.envs {actor.envs}": actor.count
        * (process_bytes + weights_bytes + open_bytes),
        f"learner.batch-size {learner.batch_size}": (
            2 * learner.batch_size * observation_bytes * (learner.prefetch_batches + 1)
        ),
    }
    if replay.max_bytes is not None:  # else they count, too, and are asked about below
        needs[f"replay.capacity {replay.capacity}"] = replay.capacity * _LEAST_ROW_BYTES
    return needs


def _bytes_per_transition(spec: EnvironmentSpec) -> int:
    frame = spec.observation.frame_bytes
    is_pixels = spec.observation.dtype == "uint8"
    return _ROW_BYTES + (int(frame * _COMPRESSED_SHARE) if is_pixels else frame)
