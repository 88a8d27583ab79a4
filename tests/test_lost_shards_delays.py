"""Writers, shards and a sampler over slow wires, with shards that die and come back at random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from fakes import NO_PHASES, DeadShard, FakeClock, LateShard, kill, make_segment, make_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import make_sampler

from replay.rate_limiter import RateLimiter
from replay.sampler import ReplaySampler
from replay.state import ShardState
from replay.writer import ReplayWriter

BATCH = 16
PUSH = 12
MIN_SIZE = 50
IN_FLIGHT = 2


class Host:
    """One shard over all its incarnations: the wires to it, its snapshot, its deaths."""

    def __init__(self, shard: int, limiter: RateLimiter, wires: int) -> None:
        self.shard = shard
        self.limiter = limiter
        self.incarnation = 0
        self.core = make_shard(limiter=limiter, shard=shard, capacity=400)
        self.wires = [LateShard(self.core) for _ in range(wires)]
        self.snapshot: ShardState | None = None

    @property
    def is_alive(self) -> bool:
        return not isinstance(self.wires[0].shard, DeadShard)

    def save(self) -> None:
        self.snapshot = self.core.capture()

    def die(self) -> None:
        for wire in self.wires:
            kill(wire)

    def come_back(self) -> None:
        for wire in self.wires:
            wire.deliver_all()  # what was sent to the dead one is lost
        self.incarnation += 1
        self.core = make_shard(
            limiter=self.limiter, shard=self.shard, capacity=400, incarnation=self.incarnation
        )
        if self.snapshot is not None:
            self.core.restore(self.snapshot)
        for wire in self.wires:
            wire.shard = self.core


class Run(NamedTuple):
    """How a run went.

    Fields:
      batches: that the learner got.
      deaths: of shards.
      least_error: of the limiter as the sampler counts, over the whole run, with the inserts
        `min_size` at least.
      largest_error: with the true inserts, while all shards live and those after a death were
        heard of.
    """

    batches: int
    deaths: int
    least_error: float
    largest_error: float


def simulate(
    *, shards: int, samples_per_insert: float, seed: int, moves: int, enough_batches: int
) -> Run:
    """Let two actors, a learner and fate move at random until enough was learned."""
    rng = np.random.default_rng(seed)
    band = 2 * max(BATCH, samples_per_insert * PUSH)
    limiter = RateLimiter(min_size=MIN_SIZE, samples_per_insert=samples_per_insert, band=band)
    hosts = [Host(shard, limiter, wires=3) for shard in range(shards)]
    clock = FakeClock()
    writers = [
        ReplayWriter(
            shards=[host.wires[actor] for host in hosts], window=2, first_shard=actor, clock=clock
        )
        for actor in range(2)
    ]
    sampler = make_sampler(
        [host.wires[2] for host in hosts],
        batch_size=BATCH,
        limiter=limiter,
        seed=seed,
        in_flight=IN_FLIGHT,
        rows_per_request=2 * BATCH,
        clock=clock,
    )
    sequences = [0, 0]
    batches = deaths = newest = 0
    least = largest = 0.0
    for _ in range(moves):
        clock.now_s += 0.01
        host = hosts[int(rng.integers(shards))]
        move = int(rng.integers(8))
        if move < 2:
            if writers[move].has_room():
                segments = [
                    make_segment(actor=move, sequence=sequences[move] + k, transitions=PUSH)
                    for k in range(shards)
                ]
                sequences[move] += shards
                writers[move].push(segments, (), NO_PHASES, 0.5)
        elif move == 2:
            if (batch := sampler.fetch()) is not None:
                batches += 1
                assert np.isfinite(batch.weight).all()
        elif move < 7:
            host.wires[int(rng.integers(3))].deliver()
        elif rng.random() < 0.3:
            host.save() if host.is_alive else host.come_back()
        elif rng.random() < 0.2 and host.is_alive and sampler._totals.newest(host.shard).inserts:
            host.die()
            deaths += 1
        assert sampler.accepted >= newest, "agent steps fell"
        newest = sampler.accepted
        assert newest == sampler.inserts + sampler._totals.lost
        least = min(least, limiter.error(max(MIN_SIZE, sampler.inserts), sampler.samples))
        if all(one.is_alive for one in hosts) and is_known(sampler, hosts):
            inserts = sum(one.core.inserted for one in hosts)
            largest = max(largest, limiter.error(inserts, sampler.samples))
        if batches >= enough_batches:
            break
    return Run(batches, deaths, least, largest)


def is_known(sampler: ReplaySampler, hosts: list[Host]) -> bool:
    """Return whether the sampler has heard of the newest process of every shard."""
    return all(sampler._totals.newest(host.shard).incarnation == host.incarnation for host in hosts)


@pytest.fixture(autouse=True, scope="module")
def no_sleep() -> Iterator[None]:
    """Let nobody wait for a clock that only the test moves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replay.sampler.time.sleep", lambda seconds: None)
        yield


@given(
    shards=st.integers(1, 3),
    samples_per_insert=st.sampled_from([0.5, 2.0, 8.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_trap_deaths_with_messages_under_way_neither_stop_the_run_nor_break_the_band(
    shards: int, samples_per_insert: float, seed: int
) -> None:
    run = simulate(
        shards=shards,
        samples_per_insert=samples_per_insert,
        seed=seed,
        moves=20_000,
        enough_batches=60,
    )
    assert run.batches >= 60, f"stands still: {run}"
    band = 2 * max(BATCH, samples_per_insert * PUSH)
    # Half a sample of rounding for each loss.
    assert run.least_error >= -band - 0.5 * run.deaths, "sampled too early"
    if shards == 1:
        # Batches that were forgotten are owed again, and the actors have counted on them. So they
        # have on samples that a new process heard of before they were rebased.
        forgotten = IN_FLIGHT * 2 * BATCH
        pushes_under_way = 2 * 2 * PUSH * samples_per_insert
        assert run.largest_error <= band + forgotten + pushes_under_way


def test_simulation_kills_shards() -> None:
    runs = [
        simulate(shards=2, samples_per_insert=2.0, seed=seed, moves=20_000, enough_batches=60)
        for seed in range(5)
    ]
    assert sum(run.deaths for run in runs) >= 5, "the test has no power"
