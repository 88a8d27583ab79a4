"""Builds replay's cores from the configuration: the same objects for Ray and for `--serial`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, assert_never

import numpy as np

from common.config import Config
from common.schema import one_line
from common.seeding import derive_seed
from common.types import EnvironmentSpec
from replay.decoding import Decoder
from replay.handles import ShardHandle
from replay.prioritized import PrioritizedReplay
from replay.rate_limiter import RateLimiter
from replay.sampler import ReplaySampler
from replay.shard import ReplayShard
from replay.snapshot import SnapshotFolder
from replay.state import SnapshotError
from replay.storage import SegmentStorage
from replay.writer import ReplayWriter


def make_limiter(config: Config) -> RateLimiter:
    """Return the run's rate limiter."""
    return RateLimiter(
        min_size=config.replay.min_size,
        samples_per_insert=config.samples_per_insert,
        band=config.band,
    )


def make_shard(
    config: Config,
    spec: EnvironmentSpec,
    *,
    shard: int,
    incarnation: int,
    max_bytes: int,
    accepted_before: int,
    episodes_before: int,
) -> ReplayShard:
    """Return an empty shard.

    Args:
      config: the run.
      spec: its environment.
      shard: index of the shard.
      incarnation: how many times it was started before.
      max_bytes: most bytes over all shards.
      accepted_before: by its dead incarnations; see ReplayShard.
      episodes_before: games of theirs.
    """
    capacity = config.replay.capacity // config.replay.shards
    storage = SegmentStorage(
        capacity=capacity,
        max_bytes=max_bytes // config.replay.shards,
        shard=shard,
        incarnation=incarnation,
        stack=spec.observation.stack,
    )
    replay = PrioritizedReplay(
        storage=storage,
        capacity=capacity,
        alpha=config.replay.priority_exponent,
        is_sequential=_is_sequential(config.replay.order),
        rng=np.random.default_rng(derive_seed(config.seed, "replay", shard)),
    )
    return ReplayShard(
        replay=replay,
        limiter=make_limiter(config),
        shards=config.replay.shards,
        observation=spec.observation,
        accepted_before=accepted_before,
        episodes_before=episodes_before,
    )


def _is_sequential(order: Literal["random", "sequential"]) -> bool:
    match order:
        case "random":
            return False
        case "sequential":
            return True
        case _:
            assert_never(order)


def make_sampler(
    config: Config,
    spec: EnvironmentSpec,
    *,
    shards: Sequence[ShardHandle],
    in_flight: int,
    rows_per_request: int,
) -> ReplaySampler:
    """Return the learner's sampler over `shards`; see ReplaySampler for the last two."""
    return ReplaySampler(
        shards=shards,
        num_actions=spec.num_actions,
        batch_size=config.learner.batch_size,
        beta=config.replay.importance_exponent,
        limiter=make_limiter(config),
        decoder=Decoder(spec=spec.observation, threads=config.learner.decode_threads),
        rng=np.random.default_rng(derive_seed(config.seed, "sampler", 0)),
        in_flight=in_flight,
        rows_per_request=rows_per_request,
    )


def make_writer(
    config: Config, *, shards: Sequence[ShardHandle], actor: int, clock: Callable[[], float]
) -> ReplayWriter:
    """Return an actor's side of replay; actors begin their rounds at different shards."""
    return ReplayWriter(
        shards=shards, window=config.actor.push_window, first_shard=actor, clock=clock
    )


def restore(shard: ReplayShard, folder: SnapshotFolder) -> str:
    """Let an empty shard go on from its newest snapshot, and return one line on that.

    A snapshot that cannot be used is said to be so, and the shard stays empty: a run must not stand
    still for it. So is one that is not there, but for a shard's first start: "" then.
    """
    try:
        found = folder.read_newest()
        if found is None:
            return "starts empty: it has no snapshot" if shard.incarnation > 0 else ""
        shard.restore(found.state)
    except (SnapshotError, OSError) as error:
        return f"starts empty: {one_line(str(error), 1_000)}"
    passed_over = "".join(f"; passed over {line}" for line in found.damaged)
    return f"goes on with the {len(found.state.masses):,} transitions of its snapshot{passed_over}"
