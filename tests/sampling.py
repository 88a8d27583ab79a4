"""What the tests of the sampler share: a small one, shards for it, and wires that are served."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fakes import NO_LIMIT, SPEC, LateShard, make_push, make_segment, make_shard
from shard_contract import ENVIRONMENT

from common.types import Batch
from replay.decoding import Decoder
from replay.rate_limiter import RateLimiter
from replay.sampler import ReplaySampler
from replay.shard import ReplayShard

BATCH = 8
LIMITER = RateLimiter(min_size=10, samples_per_insert=4.0, band=32.0)


def make_sampler(
    shards: Sequence[Any],
    *,
    batch_size: int = BATCH,
    beta: float = 0.4,
    limiter: RateLimiter = NO_LIMIT,
    in_flight: int = 1,
    rows_per_request: int = 1,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> ReplaySampler:
    return ReplaySampler(
        shards=shards,
        num_actions=ENVIRONMENT.num_actions,
        batch_size=batch_size,
        beta=beta,
        limiter=limiter,
        decoder=Decoder(spec=SPEC, threads=1),
        rng=np.random.default_rng(seed),
        in_flight=in_flight,
        rows_per_request=rows_per_request,
        clock=clock,
    )


def filled_shard(
    shard: int, transitions: int, limiter: RateLimiter = NO_LIMIT, incarnation: int = 0
) -> ReplayShard:
    """Return a shard with segments of 8 transitions at most, each of priority `shard` + 1."""
    core = make_shard(alpha=1.0, shard=shard, incarnation=incarnation, limiter=NO_LIMIT)
    for sequence, start in enumerate(range(0, transitions, 8)):
        size = min(8, transitions - start)
        core.add(
            make_push(
                make_segment(actor=shard, sequence=sequence, transitions=size, priority=shard + 1.0)
            )
        )
    core._limiter = limiter  # what it holds came in before anybody looked
    return core


def turn(sampler: ReplaySampler, wires: Sequence[LateShard]) -> Batch | None:
    """Let everything under way arrive, and fetch."""
    for wire in wires:
        wire.deliver_all()
    return sampler.fetch()
