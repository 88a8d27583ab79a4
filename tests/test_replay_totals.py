"""ReplayTotals: random histories of shards against plain sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.replay_totals import ReplayTotals


def say(
    totals: ReplayTotals,
    incarnation: int,
    inserts: int,
    accepted: int,
    episodes: int = 0,
    shard: int = 0,
) -> int:
    return totals.update(
        shard, incarnation=incarnation, inserts=inserts, accepted=accepted, episodes=episodes
    )


def test_living_shards_are_summed() -> None:
    totals = ReplayTotals(2)
    assert not totals.is_complete
    say(totals, 0, 100, 100, 4, shard=0)
    assert not totals.is_complete
    say(totals, 0, 50, 50, 3, shard=1)
    assert totals.is_complete
    assert (totals.inserts, totals.accepted, totals.episodes, totals.lost) == (150, 150, 7, 0)


def test_restart_from_an_old_snapshot_loses_what_came_after_it() -> None:
    totals = ReplayTotals(1)
    say(totals, 0, 100, 100, 4)
    # It comes back with 60 of them, and 5 new ones.
    assert say(totals, 1, 65, 5, 1) == 100 - 60
    assert (totals.inserts, totals.lost) == (65, 40)
    assert (totals.accepted, totals.by_the_dead(0)[0]) == (100 + 5, 100)
    assert (totals.episodes, totals.by_the_dead(0)[1]) == (5, 4)


def test_restart_without_a_snapshot_loses_everything() -> None:
    totals = ReplayTotals(1)
    say(totals, 0, 100, 100)
    assert say(totals, 1, 0, 0) == 100
    assert (totals.inserts, totals.accepted, totals.lost) == (0, 100, 100)


def test_a_shard_known_to_be_dead_counts_among_the_dead_at_once() -> None:
    totals = ReplayTotals(1)
    say(totals, 0, 100, 100, 4)
    totals.died(0)
    assert (totals.accepted, totals.by_the_dead(0)[0]) == (100, 100)
    assert (totals.episodes, totals.by_the_dead(0)[1]) == (4, 4)
    assert say(totals, 0, 110, 110, 5) == 0, "late"
    assert (totals.accepted, totals.episodes) == (100, 4)
    assert say(totals, 1, 65, 5, 1) == 100 - 60
    assert (totals.accepted, totals.by_the_dead(0)[0], totals.lost) == (105, 100, 40)


def test_what_a_snapshot_holds_beyond_the_last_word_was_accepted() -> None:
    totals = ReplayTotals(1)
    say(totals, 0, 100, 100)
    assert say(totals, 1, 130, 10) == 0  # restored 120, of which 20 were never told
    assert (totals.inserts, totals.accepted, totals.lost) == (130, 130, 0)


def test_what_the_first_known_incarnation_restored_is_not_accepted_again() -> None:
    totals = ReplayTotals(1)
    say(totals, 3, 1_000, 10)
    assert (totals.inserts, totals.accepted) == (1_000, 10)
    assert say(totals, 4, 990, 0) == 10
    assert (totals.accepted, totals.lost) == (10, 10)


def test_late_word_of_a_dead_incarnation_changes_nothing() -> None:
    totals = ReplayTotals(1)
    say(totals, 0, 100, 100, 4)
    say(totals, 1, 60, 0, 0)
    before = (totals.inserts, totals.accepted, totals.episodes, totals.lost)
    assert say(totals, 0, 110, 110, 5) == 0
    assert (totals.inserts, totals.accepted, totals.episodes, totals.lost) == before


@pytest.mark.parametrize(("inserts", "episodes"), [(80, 4), (100, 3)])
def test_late_word_of_the_living_incarnation_takes_nothing_back(
    inserts: int, episodes: int
) -> None:
    totals = ReplayTotals(1)
    say(totals, 0, 100, 100, 4)
    say(totals, 0, inserts, inserts, episodes)
    assert (totals.inserts, totals.accepted, totals.episodes) == (100, 100, 4)
    assert say(totals, 1, 50, 0) == 50, "what was known once and is gone is lost"


class History:
    """One shard as it really was: the stream as a list of numbers, one for each acceptance.

    Every word is kept, so that any may come late.
    """

    def __init__(self, restored: int, incarnation: int) -> None:
        self.incarnation = incarnation
        self.stream = list(range(-restored, 0))
        self.restored = restored
        self.next_number = 0
        self.episodes = 0
        self.snapshot: list[int] = list(self.stream)
        self.words: list[tuple[int, int, int, int]] = []
        self.heard: list[int] = []  # the stream at the newest word taken

    def insert(self, num: int) -> None:
        self.stream += range(self.next_number, self.next_number + num)
        self.next_number += num
        self.episodes += num % 2

    def save(self) -> None:
        self.snapshot = list(self.stream)

    def die(self) -> None:
        self.incarnation += 1
        self.stream = list(self.snapshot)
        self.restored = len(self.stream)
        self.episodes = 0

    def word(self) -> tuple[int, int, int, int]:
        accepted = len(self.stream) - self.restored
        self.words.append((self.incarnation, len(self.stream), accepted, self.episodes))
        return self.words[-1]


MOVES = st.lists(
    st.tuples(
        st.integers(0, 2),  # shard
        st.sampled_from(["insert", "insert", "insert", "word", "word", "save", "die", "late"]),
        st.integers(0, 9),
    ),
    max_size=60,
)


@given(
    moves=MOVES,
    restored=st.lists(st.integers(0, 20), min_size=3, max_size=3),
    first=st.integers(0, 2),
)
@settings(max_examples=150, deadline=None)
def test_random_histories_add_up(
    moves: list[tuple[int, str, int]], restored: list[int], first: int
) -> None:
    """Every incarnation says something before it dies; words may be old by then."""
    totals = ReplayTotals(3)
    shards = [History(held, first) for held in restored]
    lost = accepted = 0

    def tell(index: int) -> None:
        """Let a shard speak, and count with sets of numbers instead of sums."""
        nonlocal lost, accepted
        shard = shards[index]
        known, now = set(shard.heard), set(shard.stream)
        is_first = not shard.words
        is_restart = bool(shard.words) and shard.words[-1][0] < shard.incarnation
        incarnation, inserts, came, episodes = shard.word()
        gone = say(totals, incarnation, inserts, came, episodes, shard=index)
        assert gone == (len(known - now) if is_restart else 0)
        lost += gone
        accepted += came if is_first else len(now - known)
        shard.heard = list(shard.stream)

    for index in range(3):
        tell(index)
    newest = 0
    for index, kind, num in moves:
        shard = shards[index]
        if kind == "insert":
            shard.insert(num)
        elif kind == "word":
            tell(index)
        elif kind == "die":
            shard.die()
            tell(index)
        elif kind == "late":
            incarnation, inserts, came, episodes = shard.words[num % len(shard.words)]
            assert say(totals, incarnation, inserts, came, episodes, shard=index) == 0
        else:
            shard.save()
        assert totals.accepted >= newest
        newest = totals.accepted
        assert totals.inserts == sum(len(one.heard) for one in shards)
        assert totals.lost == lost
        assert totals.accepted == accepted
        assert totals.accepted == totals.inserts - sum(restored) + totals.lost


@pytest.mark.parametrize("seed", range(3))
def test_incarnations_that_never_spoke_break_no_sum(seed: int) -> None:
    """What they took in and lost is not known; what they put into a snapshot is."""
    rng = np.random.default_rng(seed)
    totals, shard = ReplayTotals(1), History(0, 0)
    newest = 0
    for _ in range(400):
        shard.insert(int(rng.integers(5)))
        if rng.random() < 0.2:
            shard.save()
        if rng.random() < 0.2:
            shard.die()
        if rng.random() < 0.2:
            say(totals, *shard.word())
            assert totals.inserts == len(shard.stream)
            assert totals.accepted == totals.inserts + totals.lost
            assert newest <= totals.accepted <= shard.next_number
            newest = totals.accepted
    assert totals.lost > 0
