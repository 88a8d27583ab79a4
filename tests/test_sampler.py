from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from fakes import (
    NO_PHASES,
    NOTHING_LEARNED,
    SPEC,
    FakeClock,
    LateShard,
    make_push,
    make_segment,
    make_shard,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import NaiveReplay, naive_stacks
from sampling import make_sampler
from shard_contract import CONFIG, ENVIRONMENT, with_shards

from common.types import Batch, EpisodeRecord, PriorityUpdate, Segment, WeightsVersion
from replay.assembly import make_sampler as make_sampler_from
from replay.handles import LocalHandle, ShardHandle
from replay.priority_updater import PriorityUpdater
from replay.rate_limiter import RateLimiter
from replay.sampler import ReplaySampler, importance_weights, split_rows
from replay.shard import ReplayShard
from replay.storage import shard_of
from replay.writer import ReplayWriter


def filled(priorities: Sequence[Sequence[float]], alpha: float = 1.0) -> list[ReplayShard]:
    """Return one shard for each list of priorities, with a segment for every 8 of them."""
    shards = []
    for k, mine in enumerate(priorities):
        shard = make_shard(alpha=alpha, shard=k, seed=k)
        for start in range(0, len(mine), 8):
            priority = mine[start : start + 8]
            shard.add(
                make_push(
                    make_segment(
                        actor=k,
                        sequence=start // 8,
                        transitions=len(priority),
                        priority=priority,
                    )
                )
            )
        shards.append(shard)
    return shards


def handles(shards: Sequence[ReplayShard]) -> list[ShardHandle]:
    return [LocalHandle(shard) for shard in shards]


def fetch(sampler: ReplaySampler) -> Batch:
    """Return the next batch; the first call may only learn the counts."""
    batch = sampler.fetch() or sampler.fetch()
    assert batch is not None
    return batch


def place(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each row's shard and its number there."""
    return shard_of(ids), ids & (2**40 - 1)


# --- importance weights ---------------------------------------------------------------------------


def test_weights_by_hand() -> None:
    # N = 4 rows of which one has half of the mass: N p = 2, 2/3, 2/3.
    weights = importance_weights(np.array([1 / 2, 1 / 6, 1 / 6]), 4, 0.5)
    largest = (4 / 6) ** -0.5
    assert weights.dtype == np.float32
    assert weights == pytest.approx([2**-0.5 / largest, 1.0, 1.0], rel=1e-6)


def test_uniform_rows_weigh_one() -> None:
    assert importance_weights(np.full(5, 1 / 20), 20, 0.4).tolist() == [1.0] * 5


def test_beta_zero_weighs_all_rows_alike() -> None:
    assert importance_weights(np.array([0.9, 1e-9]), 7, 0.0).tolist() == [1.0, 1.0]


def test_beta_one_weighs_rows_by_the_inverse_of_their_probability() -> None:
    weights = importance_weights(np.array([0.5, 0.125, 0.25]), 8, 1.0)
    assert weights.tolist() == [0.125 / 0.5, 1.0, 0.125 / 0.25]


# --- the split over shards ------------------------------------------------------------------------


def test_split_fixes_the_whole_parts_and_draws_the_rest() -> None:
    rng = np.random.default_rng(0)
    splits = np.array([split_rows(10, np.array([3.0, 1.0]), rng) for _ in range(4000)])
    assert {tuple(split) for split in splits.tolist()} == {(7, 3), (8, 2)}
    # A coin for one row: the mean of 4000 is within 5 * 0.5 / sqrt(4000) of one half.
    np.testing.assert_allclose(splits.mean(axis=0), [7.5, 2.5], atol=5 * 0.5 / 4000**0.5)


def test_split_without_a_rest_is_exact() -> None:
    rng = np.random.default_rng(0)
    assert split_rows(8, np.array([3.0, 1.0, 0.0]), rng).tolist() == [6, 2, 0]


@given(
    rows=st.integers(1, 1024),
    masses=st.lists(
        st.one_of(st.just(0.0), st.floats(1e-6, 1e12), st.just(1.0)), min_size=1, max_size=6
    ),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=300, deadline=None)
def test_split_adds_up_and_asks_nothing_of_an_empty_shard(
    rows: int, masses: list[float], seed: int
) -> None:
    mass = np.array([*masses, 1.0]) if not any(masses) else np.array(masses)
    split = split_rows(rows, mass, np.random.default_rng(seed))
    assert split.dtype == np.int64
    assert split.sum() == rows
    assert not split[mass == 0].any()
    assert np.all(np.abs(split - rows * mass / mass.sum()) < len(mass))


# --- batches --------------------------------------------------------------------------------------


def test_batch_has_the_types_it_says() -> None:
    for shards in (1, 2):
        sampler = make_sampler(handles(filled([[1.0] * 8] * shards)), batch_size=8)
        batch = fetch(sampler)
        dtypes = {field: getattr(batch, field).dtype.name for field in Batch._fields}
        assert dtypes == {
            "ids": "int64",
            "weight": "float32",
            "s_tm1": "uint8",
            "a_tm1": "int64",
            "r_t": "float32",
            "discount_t": "float32",
            "s_t": "uint8",
        }
        assert batch.s_tm1.shape == batch.s_t.shape == (8, *SPEC.shape)
        # torch takes them as they are, without a warning about read-only memory.
        assert all(getattr(batch, field).flags.writeable for field in Batch._fields)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_columns_of_a_batch_belong_together(shards: int) -> None:
    cores = filled([[1.0] * 8] * shards)
    segments = [make_segment(actor=k, transitions=8) for k in range(shards)]
    stacks = [naive_stacks(segment, SPEC) for segment in segments]
    sampler = make_sampler(handles(cores), batch_size=8 * shards)
    batch = fetch(sampler)
    assert len(set(batch.ids.tolist())) == 8 * shards, "rows of equal mass come once each"
    for i, (k, row) in enumerate(zip(*place(batch.ids), strict=True)):
        assert batch.a_tm1[i] == segments[k].a_tm1[row]
        assert batch.r_t[i] == segments[k].r_t[row]
        assert batch.discount_t[i] == segments[k].discount_t[row]
        np.testing.assert_array_equal(batch.s_tm1[i], stacks[k][row][0])
        np.testing.assert_array_equal(batch.s_t[i], stacks[k][row][1])


PRIORITIES = {
    1: [np.random.default_rng(5).exponential(1.0, 24).tolist()],
    2: [
        np.random.default_rng(6).exponential(1.0, 24).tolist(),
        (3 * np.random.default_rng(7).exponential(1.0, 16)).tolist(),
    ],
}


def joint_probability(priorities: Sequence[Sequence[float]], alpha: float) -> list[NDArray]:
    """Return what one big replay would give each row: its mass over the mass of all shards."""
    masses = [(np.array(mine, np.float32) + np.float64(1e-6)) ** alpha for mine in priorities]
    total = sum(mass.sum() for mass in masses)
    return [mass / total for mass in masses]


# Of each shard, (mass, rows); 13 rows are a batch.
UNEVEN = {
    "a restarted shard of 0.1 %": [(1000.0, 24), (500.0, 16), (1.5, 5)],
    "half of the rows in a hundredth of the mass": [(99.0, 24), (1.0, 24)],
    "five shards of less than a row each": [(1.0, 8)] * 5 + [(60.0, 8)],
    "one has nearly all": [(1e-3, 3), (1.0, 8)],
    "even": [(1.0, 8)] * 3,
}


@pytest.mark.parametrize("what", UNEVEN)
@pytest.mark.parametrize("rows_per_request", [1, 128])
def test_correction_is_unbiased_for_any_split_of_mass_over_shards(
    what: str, rows_per_request: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 1 / (batch N p) as its weight, every shard's rows sum up to its share of all rows.

    p is taken as it goes into the weights, since dividing by a batch's largest moves their mean.
    """
    rng = np.random.default_rng(3)
    priorities = []
    for mass, rows in UNEVEN[what]:
        mine = rng.uniform(0.5, 2.0, rows)
        priorities.append((mine * mass / mine.sum()).tolist())
    joint, total = joint_probability(priorities, 1.0), sum(rows for _, rows in UNEVEN[what])
    seen: list[NDArray[np.float64]] = []

    def weights(p: NDArray[np.float64], size: int, beta: float) -> NDArray[np.float32]:
        seen.append(p)
        return importance_weights(p, size, beta)

    monkeypatch.setattr("replay.sampler.importance_weights", weights)
    batches = 6000
    sampler = make_sampler(
        handles(filled(priorities)), batch_size=13, beta=1.0, rows_per_request=rows_per_request
    )
    sums = np.zeros((batches, len(priorities)))
    for number in range(batches):
        shard, row = place(fetch(sampler).ids)
        closed = [joint[k][i] for k, i in zip(shard, row, strict=True)]
        np.testing.assert_allclose(seen[-1], closed, rtol=1e-9)
        np.add.at(sums[number], shard, 1.0 / (13 * total * seen[-1]))
    shares = np.array([rows / total for _, rows in UNEVEN[what]])
    # Five standard errors, no less than those of rare rows: a batch has one with chance `expected`.
    expected = 13 * np.array([mass for mass, _ in UNEVEN[what]])
    expected /= sum(mass for mass, _ in UNEVEN[what])
    assert np.all(batches * expected > 50), "the test has no power"
    error = np.maximum(sums.std(axis=0) / batches**0.5, 1e-3 * shares)
    assert np.all(np.abs(sums.mean(axis=0) - shares) < 5 * error), (sums.mean(axis=0), shares)


def test_weight_of_a_row_does_not_depend_on_how_many_came_with_it() -> None:
    """The trap: a shard that expects a tenth of a row gives none or one, and 1 is not its share."""
    shards = filled([[1.0] * 24, [1.0] * 24, [0.5]])
    sampler = make_sampler(handles(shards), batch_size=10, beta=1.0)
    rare = [
        float(weight)
        for batch in (fetch(sampler) for _ in range(400))
        for weight, k in zip(batch.weight, shard_of(batch.ids), strict=True)
        if k == 2
    ]
    # The others' rows weigh half of it: they have twice its priority.
    assert rare == [1.0] * len(rare)
    assert 10 < len(rare) < 100


SHARD_CAPACITY = 40


class Masses:
    """What the shards hold, by id, in double precision and by the formula alone."""

    def __init__(self, shards: int, alpha: float) -> None:
        self._shards = [
            NaiveReplay(
                capacity=SHARD_CAPACITY,
                max_bytes=10**9,
                alpha=alpha,
                first_id=k * 2**56,
                spec=SPEC,
            )
            for k in range(shards)
        ]

    def add(self, shard: int, segment: Segment) -> None:
        assert self._shards[shard].add(segment, num_bytes=1)

    def update(self, update: PriorityUpdate) -> None:
        for k, shard in enumerate(self._shards):
            mine = shard_of(update.ids) == k
            shard.update(update.ids[mine].tolist(), update.priority[mine].tolist())

    def by_shard(self) -> list[float]:
        return [shard.total for shard in self._shards]

    def probability(self) -> dict[int, float]:
        """Return p of each live id: its mass over the mass of all shards."""
        total = sum(self.by_shard())
        return {i: mass / total for shard in self._shards for i, mass in shard.masses.items()}


def changing_shards(
    shards: int, alpha: float, seed: int
) -> tuple[list[ReplayShard], Masses, Callable[[], None]]:
    """Return shards of unlike size and mass, what they hold, and how to change both at random."""
    rng = np.random.default_rng(seed)
    cores = [
        make_shard(alpha=alpha, shard=k, seed=seed + k, capacity=SHARD_CAPACITY)
        for k in range(shards)
    ]
    masses = Masses(shards, alpha)
    updater = PriorityUpdater(shards=handles(cores), window=shards, rows_per_call=1)
    sequences = iter(range(1000))

    def priorities_of(shard: int, rows: int) -> list[float]:
        return ((shard + 1) * (0.05 + rng.exponential(1.0, rows))).tolist()

    def add(shard: int) -> None:
        rows = int(rng.integers(3, 9))
        segment = make_segment(
            actor=shard,
            sequence=next(sequences),
            transitions=rows,
            priority=priorities_of(shard, rows),
        )
        assert cores[shard].add(make_push(segment))
        masses.add(shard, segment)

    def change() -> None:
        """Insert and evict in one shard, and give a third of all rows other priorities."""
        for _ in range(3):
            add(int(rng.integers(shards)))
        live = np.array(list(masses.probability()))
        ids = rng.choice(live, len(live) // 3, replace=False)
        update = PriorityUpdate(ids, (0.05 + rng.exponential(3.0, len(ids))).astype(np.float32))
        updater.update(update)
        masses.update(update)

    for shard in range(shards):
        for _ in range(3 + 2 * shard):
            add(shard)
    return cores, masses, change


def drop_what_was_asked_for_before(sampler: ReplaySampler) -> None:
    """What is under way was drawn before a change, and the next is split by the masses before.

    Either may be two batches that were asked for at once.
    """
    for _ in range(6):
        fetch(sampler)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("rows_per_request", [1, 128])
def test_frequencies_are_the_closed_form_while_rows_and_priorities_change(
    shards: int, alpha: float, rows_per_request: int
) -> None:
    """Chi-square over all rows that ever lived, five standard deviations above its mean at most.

    Strata and fixed splits only lower it: rows are drawn more evenly than independent ones.
    """
    cores, masses, change = changing_shards(shards, alpha, seed=8)
    sampler = make_sampler(handles(cores), batch_size=48, rows_per_request=rows_per_request)
    expected: defaultdict[int, float] = defaultdict(float)
    by_shard_alone: defaultdict[int, float] = defaultdict(float)  # the trap: p within its shard
    drawn: Counter[int] = Counter()
    for _ in range(6):
        change()
        drop_what_was_asked_for_before(sampler)
        totals = masses.by_shard()
        for i, p in masses.probability().items():
            share = totals[int(shard_of(np.array([i]))[0])] / sum(totals)
            expected[i] += 48 * 120 * p
            by_shard_alone[i] += 48 * 120 * p / share / shards
        for _ in range(120):
            drawn.update(fetch(sampler).ids.tolist())
    assert drawn.total() == 6 * 48 * 120

    def chi_square(model: defaultdict[int, float]) -> float:
        return sum((drawn[i] - model[i]) ** 2 / model[i] for i in model)

    assert set(drawn) <= set(expected), "a row was drawn that did not live"
    freedom = len(expected) - 1
    limit = freedom + 5 * (2 * freedom) ** 0.5
    assert chi_square(expected) < limit
    if shards > 1:
        assert chi_square(by_shard_alone) > 2 * limit, "the test has no power"


@pytest.mark.parametrize("beta", [0.4, 1.0])
@pytest.mark.parametrize("shards", [1, 3])
def test_weights_are_the_closed_form_of_the_marginal_probability(shards: int, beta: float) -> None:
    """(N p)^-beta over the batch's largest, p a row's share of all mass, whatever the split was."""
    cores, masses, change = changing_shards(shards, 0.6, seed=9)
    sampler = make_sampler(handles(cores), batch_size=512, beta=beta)
    for _ in range(5):
        change()
        drop_what_was_asked_for_before(sampler)
        p = masses.probability()
        batch = fetch(sampler)
        marginal = np.array([p[i] for i in batch.ids.tolist()])
        closed = (len(p) * marginal) ** -beta
        closed /= closed.max()
        np.testing.assert_allclose(batch.weight, closed, rtol=1e-5)
        if shards > 1:
            totals = masses.by_shard()
            alone = marginal * sum(totals) / np.array(totals)[shard_of(batch.ids)]
            wrong = (len(p) * alone) ** -beta
            wrong /= wrong.max()
            assert abs(batch.weight / wrong - 1.0).max() > 0.05, "the test has no power"


@pytest.mark.parametrize("shards", [1, 2])
def test_full_correction_makes_weighted_means_those_of_uniform_replay(shards: int) -> None:
    """With beta 1 the weighted mean of any column tends to its plain mean over all rows."""
    priorities = PRIORITIES[shards]
    cores = filled(priorities, alpha=0.6)
    values = [np.sin(np.arange(len(mine)) + 5 * k) for k, mine in enumerate(priorities)]
    sampler = make_sampler(handles(cores), batch_size=64, beta=1.0)
    plain, weighted = [], []
    for _ in range(400):
        batch = fetch(sampler)
        value = np.array([values[k][i] for k, i in zip(*place(batch.ids), strict=True)])
        weighted.append(np.average(value, weights=batch.weight))
        plain.append(value.mean())
    mean = np.concatenate(values).mean()
    error = np.std(weighted) / 400**0.5
    # Five standard errors, and the bias of a ratio of means, of the order of the variance.
    assert abs(np.mean(weighted) - mean) < 5 * error + 2 * np.var(weighted)
    assert abs(np.mean(plain) - mean) > 5 * error + 2 * np.var(weighted), "the test has no power"


def test_probability_is_right_although_the_split_knows_old_masses() -> None:
    cores = filled([[1.0] * 8, [1.0] * 8])
    sampler = make_sampler(handles(cores), batch_size=16, beta=1.0)
    assert sampler.fetch() is None
    # Shard 0 has changed since: its first row holds half of its mass now.
    cores[0].update_priorities(PriorityUpdate(np.array([0]), np.array([7.0], np.float32)))
    batch = fetch(sampler)
    shard, row = place(batch.ids)
    assert [np.sum(shard == k) for k in range(2)] == [8, 8], "split by the masses last heard of"
    within = np.where(shard == 1, 1 / 8, np.where(row == 0, 7 / 14, 1 / 14))
    expected = (16 * 1 / 2 * within) ** -1.0
    np.testing.assert_allclose(batch.weight, expected / expected.max(), rtol=1e-5)


def test_empty_shard_is_asked_for_nothing() -> None:
    wires = [LateShard(core) for core in filled([[1.0] * 8, []])]
    sampler = make_sampler(wires)
    sampler.fetch()
    for wire in wires:
        wire.deliver_all()
    fetch(sampler)
    assert wires[0].count("sample") >= 1
    assert wires[1].count("sample") == 0


@pytest.mark.parametrize("wire", [LocalHandle, LateShard])
def test_shard_that_was_empty_at_first_is_sampled_once_it_fills(wire: Any) -> None:
    """Without a ratio the sampler never stands still, which is when it polls otherwise."""
    cores = filled([[1.0] * 8, []])
    wires = [wire(core) for core in cores]
    sampler = make_sampler(wires, batch_size=8, in_flight=2)
    found: set[int] = set()
    for step in range(12):
        if step == 5:
            cores[1].add(make_push(make_segment(transitions=8)))
        batch = sampler.fetch()
        for one in wires:
            if isinstance(one, LateShard):
                one.deliver_all()
        if batch is not None:
            found |= set(shard_of(batch.ids).tolist())
        assert step > 5 or found <= {0}
    assert found == {0, 1}
    assert sampler.inserts == 16


def test_action_that_there_is_not_is_an_error_and_named() -> None:
    """Replay does not know the game; its checks let any action >= 0 in."""
    segment = make_segment(actor=1, sequence=9, transitions=8)
    cores = filled([[1.0] * 8, [1.0] * 8])
    a_tm1 = segment.a_tm1.copy()
    a_tm1[5] = ENVIRONMENT.num_actions
    cores[1].add(make_push(segment._replace(a_tm1=a_tm1)))
    sampler = make_sampler(handles(cores), batch_size=24)
    bad = 2**56 + 8 + 5
    match = f"Expect actions below 3, actually: 3 in transition {bad} of replay shard 1"
    with pytest.raises(ValueError, match=match):
        fetch(sampler)


def test_block_that_does_not_decompress_is_an_error_and_named() -> None:
    segment = make_segment(actor=1, sequence=9, transitions=8, frames_per_block=1)
    cores = filled([[1.0] * 8, [1.0] * 8])
    blocks = segment.blocks.copy()
    blocks[-1:] = 0
    blocks[segment.block_ends[-2]] = 0xFF  # more literals than there are bytes
    cores[1].add(make_push(segment._replace(blocks=blocks)))
    sampler = make_sampler(handles(cores), batch_size=24)
    match = f"Expect an lz4 block of 6 bytes, .*, in transition {2**56 + 8 + 7} of replay shard 1"
    with pytest.raises(ValueError, match=match):
        fetch(sampler)


def test_shard_that_lost_its_rows_is_an_error() -> None:
    wire = LateShard(filled([[1.0] * 8])[0])
    sampler = make_sampler([wire])
    sampler.fetch()
    wire.deliver_all()
    sampler.fetch()
    wire.shard = make_shard()
    with pytest.raises(AssertionError, match=r"\(0, 8, 0\)"):
        sampler.fetch()


# --- the limiter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("in_flight", [1, 2, 3])
@pytest.mark.parametrize("rows_per_request", [1, 24, 100])
def test_sampler_stops_where_the_limiter_says(
    shards: int, in_flight: int, rows_per_request: int
) -> None:
    limiter = RateLimiter(min_size=10, samples_per_insert=4.0, band=16.0)
    cores = filled([[1.0] * 16] * shards)
    sampler = make_sampler(
        handles(cores),
        batch_size=8,
        limiter=limiter,
        in_flight=in_flight,
        rows_per_request=rows_per_request,
    )
    allowed = ((16 * shards - 10) * 4.0 + 16.0) // 8
    batches = 0
    for _ in range(60):
        batches += sampler.fetch() is not None
        assert limiter.error(16 * shards, sampler.samples) >= -16.0
    assert batches == allowed
    assert sampler.samples == 8 * allowed
    cores[0].add(make_push(make_segment(actor=9, transitions=2)))
    assert [sampler.fetch() is not None for _ in range(4)].count(True) == 2 * 4 / 8


def test_nothing_is_sampled_below_the_minimal_size() -> None:
    limiter = RateLimiter(min_size=17, samples_per_insert=None, band=1.0)
    cores = filled([[1.0] * 8, [1.0] * 8])
    sampler = make_sampler(handles(cores), limiter=limiter)
    assert [sampler.fetch() for _ in range(5)] == [None] * 5
    assert (sampler.samples, sampler.inserts, sampler.size) == (0, 16, 16)
    cores[1].add(make_push(make_segment(actor=9, transitions=1)))
    assert fetch(sampler) is not None


def test_requests_tell_each_shard_of_the_run() -> None:
    wires = [LateShard(core) for core in filled([[1.0] * 8, [1.0] * 16])]
    sampler = make_sampler(wires, batch_size=12)
    assert sampler.fetch() is None
    sampler.version = now = WeightsVersion(0, 5)
    assert [wire.calls[0] for wire in wires] == [("counts", ((0, 0, None),))] * 2
    for wire in wires:
        wire.deliver_all()
    sampler.fetch()  # takes the counts in
    assert sampler.fetch() is not None
    samples = [[call[1] for call in wire.calls if call[0] == "sample"] for wire in wires]
    # A third of the mass each shard: 4 and 8 rows, the second batch asked for ahead.
    assert samples == [
        [((4,), (12, 16, now)), ((4,), (24, 16, now))],
        [((8,), (12, 8, now)), ((8,), (24, 8, now))],
    ]
    assert sampler.samples == 24


def test_batches_are_asked_for_ahead_and_come_in_order() -> None:
    (core,) = filled([[1.0] * 8])
    wire = LateShard(core)
    sampler = make_sampler([wire], batch_size=8, in_flight=3)
    sampler.fetch()
    wire.deliver_all()
    sampler.fetch()
    first = sampler.fetch()
    assert first is not None
    assert wire.count("sample") == 3 + 1
    assert wire.under_way == 3
    assert sampler.fetch() is not None
    assert wire.under_way == 3


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_batches_of_one_request_are_each_stratified_over_all_shards(shards: int) -> None:
    wires = [LateShard(core) for core in filled([[1.0] * 8] * shards)]
    sampler = make_sampler(wires, batch_size=8 * shards, rows_per_request=3 * 8 * shards + 7)
    assert sampler.fetch() is None
    for wire in wires:
        wire.deliver_all()
    sampler.fetch()  # takes the counts in
    batches = [sampler.fetch() for _ in range(3)]
    assert all(wire.count("sample") == 1 + 1 for wire in wires), "one call for three batches"
    assert sampler.samples == 2 * 3 * 8 * shards
    for batch in batches:
        assert batch is not None
        # Rows of equal mass come once each in every batch, of whichever shard they are.
        assert len(set(batch.ids.tolist())) == 8 * shards
        assert batch.weight.tolist() == [1.0] * (8 * shards)


def test_batch_that_a_shard_has_no_row_of_comes_from_the_others() -> None:
    # Batches of one row, three quarters of them from the first of two shards.
    cores = filled([[3.0] * 8, [1.0] * 8])
    sampler = make_sampler(handles(cores), batch_size=1, rows_per_request=16)
    owners = [int(shard_of(fetch(sampler).ids)[0]) for _ in range(800)]
    # A coin of 1/4: within 5 * sqrt(3/16 / 800) of it.
    assert np.mean(owners) == pytest.approx(0.25, abs=5 * (3 / 16 / 800) ** 0.5)


def test_unanswered_questions_for_counts_are_not_repeated() -> None:
    wires = [LateShard(core) for core in filled([[1.0] * 8, [1.0] * 8])]
    sampler = make_sampler(wires)
    for _ in range(5):
        assert sampler.fetch() is None
    assert [wire.count("counts") for wire in wires] == [1, 1]
    wires[1].deliver_all()
    sampler.fetch()
    assert sampler.inserts == 8, "one answer is taken in while the other is under way"


def test_sampler_of_the_configuration_is_wired() -> None:
    config = with_shards(2)
    cores = filled([[1.0] * 16, [1.0] * 16])
    sampler = make_sampler_from(
        config, ENVIRONMENT, shards=handles(cores), in_flight=1, rows_per_request=1
    )
    batch = fetch(sampler)
    assert len(batch.ids) == CONFIG.learner.batch_size
    assert batch.s_t.shape == (10, *SPEC.shape)


def test_nothing_to_fetch_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect `batch_size` >= 1, actually: 0"):
        make_sampler([], batch_size=0)
    with pytest.raises(ValueError, match="Expect `in_flight` >= 1, actually: 0"):
        make_sampler([], in_flight=0)


# --- trap 4: deadlock -----------------------------------------------------------------------------


class Run(NamedTuple):
    """How a run went.

    Fields:
      samples: transitions the learner got.
      inserts: transitions in replay.
      least_error: of the limiter, with the true counts, over the whole run.
      largest_error: the same, once `min_size` was in.
    """

    samples: int
    inserts: int
    least_error: float
    largest_error: float


def simulate(
    *,
    shards: int,
    min_size: int,
    samples_per_insert: float,
    band: float,
    batch: int,
    push: int,
    seed: int,
    moves: int = 12_000,
    enough_batches: int = 40,
) -> Run:
    """Let two actors and a learner move at random, over slow wires, until enough was learned."""
    rng = np.random.default_rng(seed)
    limiter = RateLimiter(min_size=min_size, samples_per_insert=samples_per_insert, band=band)
    cores = [
        make_shard(limiter=limiter, shard=k, capacity=max(400, 2 * min_size)) for k in range(shards)
    ]
    wires = [[LateShard(core) for core in cores] for _ in range(3)]
    clock = FakeClock()
    writers = [
        ReplayWriter(shards=wires[actor], window=2, first_shard=actor, clock=clock)
        for actor in range(2)
    ]
    sampler = make_sampler(wires[2], batch_size=batch, limiter=limiter, in_flight=2)
    sequences = [0, 0]
    learned = 0
    errors = [0.0]
    for _ in range(moves):
        move = int(rng.integers(6))
        if move < 2:
            clock.now_s += 0.03
            if writers[move].has_room():
                segments = []
                for _ in range(shards):  # as many as make a push of full size for each shard
                    segments.append(
                        make_segment(actor=move, sequence=sequences[move], transitions=push)
                    )
                    sequences[move] += 1
                writers[move].push(segments, (), NO_PHASES, 0.5)
        elif move == 2:
            learned += sampler.fetch() is not None
        else:
            wires[int(rng.integers(3))][int(rng.integers(shards))].deliver()
        inserts = sum(core.inserted for core in cores)
        if inserts >= min_size:
            errors.append(limiter.error(inserts, sampler.samples))
        if learned >= enough_batches:
            break
    return Run(learned * batch, sum(core.inserted for core in cores), min(errors), max(errors))


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("push", [2, 16, 30])
@pytest.mark.parametrize("samples_per_insert", [0.5, 8.0])
def test_trap_writers_and_sampler_never_stand_still(
    shards: int, push: int, samples_per_insert: float
) -> None:
    """The least legal band, with a push as large as it allows or a batch as large as it allows."""
    batch = 16
    band = 2 * max(batch, samples_per_insert * push)
    for seed in range(2):
        run = simulate(
            shards=shards,
            min_size=50,
            samples_per_insert=samples_per_insert,
            band=band,
            batch=batch,
            push=push,
            seed=seed,
        )
        assert run.samples >= 40 * batch, f"stands still: {run}"
        assert run.least_error >= -band, "sampled too early"
        if shards == 1:
            # Before `min_size` is in, a push of any size passes.
            assert run.largest_error <= max(band, push * samples_per_insert)


@pytest.mark.parametrize("shards", [1, 2])
def test_trap_push_larger_than_the_band_is_what_stands_still(shards: int) -> None:
    """The known-bad case of the test above: what `Config.problems` refuses does block."""
    run = simulate(
        shards=shards,
        min_size=50,
        samples_per_insert=8.0,
        band=8.0 * 30 / 2 - 1,
        batch=16,
        push=30,
        seed=0,
        moves=5000,
        enough_batches=1000,
    )
    late = 30 * shards * 4  # what was under way, two pushes of two actors, may still have passed
    assert run.inserts <= 50 + late
    assert run.samples <= (run.inserts - 50) * 8.0 + 119


# --- what else it tells ---------------------------------------------------------------------------


def test_priorities_of_a_batch_come_back_to_its_rows() -> None:
    cores = filled([[1.0] * 8, [1.0] * 8])
    sampler = make_sampler(handles(cores), batch_size=16)
    batch = fetch(sampler)
    new = np.arange(16, dtype=np.float32)
    PriorityUpdater(shards=handles(cores), window=4, rows_per_call=1).update(
        PriorityUpdate(batch.ids, new)
    )
    # All 16 rows were drawn once each: whatever the order, the masses add up to these.
    total = sum(core.counts(NOTHING_LEARNED).mass for core in cores)
    assert total == pytest.approx(sum(range(16)) + 16e-6)
    assert cores[0].capture().masses[batch.ids[:8]] == pytest.approx(new[:8] + 1e-6)


def test_games_that_ended_are_summed_over_the_shards() -> None:
    shards = filled([[1.0] * 8, [1.0] * 8])
    game = EpisodeRecord(episode_return=1.0, agent_steps=8, epsilon=0.1, ladder_position=0.0)
    shards[0].add(make_push(make_segment(sequence=5), episodes=(game,)))
    shards[1].add(make_push(make_segment(actor=1, sequence=5), episodes=(game, game)))
    sampler = make_sampler(handles(shards))
    assert sampler.episodes == 0
    while sampler.fetch() is None:
        pass
    assert sampler.episodes == 3
