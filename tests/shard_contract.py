"""What every replay.handles.ShardHandle must do, in this process or behind Ray.

A test module subclasses `ShardHandleContract` as `Test...` and overrides the fixture `connect`.
test_whole_path.py takes the same connectors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from fakes import SPEC, make_push, make_segment
from oracles import naive_stacks

from common.config import Config, LearnerConfig, ReplayConfig
from common.types import EnvironmentSpec, LearnerCounts, PriorityUpdate
from replay.assembly import make_shard
from replay.decoding import Decoder
from replay.handles import LocalHandle, ShardHandle
from replay.storage import shard_of

# (config, spec, shard, incarnation) -> a handle to a fresh shard
Connect = Callable[[Config, EnvironmentSpec, int, int], ShardHandle]

ENVIRONMENT = EnvironmentSpec("scripted", SPEC, 3, 1, "a script")
CONFIG = Config(
    replay=ReplayConfig(
        capacity=40,
        max_bytes=10**6,
        min_size=10,
        samples_per_insert=2.0,
        band=40.0,
        priority_exponent=1.0,
    ),
    learner=LearnerConfig(batch_size=10),
)
START = LearnerCounts(samples=0, inserts_elsewhere=0, version=None)
PATIENCE_S = 60.0


def with_shards(shards: int) -> Config:
    """Return the contract's configuration for so many shards."""
    return dataclasses.replace(CONFIG, replay=dataclasses.replace(CONFIG.replay, shards=shards))


def held(handle: ShardHandle, learner: LearnerCounts = START) -> tuple[int, int]:
    """Return the transitions ever inserted and those that are live."""
    counts = handle.counts(learner).result()
    return counts.inserts, counts.transitions


class ShardHandleContract:
    """Tests of one handle to one fresh shard."""

    @pytest.fixture
    def connect(self) -> Connect:
        raise NotImplementedError

    @pytest.fixture
    def handle(self, connect: Connect) -> ShardHandle:
        return connect(CONFIG, ENVIRONMENT, 0, 0)

    def test_answer_can_be_waited_for_and_asked_again(self, handle: ShardHandle) -> None:
        pending = handle.counts(START)
        assert pending.wait(PATIENCE_S)
        assert pending.wait(0.0)
        assert pending.result() == pending.result() == (0, 0, 0, 0, 0.0, 0, 0)

    def test_accepted_push_is_in(self, handle: ShardHandle) -> None:
        assert handle.add(handle.prepare(make_push(make_segment()))).result() is True
        counts = handle.counts(START).result()
        assert (counts.inserts, counts.transitions, counts.accepted) == (5, 5, 5)
        assert counts.mass == pytest.approx(5 * (1 + 1e-6))

    def test_rows_come_back_as_they_were_pushed(self, handle: ShardHandle) -> None:
        segments = [make_segment(sequence=s, frames_per_block=3) for s in range(2)]
        assert handle.add(handle.prepare(make_push(*segments))).result()
        counts, (reply,) = handle.sample((10,), START).result()
        assert reply.ids.tolist() == list(range(10))  # of equal mass, so once each
        assert reply.probability == pytest.approx([1 / 10] * 10)
        assert (counts.inserts, counts.transitions) == (10, 10)
        assert reply.r_t.tolist() == [*segments[0].r_t.tolist(), *segments[1].r_t.tolist()]
        s_tm1, s_t = Decoder(spec=SPEC, threads=1).decode(reply)
        expected = naive_stacks(segments[0], SPEC) + naive_stacks(segments[1], SPEC)
        np.testing.assert_array_equal(s_tm1, np.stack([one for one, _ in expected]))
        np.testing.assert_array_equal(s_t, np.stack([other for _, other in expected]))

    def test_batches_asked_for_at_once_come_apart(self, handle: ShardHandle) -> None:
        assert handle.add(handle.prepare(make_push(make_segment()))).result()
        replies = handle.sample((5, 2, 5), START).result().batches
        assert [len(reply.ids) for reply in replies] == [5, 2, 5]
        assert [replies[i].ids.tolist() for i in (0, 2)] == [list(range(5))] * 2  # each stratified

    def test_empty_shard_gives_no_rows(self, handle: ShardHandle) -> None:
        assert len(handle.sample((4,), START).result().batches[0].ids) == 0

    def test_trap_retried_push_is_inserted_once(self, handle: ShardHandle) -> None:
        push = make_push(make_segment(sequence=0), make_segment(sequence=1))
        assert handle.add(handle.prepare(push)).result()
        assert handle.add(handle.prepare(push)).result()
        prepared = handle.prepare(make_push(make_segment(sequence=1), make_segment(sequence=2)))
        assert handle.add(prepared).result()
        assert held(handle, START) == (15, 15)

    def test_trap_push_of_a_restarted_actor_is_no_retry(self, handle: ShardHandle) -> None:
        for incarnation in range(3):
            push = make_push(make_segment(incarnation=incarnation))
            assert handle.add(handle.prepare(push)).result()
        assert handle.counts(START).result().inserts == 3 * 5

    def test_push_too_far_ahead_is_answered_not_yet_until_samples_catch_up(
        self, handle: ShardHandle
    ) -> None:
        for sequence in range(6):  # error = (30 - 10) * 2 - 0 = the band
            push = make_push(make_segment(sequence=sequence))
            assert handle.add(handle.prepare(push)).result()
        prepared = handle.prepare(make_push(make_segment(sequence=6)))
        assert not handle.add(prepared).result()
        assert handle.counts(START).result().inserts == 30
        assert not handle.add(prepared).result()
        run = START._replace(samples=5 * 2)
        assert handle.counts(run).result().inserts == 30
        assert handle.add(prepared).result()

    def test_inserts_elsewhere_count_for_the_limiter(self, handle: ShardHandle) -> None:
        assert handle.add(handle.prepare(make_push(make_segment(sequence=0)))).result()
        handle.sample((5,), START._replace(inserts_elsewhere=25)).result()
        prepared = handle.prepare(make_push(make_segment(sequence=1)))
        assert not handle.add(prepared).result()

    def test_new_priorities_change_the_mass(self, handle: ShardHandle) -> None:
        assert handle.add(handle.prepare(make_push(make_segment()))).result()
        update = PriorityUpdate(np.array([0, 3], np.int64), np.array([5.0, 0.0], np.float32))
        assert handle.update_priorities(update).result() == 0
        assert handle.counts(START).result().mass == pytest.approx(3 * 1.0 + 5.0 + 5e-6)

    def test_priorities_for_the_evicted_are_counted(self, handle: ShardHandle) -> None:
        run = START._replace(samples=1000)
        for sequence in range(9):
            handle.counts(run).result()
            push = make_push(make_segment(sequence=sequence))
            assert handle.add(handle.prepare(push)).result()
        assert held(handle, run) == (45, 40)
        update = PriorityUpdate(np.arange(4, 6), np.ones(2, np.float32))
        assert handle.update_priorities(update).result() == 1

    def test_ids_say_which_shard_and_which_life_of_it(self, connect: Connect) -> None:
        handle = connect(with_shards(2), ENVIRONMENT, 1, 4)
        assert handle.add(handle.prepare(make_push(make_segment()))).result()
        counts, (rows,) = handle.sample((5,), START).result()
        assert (counts.incarnation, counts.accepted) == (4, 5)
        ids = rows.ids
        assert shard_of(ids).tolist() == [1] * 5
        assert ids.tolist() == [2**56 + 4 * 2**40 + i for i in range(5)]

    def test_corrupt_segment_is_left_out_and_the_rest_of_its_push_is_in(
        self, handle: ShardHandle
    ) -> None:
        sound = make_push(*(make_segment(sequence=s) for s in range(3)))
        cut = sound.segments[1][:-1]
        push = sound._replace(segments=(sound.segments[0], cut, sound.segments[2]))
        assert handle.add(handle.prepare(push)).result()
        assert held(handle, START) == (10, 10)
        rewards = handle.sample((10,), START).result().batches[0].r_t
        steps = np.arange(5, dtype=np.float32)
        np.testing.assert_allclose(rewards, np.concatenate([steps, steps + 0.2]), rtol=1e-6)
        # It was not taken for known: pushed whole, it comes in.
        assert handle.add(handle.prepare(sound)).result()
        assert held(handle, START) == (15, 15)

    def test_senseless_priorities_are_an_error_and_the_shard_lives_on(
        self, handle: ShardHandle
    ) -> None:
        assert handle.add(handle.prepare(make_push(make_segment()))).result()
        update = PriorityUpdate(np.array([0], np.int64), np.array([np.nan], np.float32))
        with pytest.raises(ValueError, match="Expect finite priorities >= 0, actually: nan"):
            handle.update_priorities(update).result()
        assert handle.counts(START).result().mass == pytest.approx(5.0 + 5e-6)


def connect_local(
    config: Config, spec: EnvironmentSpec, shard: int, incarnation: int
) -> LocalHandle:
    """Return a fresh shard in this process."""
    max_bytes = config.replay.max_bytes
    assert max_bytes is not None
    return LocalHandle(
        make_shard(
            config,
            spec,
            shard=shard,
            incarnation=incarnation,
            max_bytes=max_bytes,
            accepted_before=0,
            episodes_before=0,
        )
    )
