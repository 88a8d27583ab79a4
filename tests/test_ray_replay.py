"""Replay and weights over real Ray: the contract of one process, and what only processes do."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
import ray
from fakes import NO_PHASES, FakeClock, make_push, make_segment
from ray._private.internal_api import node_stats
from ray.exceptions import RayActorError
from shard_contract import CONFIG, ENVIRONMENT, START, Connect, ShardHandleContract, with_shards

from actors.worker import WeightsPoller
from common.config import Config
from common.source import own_source
from common.types import Batch, EnvironmentSpec, PriorityUpdate, Segment, Weights, WeightsVersion
from learner.weight_store import WeightStore
from replay.assembly import make_sampler
from replay.client import RayHandle
from replay.handles import ShardHandle, ShardLost
from replay.priority_updater import PriorityUpdater
from replay.sampler import ReplaySampler
from replay.server import ReplayServer
from replay.storage import shard_of
from replay.writer import ReplayWriter

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

# A process that is up answers in milliseconds; on two busy cores it takes seconds to come up.
PATIENCE_S = 60.0

T = TypeVar("T")
Serve = Callable[[Config, EnvironmentSpec, int, int], Any]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return what starts a fresh replay process; all are ended after the test."""
    servers = []

    def start(config: Config, spec: EnvironmentSpec, shard: int, incarnation: int) -> Any:
        server = ReplayServer.options(num_cpus=0).remote(
            config, spec, shard, incarnation, config.replay.max_bytes, None, (0, 0), own_source()
        )
        servers.append(server)
        return server

    yield start
    for server in servers:
        ray.kill(server)


@pytest.fixture
def connect(serve: Serve) -> Connect:
    """Return what starts a fresh replay process and connects to it."""
    return lambda config, spec, shard, incarnation: RayHandle(
        serve(config, spec, shard, incarnation), shard
    )


class TestRayShard(ShardHandleContract):
    """What test_shard.py holds the shard in one process to."""

    @pytest.fixture
    def connect(self, serve: Serve) -> Connect:
        return lambda config, spec, shard, incarnation: RayHandle(
            serve(config, spec, shard, incarnation), shard
        )


def push_all(handles: Sequence[ShardHandle], segments: Sequence[Segment]) -> None:
    """Push segments one by one, as an actor does, until all are accepted."""
    writer = ReplayWriter(shards=handles, window=1, first_shard=0, clock=time.monotonic)
    for segment in segments:
        writer.push([segment], (), NO_PHASES, 0.5)
        while not writer.has_room():
            writer.wait(PATIENCE_S)


def until(attempt: Callable[[], T | None]) -> T:
    """Call `attempt` until it returns something true, and return that; fail after a minute."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (got := attempt()):
        assert time.monotonic() < deadline_s, f"nothing came in {PATIENCE_S} s"
    return got


# --- several shards -------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2])
def test_batches_over_shards_hold_what_was_pushed_and_priorities_find_their_shard(
    connect: Connect, shards: int
) -> None:
    config = with_shards(shards)
    handles = [connect(config, ENVIRONMENT, shard, 0) for shard in range(shards)]
    segments = [make_segment(sequence=s, learner_step=s) for s in range(4)]
    push_all(handles, segments)
    sampler = make_sampler(config, ENVIRONMENT, shards=handles, in_flight=1, rows_per_request=1)
    batch = batch_over_all(sampler, 4 * 5)
    # r_t says which row of which segment it is: see fakes.make_segment.
    rows = {float(np.float32(r)): (s, i) for s in segments for i, r in enumerate(s.r_t)}
    for row, (segment, i) in enumerate(rows[float(r)] for r in batch.r_t):
        assert batch.s_tm1[row, -1].ravel()[:3].tolist() == [1, segment.name.sequence + 1, i + 1]
        assert batch.s_t[row, -1].ravel()[:3].tolist() == [1, segment.name.sequence + 1, i + 2]
        assert batch.a_tm1[row] == segment.a_tm1[i]
        assert batch.discount_t[row] == segment.discount_t[i]
    assert set(shard_of(batch.ids)) == set(range(shards))

    updater = PriorityUpdater(shards=handles, window=4, rows_per_call=1)
    before = [handle.counts(START).result().mass for handle in handles]
    first = np.unique(batch.ids)[:1]
    updater.update(PriorityUpdate(first, np.array([8.0], np.float32)))
    after = [handle.counts(START).result().mass for handle in handles]
    gained = np.array(after) - np.array(before)
    expected = np.zeros(shards)
    expected[shard_of(first)[0]] = 8.0 - 1.0
    np.testing.assert_allclose(gained, expected, atol=1e-9)


def batch_over_all(sampler: ReplaySampler, transitions: int) -> Batch:
    """Return a batch that was asked for when all shards had said what they hold."""
    until(lambda: (sampler.fetch(), sampler.size == sampler.inserts == transitions)[1])
    until(sampler.fetch)  # asked for before, when one shard may have been silent yet
    return until(sampler.fetch)


def test_segments_go_round_the_shards_one_by_one(connect: Connect) -> None:
    handles = [connect(with_shards(2), ENVIRONMENT, shard, 0) for shard in range(2)]
    push_all(handles, [make_segment(sequence=s) for s in range(4)])
    assert [handle.counts(START).result().inserts for handle in handles] == [10, 10]


def test_writer_offers_a_refused_push_again_and_it_is_inserted_once(connect: Connect) -> None:
    handle = connect(CONFIG, ENVIRONMENT, 0, 0)
    push_all([handle], [make_segment(sequence=s) for s in range(6)])  # as far as the band goes
    clock = FakeClock()
    writer = ReplayWriter(shards=[handle], window=1, first_shard=0, clock=clock)
    writer.push([make_segment(sequence=6)], (), NO_PHASES, 0.5)
    for _ in range(3):
        writer.wait(PATIENCE_S)  # for the answer
        assert not writer.has_room()
        clock.now_s += 1.0  # the next turn has come
        assert not writer.has_room()
    assert handle.counts(START).result().inserts == 30
    handle.counts(START._replace(samples=10)).result()
    for _ in range(2):  # the turn that was under way may have been refused yet
        writer.wait(PATIENCE_S)
        writer.has_room()
        clock.now_s += 1.0
    assert until(writer.has_room)
    assert handle.counts(START).result().inserts == 35
    assert writer.accepted_transitions == 5


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_push_that_does_not_fit_raises_in_the_writer(connect: Connect) -> None:
    handle = connect(CONFIG, ENVIRONMENT, 0, 0)
    pending = handle.add(handle.prepare(make_push(make_segment(transitions=41))))
    with pytest.raises(ValueError, match="Expect a segment of <= 40 transitions"):
        pending.result()


def test_a_replay_process_of_other_code_refuses_to_work() -> None:
    server = ReplayServer.options(num_cpus=0).remote(
        CONFIG, ENVIRONMENT, 0, 0, 10**6, None, (0, 0), {**own_source(), "torch": "1.0"}
    )
    with pytest.raises(RayActorError, match="HostUnfit: replay shard 0 on .* the driver 1.0;"):
        ray.get(server.counts.remote(START), timeout=PATIENCE_S)


def test_clients_of_a_killed_shard_go_on_and_find_the_one_in_its_place(serve: Serve) -> None:
    config = with_shards(2)
    servers = [serve(config, ENVIRONMENT, shard, 0) for shard in range(2)]
    handles = [RayHandle(server, shard) for shard, server in enumerate(servers)]
    push_all(handles, [make_segment(sequence=s) for s in range(4)])
    sampler = make_sampler(config, ENVIRONMENT, shards=handles, in_flight=1, rows_per_request=1)
    ids = batch_over_all(sampler, 4 * 5).ids
    mine = PriorityUpdate(ids[shard_of(ids) == 1], np.ones((shard_of(ids) == 1).sum(), np.float32))
    assert len(mine.ids)

    ray.kill(servers[1])
    with pytest.raises(ShardLost):  # a call right behind the kill may still be answered
        until(lambda: handles[1].counts(START).result() and None)
    writer = ReplayWriter(shards=[handles[1]], window=1, first_shard=0, clock=time.monotonic)
    writer.push([make_segment(sequence=9)], (), NO_PHASES, 0.5)
    updater = PriorityUpdater(shards=handles, window=1, rows_per_call=1)
    while not updater.dropped:
        updater.update(mine)
    push_all(handles[:1], [make_segment(sequence=s) for s in (5, 6)])

    def is_of_the_living(batch: Batch | None) -> bool:
        return batch is not None and bool((shard_of(batch.ids) == 0).all())

    until(lambda: is_of_the_living(sampler.fetch()))
    assert not writer.has_room()
    assert handles[0].counts(START).result().inserts == 20, "the other shard lives on"

    handles[1].replace(serve(config, ENVIRONMENT, 1, 1))
    until(writer.has_room)
    assert writer.accepted_transitions == 5
    counts = handles[1].counts(START).result()
    assert (counts.incarnation, counts.inserts) == (1, 5)


# --- Ray's object store ---------------------------------------------------------------------------


def store_bytes() -> int:
    """Return how much of the object store is in use once Ray has freed what nobody refers to."""
    (node,) = ray.nodes()
    used = [-2, -1]
    while used[-1] != used[-2]:
        assert len(used) < 30, f"the object store does not come to rest: {used}"
        gc.collect()
        time.sleep(1.5)  # Ray frees once a second; there is no event to wait for
        stats = node_stats(
            node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
        )
        used.append(stats.store_stats.object_store_bytes_used)
    return used[-1]


def test_the_measure_of_the_object_store_sees_what_is_pinned() -> None:
    class Keeper:
        def keep(self, array: np.ndarray) -> None:
            self.kept = array  # a view of the object store, as every array that Ray passes

    keeper: Any = ray.remote(Keeper).options(num_cpus=0).remote()
    before = store_bytes()
    ray.get(keeper.keep.remote(ray.put(np.zeros(2_000_000, np.uint8))), timeout=PATIENCE_S)
    assert store_bytes() - before >= 2_000_000
    ray.kill(keeper)


def test_nothing_that_replay_stores_pins_the_object_store(connect: Connect) -> None:
    # Incompressible, so a push is 0.6 MB and lies in the object store.
    rng = np.random.default_rng(0)
    replay = dataclasses.replace(CONFIG.replay, capacity=10_000, max_bytes=10**9, min_size=10_000)
    config = dataclasses.replace(CONFIG, replay=replay)
    handle = connect(config, ENVIRONMENT, 0, 0)

    def push(sequence: int) -> None:
        small = make_segment(sequence=sequence)
        blocks = rng.integers(0, 256, 600_000, np.uint8)
        ends = np.array([len(blocks) // 2, len(blocks)], small.block_ends.dtype)
        packed = make_push(small._replace(blocks=blocks, block_ends=ends))
        assert handle.add(handle.prepare(packed)).result()

    for sequence in range(5):
        push(sequence)
    before = store_bytes()
    for sequence in range(5, 45):
        push(sequence)
    after = store_bytes()
    assert handle.counts(START).result().transitions == 45 * 5
    assert after - before < 2 * 600_000, f"{before} -> {after} bytes after 40 pushes of 600,000"


def test_the_weight_store_keeps_one_set_of_weights_in_the_object_store(store: Any) -> None:
    def publish_megabyte(step: int) -> None:
        publish(store, weights(step)._replace(buffer=np.full(1_000_000, step, np.uint8)))

    publish_megabyte(0)
    before = store_bytes()
    for step in range(1, 21):
        publish_megabyte(step)
    assert store_bytes() - before < 2 * 1_000_000


# --- weights --------------------------------------------------------------------------------------


@pytest.fixture
def store() -> Iterator[Any]:
    """A fresh weight store."""
    store = WeightStore.options(num_cpus=0).remote()
    yield store
    ray.kill(store)


def test_there_are_no_weights_before_the_first_and_the_latest_win(store: Any) -> None:
    poller = WeightsPoller(store)
    poller.ask()
    ray.get(store.latest.remote(), timeout=PATIENCE_S)  # so the question before it is answered
    assert poller.poll() is None
    for step in (1, 2, 3):
        publish(store, weights(step, 100 * step))
    got = next_weights(poller)
    assert got.version == WeightsVersion(0, 3)
    assert got.agent_steps == 300
    assert got.buffer.dtype == np.uint8
    assert got.buffer.shape == (300_000,)
    assert (got.buffer == 3).all()


def test_the_same_weights_do_not_come_twice(store: Any) -> None:
    poller = WeightsPoller(store)
    publish(store, weights(1))
    next_weights(poller)
    for _ in range(3):
        poller.ask()
        ray.get(store.latest.remote(), timeout=PATIENCE_S)
        assert poller.poll() is None
    publish(store, weights(2))
    assert next_weights(poller).version == WeightsVersion(0, 2)


def test_the_same_weights_come_again_with_more_agent_steps(store: Any) -> None:
    poller = WeightsPoller(store)
    for agent_steps in (100, 200):
        publish(store, weights(0, agent_steps))
        assert next_weights(poller).agent_steps == agent_steps


def test_weights_of_a_restarted_learner_are_newer_though_their_step_is_lower(store: Any) -> None:
    poller = WeightsPoller(store)
    publish(store, weights(50))
    next_weights(poller)
    publish(store, weights(40)._replace(version=WeightsVersion(1, 40)))
    assert next_weights(poller).version == WeightsVersion(1, 40)


def test_polling_does_not_wait_for_a_store_that_is_silent(store: Any) -> None:
    poller = WeightsPoller(store)
    process = psutil.Process(
        ray.get(store.__ray_call__.remote(lambda _: __import__("os").getpid()), timeout=PATIENCE_S)
    )
    process.suspend()
    try:
        began_s = time.monotonic()
        for _ in range(100):
            poller.ask()
            assert poller.poll() is None
        assert time.monotonic() - began_s < 10.0
    finally:
        process.resume()


def test_a_weight_store_that_died_has_no_news_and_another_may_take_its_place(store: Any) -> None:
    poller = WeightsPoller(store)
    publish(store, weights(1))
    assert next_weights(poller).version == WeightsVersion(0, 1)
    ray.kill(store)
    for _ in range(20):
        poller.ask()
        assert poller.poll() is None
        time.sleep(0.05)
    another = WeightStore.options(num_cpus=0).remote()
    poller.replace(another)
    publish(another, weights(2))
    assert next_weights(poller).version == WeightsVersion(0, 2)
    ray.kill(another)


def publish(store: Any, new: Weights) -> None:
    ray.get(store.publish.remote(new), timeout=PATIENCE_S)


def next_weights(poller: WeightsPoller) -> Weights:
    def attempt() -> Weights | None:
        poller.ask()
        time.sleep(0.01)
        return poller.poll()

    return until(attempt)


def weights(step: int, agent_steps: int = 0) -> Weights:
    return Weights(WeightsVersion(0, step), np.full(300_000, step, np.uint8), agent_steps)
