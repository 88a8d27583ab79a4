"""ReplayTotals: words by hand, and random histories of real shards against plain sets."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import NOTHING_LEARNED, make_push, make_segment, make_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from common.replay_totals import NEVER_HEARD, ReplayTotals
from common.types import EpisodeRecord, ShardCounts

GAME = EpisodeRecord(episode_return=1.0, agent_steps=9, epsilon=0.1, ladder_position=0.0)


def said(
    incarnation: int, inserts: int, accepted: int, episodes: int = 0, restored: int = 0
) -> ShardCounts:
    return NEVER_HEARD._replace(
        incarnation=incarnation,
        inserts=inserts,
        restored=restored,
        accepted=accepted,
        episodes=episodes,
    )


def sums(totals: ReplayTotals) -> tuple[int, int, int, int]:
    return totals.inserts, totals.accepted, totals.episodes, totals.lost


def heard(*counts: ShardCounts) -> ReplayTotals:
    """Return the totals of one shard that said this."""
    totals = ReplayTotals(1)
    for each in counts:
        assert totals.update(0, each)
    return totals


def test_living_shards_are_summed() -> None:
    totals = ReplayTotals(2)
    assert totals.silent == {0, 1}
    totals.update(0, said(0, 100, 100, 4))
    assert totals.silent == {1}
    totals.update(1, said(0, 50, 50, 3))
    assert totals.silent == set()
    assert sums(totals) == (150, 150, 7, 0)


@pytest.mark.parametrize(
    ("restored", "lost"),
    [(60, 40), (0, 100), (100, 0), (120, 0)],
    ids=["old", "no", "new", "newer"],
)
def test_restart_loses_what_came_after_the_snapshot(restored: int, lost: int) -> None:
    totals = heard(said(0, 100, 100, 4), said(1, restored + 5, 125, 5, restored))
    assert sums(totals) == (restored + 5, 125, 5, lost)


def test_what_the_first_known_incarnation_restored_is_neither_lost_nor_accepted() -> None:
    totals = heard(said(3, 1_000, 10, restored=990))
    assert sums(totals) == (1_000, 10, 0, 0)
    assert totals.update(0, said(4, 990, 10, restored=990))
    assert sums(totals) == (990, 10, 0, 10)


@pytest.mark.parametrize(
    "late",
    [said(0, 110, 110, 5), said(1, 80, 80, 4, 60), said(1, 90, 90, 3, 60)],
    ids=["of the dead", "of fewer transitions", "of fewer games"],
)
def test_late_word_changes_nothing(late: ShardCounts) -> None:
    totals = heard(said(0, 100, 100, 4), said(1, 90, 90, 4, 60))
    before, newest = sums(totals), totals.newest(0)
    assert not totals.update(0, late)
    assert (sums(totals), totals.newest(0)) == (before, newest)


def test_what_a_shard_says_that_is_known_to_be_dead_is_late() -> None:
    totals = heard(said(0, 100, 100, 4))
    totals.died(0)
    assert not totals.update(0, said(0, 110, 110, 5))
    assert totals.accepted_by(0) == (100, 4), "what its follower is told"
    assert totals.update(0, said(1, 65, 105, 5, 60))
    assert totals.update(0, said(1, 70, 110, 5, 60)), "this one lives"
    assert sums(totals) == (70, 110, 5, 40)


def test_who_heard_more_of_the_dead_than_the_driver_takes_nothing_back() -> None:
    totals = heard(said(0, 110, 110, 6), said(1, 65, 105, 5, 60))
    assert sums(totals) == (65, 110 + 5, 6, 50)
    totals.update(0, said(1, 75, 115, 7, 60))
    assert sums(totals) == (75, 110 + 15, 7, 50)


def test_who_heard_less_of_the_dead_than_the_driver_hears_of_them_from_the_living() -> None:
    totals = heard(said(0, 100, 100, 4), said(2, 65, 155, 8, 60))
    assert sums(totals) == (65, 155, 8, 40)
    assert sums(heard(said(2, 65, 155, 8, 60))) == (65, 155, 8, 0)


class History:
    """One shard over its incarnations, and its stream as a list of numbers, one for each row.

    Every word is kept, so that any may come late.
    """

    def __init__(self, shard: int, held: int, incarnation: int) -> None:
        self.shard = shard
        self.core = make_shard(shard=shard, incarnation=incarnation)
        self.sequence = 0
        self.numbers = iter(range(10**6))
        self.stream: list[int] = []
        if held:  # by a start of the run before this one
            self.insert(held)
            self.snapshot = self.core.capture()
            self.core = make_shard(shard=shard, incarnation=incarnation + 1)
            self.core.restore(self.snapshot)
        self.save()
        self.held = self.heard = set(self.stream)  # `heard`: whatever a word told of
        self.words: list[ShardCounts] = []

    def insert(self, num: int) -> None:
        segment = make_segment(actor=self.shard, sequence=self.sequence, transitions=num)
        assert self.core.add(make_push(segment, episodes=(GAME,) * (num % 2)))
        self.sequence += 1
        self.stream += [next(self.numbers) for _ in range(num)]

    def save(self) -> None:
        self.snapshot, self.saved = self.core.capture(), list(self.stream)

    def die(self, before: tuple[int, int]) -> None:
        incarnation = self.core.incarnation + 1
        self.core = make_shard(shard=self.shard, incarnation=incarnation, before=before)
        self.core.restore(self.snapshot)
        self.stream = list(self.saved)

    def word(self) -> ShardCounts:
        self.words.append(self.core.counts(NOTHING_LEARNED))
        self.heard = self.heard | set(self.stream)
        return self.words[-1]


MOVES = st.lists(
    st.tuples(
        st.integers(0, 2),  # shard
        st.sampled_from(["insert", "insert", "insert", "word", "word", "save", "die", "late"]),
        st.integers(1, 9),
    ),
    max_size=60,
)


@given(
    moves=MOVES,
    held=st.lists(st.integers(0, 20), min_size=3, max_size=3),
    first=st.integers(0, 2),
)
@settings(max_examples=100, deadline=None)
def test_random_histories_add_up(
    moves: list[tuple[int, str, int]], held: list[int], first: int
) -> None:
    """Every incarnation says something before it dies; words may be old by then.

    The driver hears every word, the learner each other one, and the newest at the end.
    """
    driver, learner = ReplayTotals(3), ReplayTotals(3)
    shards = [History(k, rows, first) for k, rows in enumerate(held)]
    lost = newest = words = 0

    def tell(index: int) -> None:
        nonlocal words
        word = shards[index].word()
        assert driver.update(index, word)
        words += 1
        if words % 2:
            learner.update(index, word)

    for index in range(3):
        tell(index)
    for index, kind, num in moves:
        shard = shards[index]
        if kind == "insert":
            shard.insert(num)
        elif kind == "word":
            tell(index)
        elif kind == "save":
            shard.save()
        elif kind == "die":
            tell(index)
            known = set(shard.stream)
            driver.died(index)
            shard.die(before=driver.accepted_by(index))
            lost += len(known - set(shard.stream))
            tell(index)
        else:
            late = shard.words[num % len(shard.words)]
            assert not driver.update(index, late) or late == driver.newest(index)
        assert driver.lost == lost
        assert driver.accepted == sum(len(one.heard - one.held) for one in shards)
        assert driver.accepted == driver.inserts - sum(held) + driver.lost
        assert learner.accepted >= newest
        newest = learner.accepted
    for index, shard in enumerate(shards):
        learner.update(index, shard.words[-1])
    assert sums(learner)[:3] == sums(driver)[:3]


@pytest.mark.parametrize("seed", range(3))
def test_incarnations_that_never_spoke_break_no_sum(seed: int) -> None:
    """What they took in and lost is not known; what they put into a snapshot is."""
    rng = np.random.default_rng(seed)
    totals, shard = ReplayTotals(1), History(0, 0, 0)
    newest = 0
    for _ in range(200):
        shard.insert(int(rng.integers(1, 3)))
        if rng.random() < 0.2:
            shard.save()
        if rng.random() < 0.2:
            totals.died(0)
            shard.die(before=totals.accepted_by(0))
        if rng.random() < 0.2:
            totals.update(0, shard.word())
            assert totals.inserts == len(shard.stream)
            assert totals.accepted == totals.inserts + totals.lost
            assert newest <= totals.accepted <= next(shard.numbers)
            newest = totals.accepted
    assert totals.lost > 0
