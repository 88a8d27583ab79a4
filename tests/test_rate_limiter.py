import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limiter_settings import Setting, least_band, legal_settings

from replay.rate_limiter import RateLimiter, rebase


def stuck(setting: Setting, limiter: RateLimiter, inserts: int, samples: int) -> bool:
    """Return whether some insert and some sample of legal sizes are both refused."""
    return not limiter.can_insert(inserts, samples, setting.push) and not limiter.can_sample(
        inserts, samples, setting.batch
    )


def find_deadlock(setting: Setting, moves: list[tuple[bool, float]]) -> tuple[int, int] | None:
    """Play the moves (who, and what share of the largest) that pass; return the first deadlock."""
    limiter = setting.limiter()
    inserts = samples = 0
    for inserting, share in moves:
        if stuck(setting, limiter, inserts, samples):
            return inserts, samples
        if inserting:
            num = max(1, round(share * setting.push))
            inserts += num * limiter.can_insert(inserts, samples, num)
        else:
            num = max(1, round(share * setting.batch))
            samples += num * limiter.can_sample(inserts, samples, num)
    return None


def random_moves(seed: int, count: int) -> list[tuple[bool, float]]:
    rng = np.random.default_rng(seed)
    return list(zip((rng.random(count) < 0.5).tolist(), rng.random(count).tolist(), strict=True))


# ---- the formula ----


def test_error_is_the_designs_formula() -> None:
    limiter = RateLimiter(min_size=100, samples_per_insert=8.0, band=1000.0)
    assert limiter.error(inserts=150, samples=300) == (150 - 100) * 8.0 - 300
    assert limiter.error(inserts=50, samples=0) == (50 - 100) * 8.0


def test_inserts_pass_up_to_the_band_and_not_beyond() -> None:
    limiter = RateLimiter(min_size=100, samples_per_insert=2.0, band=40.0)
    # (110 + 10 - 100) * 2 - 0 = 40, just within.
    assert limiter.can_insert(inserts=110, samples=0, num=10)
    assert not limiter.can_insert(inserts=110, samples=0, num=11)
    assert limiter.can_insert(inserts=110, samples=2, num=11)


def test_samples_pass_down_to_the_band_and_not_beyond() -> None:
    limiter = RateLimiter(min_size=100, samples_per_insert=2.0, band=40.0)
    # (105 - 100) * 2 - (20 + 30) = -40, just within.
    assert limiter.can_sample(inserts=105, samples=20, num=30)
    assert not limiter.can_sample(inserts=105, samples=20, num=31)


def test_below_min_size_inserts_always_pass_and_samples_never() -> None:
    limiter = RateLimiter(min_size=100, samples_per_insert=8.0, band=10.0)
    assert limiter.can_insert(inserts=99, samples=0, num=1_000_000)
    assert not limiter.can_sample(inserts=99, samples=0, num=1)
    assert not limiter.can_insert(inserts=100, samples=0, num=2)
    assert limiter.can_sample(inserts=100, samples=0, num=10)


def test_switched_off_ratio_still_waits_for_min_size() -> None:
    limiter = RateLimiter(min_size=100, samples_per_insert=None, band=1.0)
    assert not limiter.can_sample(inserts=99, samples=0, num=1)
    assert limiter.can_sample(inserts=100, samples=10**9, num=1024)
    assert limiter.can_insert(inserts=10**9, samples=0, num=4000)
    assert limiter.error(inserts=10**9, samples=0) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_size": 0}, "Expect `min_size` >= 1, actually: 0"),
        ({"samples_per_insert": 0.0}, "Expect `samples_per_insert` finite and > 0.*actually: 0.0"),
        ({"samples_per_insert": float("nan")}, "Expect `samples_per_insert` finite and > 0"),
        ({"samples_per_insert": float("inf")}, "Expect `samples_per_insert` finite and > 0"),
        ({"band": 0.0}, "Expect `band` finite and > 0, actually: 0.0"),
        ({"band": float("nan")}, "Expect `band` finite and > 0, actually: nan"),
        ({"band": float("inf")}, "Expect `band` finite and > 0, actually: inf"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    sound = {"min_size": 100, "samples_per_insert": 8.0, "band": 10.0}
    with pytest.raises(ValueError, match=message):
        RateLimiter(**(sound | change))  # type: ignore[arg-type]


# ---- no deadlock, one shard ----


@given(legal_settings(), st.integers(0, 10**10), st.integers(0, 10**11))
@settings(max_examples=500, deadline=None)
def test_no_state_whatever_is_a_deadlock(setting: Setting, inserts: int, samples: int) -> None:
    assert not stuck(setting, setting.limiter(), inserts, samples)


@given(legal_settings(), st.integers(0, 10**9), st.floats(-1.2, 1.2))
@settings(max_examples=500, deadline=None)
def test_no_state_near_the_band_is_a_deadlock(
    setting: Setting, beyond: int, error_in_bands: float
) -> None:
    # Uniform states nearly always lie far from the band, where one side is plainly free.
    inserts = setting.min_size + beyond
    error = error_in_bands * setting.band
    samples = round(beyond * setting.samples_per_insert - error)
    assert not stuck(setting, setting.limiter(), inserts, max(0, samples))


@given(
    legal_settings(most_min_size=20_000),
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 1.0)), max_size=50),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_no_history_of_legal_moves_ends_in_a_deadlock(
    setting: Setting, moves: list[tuple[bool, float]], seed: int
) -> None:
    assert find_deadlock(setting, moves + random_moves(seed, 200)) is None


@pytest.mark.parametrize("seed", range(10))
def test_error_stays_within_the_band_once_min_size_is_in(seed: int) -> None:
    setting = Setting(1000, 8.0, 512, 400, least_band(8.0, 512, 400))
    limiter = setting.limiter()
    inserts = samples = 0
    for inserting, share in random_moves(seed, 2000):
        num = max(1, round(share * (setting.push if inserting else setting.batch)))
        if inserting:
            inserts += num * limiter.can_insert(inserts, samples, num)
        else:
            samples += num * limiter.can_sample(inserts, samples, num)
        if inserts >= setting.min_size:
            assert abs(limiter.error(inserts, samples)) <= setting.band
    assert samples > 10_000


def test_band_below_the_legal_one_deadlocks() -> None:
    # The known-bad: the same search must find something, or the tests above prove nothing.
    legal = Setting(1000, 8.0, 512, 400, least_band(8.0, 512, 400))
    illegal = legal._replace(band=1600.0)
    assert find_deadlock(legal, random_moves(0, 5000)) is None
    state = find_deadlock(illegal, random_moves(0, 5000))
    assert state is not None
    inserts, samples = state
    assert inserts >= illegal.min_size
    assert illegal.limiter().error(inserts, samples) + 400 * 8.0 > 1600.0
    assert illegal.limiter().error(inserts, samples) - 512 < -1600.0


def test_push_larger_than_the_band_was_made_for_deadlocks() -> None:
    setting = Setting(1, 8.0, 512, 400, least_band(8.0, 512, 400))
    inserts, samples = 1, 6400  # the learner is as far ahead as it may be
    larger = setting._replace(push=2000)
    assert not stuck(setting, setting.limiter(), inserts, samples)
    assert stuck(larger, larger.limiter(), inserts, samples)


# ---- no deadlock, several shards that know each other's counts late ----


class ShardedRun:
    """A learner and K shards, each with its own late view of the run's counts."""

    def __init__(self, setting: Setting, shards: int, tells: bool = True) -> None:
        self.setting = setting
        self.limiter = setting.limiter()
        self.samples = 0
        self.inserts = [0] * shards
        self.replied = [0] * shards  # inserts of each shard, as the learner last heard
        self.told_samples = [0] * shards
        self.told_elsewhere = [0] * shards
        self.tells = tells  # False: a poll asks for counts but does not bring any

    @property
    def error(self) -> float:
        return self.limiter.error(sum(self.inserts), self.samples)

    def push(self, shard: int, num: int) -> bool:
        """Let an actor push to a shard, which decides by what it knows."""
        seen = self.inserts[shard] + self.told_elsewhere[shard]
        passes = self.limiter.can_insert(seen, self.told_samples[shard], num)
        self.inserts[shard] += num * passes
        return passes

    def sample(self, num: int, asked: list[int]) -> bool:
        """Let the learner sample from the shards `asked`, if what it knows allows it."""
        passes = self.limiter.can_sample(sum(self.replied), self.samples, num)
        if passes:
            self.samples += num
            for shard in asked:
                self.poll(shard)
        return passes

    def poll(self, shard: int) -> None:
        """Exchange counts with one shard, as every request of the learner does."""
        if self.tells:
            self.told_samples[shard] = self.samples
            self.told_elsewhere[shard] = sum(self.replied) - self.replied[shard]
        self.replied[shard] = self.inserts[shard]

    def lose(self, shard: int, restored: int) -> None:
        """Replace a shard by one that restored some of its inserts, and rebase the run's counts."""
        known = sum(self.replied)
        self.inserts[shard] = restored
        lost = max(0, self.replied[shard] - restored)
        self.replied[shard] -= lost
        self.told_samples[shard] = self.told_elsewhere[shard] = 0
        self.samples = rebase(
            known, self.samples, lost, self.setting.min_size, self.setting.samples_per_insert
        )

    def stands_still(self) -> bool:
        """Let everyone try, the learner poll if it may not sample; return whether nobody moved."""
        shards = range(len(self.inserts))
        moved = [self.push(shard, self.setting.push) for shard in shards]
        if not self.sample(self.setting.batch, list(shards)):
            for shard in shards:
                self.poll(shard)
        else:
            moved.append(True)
        return not any(moved)


def play(run: ShardedRun, rng: np.random.Generator, moves: int, losses: bool) -> None:
    """Make random moves, with polls rare enough for the views to grow old."""
    setting = run.setting
    shards = len(run.inserts)
    kinds = ["push"] * 6 + ["sample"] * 4 + ["poll"] * 2 + ["lose"] * losses
    for _ in range(moves):
        kind = kinds[rng.integers(len(kinds))]
        shard = int(rng.integers(shards))
        if kind == "push":
            run.push(shard, int(rng.integers(1, setting.push + 1)))
        elif kind == "sample":
            asked = rng.permutation(shards)[: rng.integers(1, shards + 1)]
            if run.sample(int(rng.integers(1, setting.batch + 1)), asked.tolist()) and not losses:
                assert run.error >= -setting.band  # the learner never runs ahead, old views or not
        elif kind == "poll":
            run.poll(shard)
        elif rng.random() < 0.1:
            run.lose(shard, restored=int(rng.integers(0, run.inserts[shard] + 1)))


@given(
    setting=legal_settings(most_min_size=50_000),
    shards=st.integers(1, 5),
    losses=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_shards_with_old_views_never_stand_still_for_long(
    setting: Setting, shards: int, losses: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    run = ShardedRun(setting, shards)
    for _ in range(5):
        play(run, rng, 40, losses)
        still = 0
        for _ in range(20):
            still = still + 1 if run.stands_still() else 0
            # Two rounds of polls make all views exact; the third round must see a move.
            assert still <= 2, (setting, run.inserts, run.samples, run.error)


def test_polls_that_do_not_tell_the_counts_deadlock() -> None:
    # The known-bad of the sharded case: the shard never hears of the samples.
    setting = Setting(min_size=1, samples_per_insert=1.0, batch=1, push=1, band=2.0)
    silent, telling = ShardedRun(setting, 2, tells=False), ShardedRun(setting, 2)
    assert sum([silent.stands_still() for _ in range(100)][-50:]) == 50
    assert sum([telling.stands_still() for _ in range(100)][-50:]) == 0


@pytest.mark.parametrize("shards", [1, 4])
def test_learner_goes_on_at_once_after_a_loss_that_leaves_min_size(shards: int) -> None:
    setting = Setting(1000, 8.0, 512, 400, least_band(8.0, 512, 400))
    run = ShardedRun(setting, shards)
    for _ in range(500):
        run.stands_still()
    before, error = sum(run.inserts), run.error
    run.lose(0, restored=run.inserts[0] // 2)
    for shard in range(shards):
        run.poll(shard)
    lost = before - sum(run.inserts)
    assert lost > before / (4 * shards)
    assert run.error == pytest.approx(error, abs=1.0)
    assert run.sample(setting.batch, [])
    # Without the rebase the learner would wait for thousands of new transitions.
    assert run.limiter.error(sum(run.inserts), run.samples + round(8.0 * lost)) < -setting.band


def test_learner_waits_for_min_size_again_after_the_only_shard_is_lost() -> None:
    setting = Setting(1000, 8.0, 512, 400, 4 * least_band(8.0, 512, 400))
    run = ShardedRun(setting, 1)
    for _ in range(500):
        run.stands_still()
    run.lose(0, restored=0)
    run.poll(0)
    samples = run.samples
    while run.inserts[0] < setting.min_size:
        assert not run.sample(setting.batch, [0])
        assert run.push(0, 100)
        run.poll(0)
    assert abs(run.error) <= setting.band
    assert run.samples == samples
    assert run.sample(setting.batch, [0])


# ---- rebase ----


def test_rebase_forgives_the_samples_drawn_against_lost_inserts() -> None:
    # 10,000 inserted, 8 * 9,000 due, 71,000 drawn: 1,000 owed before and after.
    samples = rebase(
        inserts=10_000, samples=71_000, lost_inserts=4_000, min_size=1_000, samples_per_insert=8.0
    )
    assert samples == 71_000 - 8 * 4_000
    assert (6_000 - 1_000) * 8 - samples == 1_000


def test_rebase_to_less_than_min_size_leaves_the_old_error_for_its_refill() -> None:
    # Drawn 500 too many: at min_size again, the error is -500 again.
    samples = rebase(
        inserts=3_000, samples=16_500, lost_inserts=2_900, min_size=1_000, samples_per_insert=8.0
    )
    assert samples == 500


def test_rebase_does_not_go_below_zero_samples() -> None:
    samples = rebase(
        inserts=3_000, samples=15_000, lost_inserts=2_900, min_size=1_000, samples_per_insert=8.0
    )
    assert samples == 0


def test_rebase_without_a_ratio_or_a_loss_changes_nothing() -> None:
    assert rebase(3_000, 15_000, 2_900, 1_000, None) == 15_000
    assert rebase(3_000, 15_000, 0, 1_000, 8.0) == 15_000
    assert rebase(900, 0, 900, 1_000, 8.0) == 0


@given(
    legal_settings(),
    st.integers(0, 10**9),
    st.floats(-1.0, 1.0),
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_rebase_never_widens_the_error(
    setting: Setting, inserts: int, error_in_bands: float, lost_shares: list[float]
) -> None:
    limiter = setting.limiter()

    def error(inserts: int, samples: int) -> float:
        return limiter.error(max(inserts, setting.min_size), samples)

    due = max(0, inserts - setting.min_size) * setting.samples_per_insert
    samples = max(0, round(due - error_in_bands * setting.band))
    for share in lost_shares:  # one loss after another
        lost = round(share * inserts)
        after = rebase(inserts, samples, lost, setting.min_size, setting.samples_per_insert)
        assert abs(error(inserts - lost, after)) <= abs(error(inserts, samples)) + 0.5 + 1e-4
        assert 0 <= after <= samples
        assert not stuck(setting, limiter, inserts - lost, after)
        inserts, samples = inserts - lost, after


@pytest.mark.parametrize(
    ("samples", "lost", "message"),
    [
        (-1, 0, "Expect `samples` >= 0, actually: -1"),
        (0, 101, "Expect `lost_inserts` from 0 to `inserts` = 100, actually: 101"),
        (0, -1, "Expect `lost_inserts` from 0 to `inserts` = 100, actually: -1"),
    ],
)
def test_rebase_refuses_impossible_counts(samples: int, lost: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rebase(100, samples, lost, 10, 8.0)
