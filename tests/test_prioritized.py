from __future__ import annotations

import numpy as np
import pytest
from fakes import SPEC, held, make_replay, make_segment
from oracles import NaiveReplay

from common.packing import PackingError, pack_segment
from common.types import PriorityUpdate
from replay.decoding import Decoder
from replay.prioritized import PrioritizedReplay


def update(ids: list[int], priority: list[float]) -> PriorityUpdate:
    return PriorityUpdate(np.array(ids, np.int64), np.array(priority, np.float32))


def fill(
    replay: PrioritizedReplay, priorities: list[list[float]], first_sequence: int = 0
) -> list[float]:
    """Add one segment for each list and return all priorities, in the order of the ids."""
    for sequence, priority in enumerate(priorities, first_sequence):
        replay.add(
            pack_segment(
                make_segment(sequence=sequence, transitions=len(priority), priority=priority)
            )
        )
        replay.check_valid()
    return [one for priority in priorities for one in priority]


# --- the formula ----------------------------------------------------------------------------------


def test_probability_is_the_power_of_the_priority_over_their_sum() -> None:
    replay = make_replay(alpha=0.6)
    fill(replay, [[0.0, 1.0, 4.0]])
    masses = [(0.0 + 1e-6) ** 0.6, (1.0 + 1e-6) ** 0.6, (4.0 + 1e-6) ** 0.6]
    reply = replay.sample(500)
    assert replay.mass == pytest.approx(sum(masses), rel=1e-12)
    expected = np.array(masses)[reply.ids] / sum(masses)
    np.testing.assert_allclose(reply.probability, expected, rtol=1e-12)
    assert reply.probability.dtype == np.float64


def test_alpha_zero_is_uniform_whatever_the_priorities() -> None:
    replay = make_replay(alpha=0.0)
    fill(replay, [[0.0, 1.0, 4.0, 1e30]])
    assert replay.sample(8).probability.tolist() == [1 / 4] * 8
    replay.update_priorities(update([0, 1], [0.0, 7.0]))
    assert replay.sample(8).probability.tolist() == [1 / 4] * 8


def test_transition_without_error_is_still_drawn() -> None:
    replay = make_replay(alpha=0.6)
    fill(replay, [[0.0, 0.0, 0.0]])
    assert set(replay.sample(50).ids) == {0, 1, 2}


def test_new_priority_is_the_exponents_base() -> None:
    replay = make_replay(alpha=0.5)
    fill(replay, [[1.0, 1.0]])
    replay.update_priorities(update([1], [9.0]))
    assert replay.mass == pytest.approx((1 + 1e-6) ** 0.5 + (9 + 1e-6) ** 0.5, rel=1e-12)


def test_last_priority_of_an_id_counts() -> None:
    replay = make_replay(alpha=1.0)
    fill(replay, [[1.0, 1.0]])
    assert replay.update_priorities(update([1, 0, 1], [5.0, 2.0, 3.0])) == 0
    replay.check_valid()
    assert replay.mass == pytest.approx(2.0 + 3.0 + 2e-6, rel=1e-12)


def test_counts_say_what_there_is() -> None:
    replay = make_replay(capacity=10, alpha=1.0)
    assert held(replay) == (0, 0, 0.0)
    fill(replay, [[1.0] * 5, [2.0] * 5, [3.0] * 4])
    assert held(replay)[:2] == (5 + 5 + 4, 5 + 4)
    assert replay.mass == pytest.approx(5 * 2.0 + 4 * 3.0 + 9 * 1e-6, rel=1e-12)


# --- what is drawn --------------------------------------------------------------------------------


def test_draws_are_stratified() -> None:
    """One row from each equal part of the mass, so rows of equal mass come once each."""
    replay = make_replay(capacity=12, alpha=1.0)
    fill(replay, [[2.0] * 6, [2.0] * 6])
    for _ in range(20):
        assert replay.sample(12).ids.tolist() == list(range(12))
        halves = replay.sample(6).ids
        assert (halves // 2).tolist() == list(range(6))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("num", [1, 7, 64])
def test_rows_are_drawn_as_often_as_their_probability_says(alpha: float, num: int) -> None:
    """Within five standard deviations of independent draws; strata only lower the deviation."""
    replay = make_replay(capacity=27, alpha=alpha, seed=num)
    rng = np.random.default_rng(3)
    priority = fill(replay, [rng.exponential(1.0, 8).tolist() for _ in range(3)])
    replay.update_priorities(update([0, 20], [6.0, 0.0]))
    priority[0], priority[20] = 6.0, 0.0
    mass = (np.array(priority) + 1e-6) ** alpha
    p = mass / mass.sum()
    calls = min(20_000 // num, 6000)
    drawn = np.zeros(24)
    for _ in range(calls):
        reply = replay.sample(num)
        np.add.at(drawn, reply.ids, 1)
    total = calls * num
    np.testing.assert_allclose(reply.probability, p[reply.ids], rtol=1e-6)
    assert np.all(np.abs(drawn - total * p) <= 5 * np.sqrt(total * p * (1 - p)) + 1)


def test_seed_decides_what_is_drawn() -> None:
    def draw(seed: int) -> list[int]:
        replay = make_replay(alpha=0.6, seed=seed)
        fill(replay, [[1.0] * 8] * 3)
        return replay.sample(16).ids.tolist()

    assert draw(1) == draw(1) != draw(2)


def test_empty_replay_gives_no_rows() -> None:
    reply = make_replay().sample(5)
    for field in reply[1:]:
        assert len(field) == 0


def test_reply_has_the_types_it_says() -> None:
    replay = make_replay()
    for segments in (0, 1):
        fill(replay, [[1.0] * 5] * segments)
        reply = replay.sample(5)
        dtypes = {field: getattr(reply, field).dtype.name for field in reply._fields}
        assert dtypes == {
            "ids": "int64",
            "probability": "float64",
            "a_tm1": "int32",
            "r_t": "float32",
            "discount_t": "float32",
            "newest_tm1": "int32",
            "newest_t": "int32",
            "depth_tm1": "uint8",
            "depth_t": "uint8",
            "blocks": "uint8",
            "block_bytes": "int32",
            "block_frames": "int32",
            "row_blocks": "int32",
        }
        assert reply.block_bytes.sum() == len(reply.blocks)
        assert reply.row_blocks.sum() == len(reply.block_bytes) == len(reply.block_frames)


def test_sample_carries_no_more_than_the_blocks_of_its_rows() -> None:
    replay = make_replay()
    replay.add(pack_segment(make_segment(transitions=40, frames_per_block=4)))
    reply = replay.sample(40)
    # Frames i-3..i+1 of row i: at most the blocks of five consecutive frames, so two.
    assert reply.row_blocks.max() == 2
    assert reply.row_blocks[0] == 1
    assert reply.block_frames.tolist() == [
        min(4, 41 - 4 * block)
        for row in range(40)
        for block in range(max(0, row - 3) // 4, (row + 1) // 4 + 1)
    ]


# --- sequential order -----------------------------------------------------------------------------


def test_sequential_draws_are_neighbours_and_every_row_is_drawn_as_often() -> None:
    """Within five standard deviations, and p says so: 1 / N for each of the live rows."""
    replay = make_replay(capacity=12, is_sequential=True)
    fill(replay, [[1.0] * 5] * 3)
    live, calls = list(range(5, 15)), 4000
    drawn = np.zeros(15)
    for _ in range(calls):
        reply = replay.sample(4)
        start = live.index(reply.ids[0])
        assert reply.ids.tolist() == [live[(start + i) % 10] for i in range(4)]
        assert reply.probability.tolist() == [1 / 10] * 4
        drawn[reply.ids] += 1
    p = 4 / 10
    assert np.all(np.abs(drawn[5:] - calls * p) <= 5 * np.sqrt(calls * p * (1 - p)))


def test_sequential_draw_longer_than_the_replay_begins_anew() -> None:
    replay = make_replay(is_sequential=True)
    fill(replay, [[1.0] * 3])
    ids = replay.sample(7).ids
    assert ids.tolist() == [(ids[0] + i) % 3 for i in range(7)]
    assert len(make_replay(is_sequential=True).sample(2).ids) == 0


def test_sequential_order_knows_no_priorities() -> None:
    with pytest.raises(ValueError, match="Expect `alpha` 0 in sequential order, actually: 0.6"):
        make_replay(alpha=0.6, is_sequential=True)


# --- traps ----------------------------------------------------------------------------------------


def test_trap_unfilled_and_emptied_slots_are_never_drawn() -> None:
    """Capacity 13 leaves unused leaves; evicting five rows for four leaves a dead slot."""
    for alpha in (0.0, 1.0):
        replay = make_replay(capacity=13, alpha=alpha)
        fill(replay, [[1.0] * 5])
        assert set(replay.sample(2000).ids) == set(range(5))
        fill(replay, [[1.0] * 5, [1.0] * 4], first_sequence=1)
        assert set(replay.sample(2000).ids) == set(range(5, 14))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_trap_priority_that_is_no_number_is_refused_and_changes_nothing(bad: float) -> None:
    replay = make_replay(alpha=0.6)
    fill(replay, [[1.0, 2.0]])
    before = held(replay)
    with pytest.raises(ValueError, match=f"Expect finite priorities >= 0, actually: {bad}"):
        replay.update_priorities(update([0, 1], [3.0, bad]))
    # Nor does it come in with a stale id or with a push.
    with pytest.raises(ValueError, match="Expect finite priorities >= 0"):
        replay.update_priorities(update([77], [bad]))
    with pytest.raises(PackingError, match="Expect finite priorities >= 0"):
        replay.add(pack_segment(make_segment(sequence=9, transitions=1, priority=[bad])))
    assert held(replay) == before
    replay.check_valid()


def test_trap_total_does_not_drift() -> None:
    replay = make_replay(capacity=30, alpha=1.0)
    naive: dict[int, float] = {}
    rng = np.random.default_rng(0)
    for sequence in range(100):
        priority = (10.0 ** rng.uniform(-4, 6, 6)).astype(np.float32)
        first = replay.storage.inserted
        replay.add(
            pack_segment(make_segment(sequence=sequence, transitions=6, priority=priority.tolist()))
        )
        naive |= {first + i: float(priority[i]) + 1e-6 for i in range(6)}
        naive = {number: mass for number, mass in naive.items() if number >= first + 6 - 30}
    ids = list(naive)
    replay.update_priorities(update(ids, [1e-4] * 30))
    assert replay.mass == pytest.approx(30 * (float(np.float32(1e-4)) + 1e-6), rel=1e-12)


def test_priority_for_an_evicted_id_is_dropped_and_counted() -> None:
    replay = make_replay(capacity=10, alpha=1.0)
    fill(replay, [[1.0] * 5] * 3)
    before = held(replay)
    assert replay.update_priorities(update([0, 4, 2**56, 15], [9.0] * 4)) == 4
    assert held(replay) == before
    assert replay.update_priorities(update([0, 5], [9.0, 3.0])) == 1
    assert replay.mass == pytest.approx(9 * 1.0 + 3.0 + 10e-6)
    replay.check_valid()


def test_empty_update_changes_nothing() -> None:
    assert make_replay().update_priorities(update([], [])) == 0


# --- what is refused ------------------------------------------------------------------------------


def test_negative_alpha_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect `alpha` >= 0, actually: -0.1"):
        make_replay(alpha=-0.1)


def test_sample_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect `num` >= 1, actually: 0"):
        make_replay().sample(0)


def test_check_valid_finds_mass_on_a_dead_slot_and_none_on_a_live_one() -> None:
    replay = make_replay(alpha=1.0)
    fill(replay, [[1.0] * 5])
    replay._tree.set(np.array([7]), np.array([1.0]))
    with pytest.raises(AssertionError, match="mass on a dead slot"):
        replay.check_valid()
    replay._tree.set(np.array([7, 2]), np.array([0.0, 0.0]))
    with pytest.raises(AssertionError, match="or none on a live one"):
        replay.check_valid()


# --- against the naive replay ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_any_history_gives_what_the_naive_replay_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity, max_bytes = int(rng.integers(10, 60)), int(rng.integers(900, 6000))
    alpha = float(rng.choice([0.0, 0.6, 1.0]))
    replay = make_replay(
        capacity=capacity, max_bytes=max_bytes, alpha=alpha, seed=seed, shard=2, incarnation=3
    )
    first_id = 2 * 2**56 + 3 * 2**40
    naive = NaiveReplay(
        capacity=capacity, max_bytes=max_bytes, alpha=alpha, first_id=first_id, spec=SPEC
    )
    decoder = Decoder(spec=SPEC, threads=1)
    sequence = 0
    for _ in range(120):
        kind = rng.choice(["add", "add", "repeat", "update", "sample"])
        if kind in ("add", "repeat"):
            sequence += kind == "add"
            transitions = int(rng.integers(1, 10))
            segment = make_segment(
                sequence=sequence if kind == "add" else int(rng.integers(0, sequence + 1)),
                transitions=transitions,
                frames_per_block=int(rng.integers(1, 6)),
                priority=rng.exponential(1.0, transitions).tolist(),
            )
            packed = pack_segment(segment)
            assert (replay.add(packed) is not None) == naive.add(segment, len(packed))
        elif kind == "update":
            oldest = max(0, naive.inserted - 2 * capacity)
            ids = first_id + rng.integers(oldest, naive.inserted + 2, 15)
            priorities = rng.exponential(1.0, 15).astype(np.float32)
            stale = replay.update_priorities(PriorityUpdate(ids, priorities))
            assert stale == naive.update(ids.tolist(), priorities.tolist())
        elif naive.rows:
            reply = replay.sample(int(rng.integers(1, 20)))
            s_tm1, s_t = decoder.decode(reply)
            for i, number in enumerate(reply.ids.tolist()):
                row = naive.rows[number]
                np.testing.assert_array_equal(s_tm1[i], row.s_tm1)
                np.testing.assert_array_equal(s_t[i], row.s_t)
                columns = (reply.a_tm1[i], reply.r_t[i], reply.discount_t[i])
                assert columns == (row.a_tm1, row.r_t, row.discount_t)
                expected = naive.masses[number] / naive.total
                assert reply.probability[i] == pytest.approx(expected, rel=1e-12)
        replay.check_valid()
        assert held(replay)[:2] == (naive.inserted, len(naive.rows))
        assert replay.mass == pytest.approx(naive.total, rel=1e-12)
        assert replay.storage.num_bytes == naive.num_bytes
        assert replay.storage.evicted == naive.evicted
