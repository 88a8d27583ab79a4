"""PriorityUpdater: who gets which rows, when, and what is dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from fakes import NOTHING_LEARNED, LateShard, kill, make_push, make_segment, make_shard

from common.types import PriorityUpdate
from replay.priority_updater import PriorityUpdater


def wire_to_rows(rows: int, shard: int = 0) -> LateShard:
    """Return a late shard that holds so many transitions, each of priority 1."""
    core = make_shard(alpha=1.0, shard=shard)
    core.add(make_push(make_segment(actor=shard, transitions=rows)))
    return LateShard(core)


def priorities(ids: Sequence[int], value: float = 3.0) -> PriorityUpdate:
    return PriorityUpdate(np.array(ids, np.int64), np.full(len(ids), value, np.float32))


def test_update_reaches_the_shards_that_own_the_rows() -> None:
    wires = [wire_to_rows(8, shard) for shard in range(2)]
    updater = PriorityUpdater(shards=wires, window=4, rows_per_call=1)
    second = 2**56
    update = PriorityUpdate(
        np.array([second + 1, 4, second + 7, 0]), np.array([1, 2, 3, 4], np.float32)
    )
    updater.update(update)
    sent = [wire.calls[0][1][0] for wire in wires]
    assert [one.ids.tolist() for one in sent] == [[4, 0], [second + 1, second + 7]]
    assert [one.priority.tolist() for one in sent] == [[2, 4], [1, 3]]


def test_newest_update_is_dropped_and_counted_when_the_window_is_full() -> None:
    wire = wire_to_rows(8)
    updater = PriorityUpdater(shards=[wire], window=2, rows_per_call=1)
    for _ in range(2):
        updater.update(priorities([1, 2]))
    assert updater.dropped == 0
    updater.update(priorities([3, 4, 5]))
    assert updater.dropped == 3
    assert wire.count("update_priorities") == 2
    wire.deliver()
    updater.update(priorities([6]))
    assert updater.dropped == 3
    assert wire.count("update_priorities") == 3


def test_updates_are_held_back_until_they_make_a_call() -> None:
    wire = wire_to_rows(8)
    updater = PriorityUpdater(shards=[wire], window=1, rows_per_call=5)
    updater.update(priorities([1, 2], 7.0))
    updater.update(priorities([3, 4], 8.0))
    assert wire.count("update_priorities") == 0
    updater.update(priorities([1, 5], 9.0))
    (call,) = wire.calls
    assert call[1][0].ids.tolist() == [1, 2, 3, 4, 1, 5]
    assert call[1][0].priority.tolist() == [7, 7, 8, 8, 9, 9]
    wire.deliver_all()
    mass = 3 * 1.0 + 7.0 + 8.0 + 8.0 + 9.0 + 9.0  # of row 1 the newest priority stays
    assert wire.shard.counts(NOTHING_LEARNED).mass == pytest.approx(mass + 8e-6)
    updater.update(priorities([1, 2, 3]))
    assert wire.count("update_priorities") == 1, "what is sent is not sent again"


def test_update_does_not_wait_for_an_answer() -> None:
    wire = wire_to_rows(8)
    updater = PriorityUpdater(shards=[wire], window=3, rows_per_call=1)
    for _ in range(5):
        updater.update(priorities([1]))
    assert set(wire.waits_s) == {0.0}
    assert wire.under_way == 3


def test_failure_of_an_update_reaches_the_next_one() -> None:
    wire = wire_to_rows(8)
    updater = PriorityUpdater(shards=[wire], window=3, rows_per_call=1)
    updater.update(priorities([1], np.nan))
    wire.deliver()
    with pytest.raises(ValueError, match="Expect finite priorities >= 0, actually: nan"):
        updater.update(priorities([2]))


def test_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect `window` >= 1, actually: 0"):
        PriorityUpdater(shards=[], window=0, rows_per_call=1)


# --- lost shards ----------------------------------------------------------------------------------


def test_rows_sent_to_a_shard_that_died_count_as_dropped_and_the_window_is_free_again() -> None:
    wires = [wire_to_rows(8, shard) for shard in range(2)]
    updater = PriorityUpdater(shards=wires, window=2, rows_per_call=1)
    second = 2**56
    updater.update(priorities([1, second + 2, second + 3]))
    kill(wires[1])
    wires[0].deliver()
    updater.update(priorities([4]))
    assert updater.dropped == 2, "those of the living shard arrived"
    assert wires[0].count("update_priorities") == 2


def test_updates_reach_the_process_that_took_the_place_of_a_dead_one() -> None:
    wire = wire_to_rows(8)
    updater = PriorityUpdater(shards=[wire], window=1, rows_per_call=1)
    state = wire.shard.capture()
    updater.update(priorities([1, 2]))
    kill(wire)
    updater.update(priorities([3]))  # nobody has said yet that it is dead
    wire.deliver()
    assert updater.dropped == 2
    wire.shard = make_shard(alpha=1.0, incarnation=1)
    wire.shard.restore(state)
    updater.update(priorities([4], 9.0))
    wire.deliver()
    assert updater.dropped == 3
    assert wire.shard.counts(NOTHING_LEARNED).mass == pytest.approx(7 * 1.0 + 9.0 + 8e-6)


def test_other_failure_than_a_death_is_raised_although_a_shard_died() -> None:
    wires = [wire_to_rows(8, shard) for shard in range(2)]
    updater = PriorityUpdater(shards=wires, window=4, rows_per_call=1)
    updater.update(priorities([2**56 + 1]))
    kill(wires[1])
    updater.update(priorities([1], np.nan))
    wires[0].deliver()
    with pytest.raises(ValueError, match="Expect finite priorities >= 0, actually: nan"):
        updater.update(priorities([2]))
    assert updater.dropped == 1
