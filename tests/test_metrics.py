import pytest

from common.metrics import PhaseTimer, Rate, merge, shares
from common.types import PhaseSeconds


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def test_phases_add_up_until_they_are_drained() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    for _ in range(3):
        with timer.phase("env"):
            clock.now += 2.0
        clock.now += 100.0  # outside of all phases
        with timer.phase("inference"):
            clock.now += 0.5
    assert timer.drain() == PhaseSeconds((("env", 3 * 2.0), ("inference", 3 * 0.5)))
    assert timer.drain() == PhaseSeconds(())


def test_nested_phase_stops_the_outer_one() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    with timer.phase("sample"):
        clock.now += 1.0
        with timer.phase("decode"):
            clock.now += 2.0
            with timer.phase("decode"):
                clock.now += 4.0
        clock.now += 8.0
    assert dict(timer.drain().phases) == {"sample": 1.0 + 8.0, "decode": 2.0 + 4.0}


def test_drain_inside_a_phase_splits_it() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    with timer.phase("step"):
        clock.now += 1.0
        assert timer.drain() == PhaseSeconds((("step", 1.0),))
        clock.now += 2.0
    assert timer.drain() == PhaseSeconds((("step", 2.0),))


def test_phase_that_raises_is_counted_and_closed() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    with pytest.raises(RuntimeError, match="broken"), timer.phase("env"):
        clock.now += 1.0
        raise RuntimeError("broken")
    clock.now += 1.0
    assert timer.drain() == PhaseSeconds((("env", 1.0),))


def test_timer_measures_real_time_by_default() -> None:
    timer = PhaseTimer()
    with timer.phase("env"):
        pass
    ((name, seconds),) = timer.drain().phases
    assert name == "env"
    assert 0.0 <= seconds < 1.0


def test_merge_sums_phases_by_name() -> None:
    parts = [
        PhaseSeconds((("env", 1.0), ("push", 2.0))),
        PhaseSeconds(()),
        PhaseSeconds((("push", 4.0), ("wait", 8.0))),
    ]
    assert merge(parts) == PhaseSeconds((("env", 1.0), ("push", 6.0), ("wait", 8.0)))
    assert merge([]) == PhaseSeconds(())


def test_shares_are_of_the_phases_or_of_the_wall_time() -> None:
    phases = PhaseSeconds((("env", 1.0), ("push", 3.0)))
    assert shares(phases) == {"env": 0.25, "push": 0.75}
    assert shares(phases, wall_s=10.0) == {"env": 0.1, "push": 0.3}


def test_shares_of_no_time_are_zero() -> None:
    assert shares(PhaseSeconds(())) == {}
    assert shares(PhaseSeconds((("env", 0.0),))) == {"env": 0.0}
    assert shares(PhaseSeconds((("env", 1.0),)), wall_s=0.0) == {"env": 0.0}


def test_rate_divides_by_the_time_so_far_until_the_window_is_full() -> None:
    clock = Clock()
    rate = Rate(window_s=10.0, clock=clock)
    assert rate.per_second() == 0.0
    clock.now += 4.0
    rate.add(20)
    assert rate.per_second() == 20 / 4.0


def test_rate_forgets_what_left_the_window() -> None:
    clock = Clock()
    rate = Rate(window_s=10.0, clock=clock)
    clock.now += 4.0
    rate.add(20)
    clock.now += 7.0
    rate.add(30)
    assert rate.per_second() == (20 + 30) / 11.0  # the 20 took from 11 s ago on
    clock.now += 3.0  # the first is now 10 s old
    assert rate.per_second() == 30 / 10.0
    clock.now += 100.0
    assert rate.per_second() == 0.0


def test_steady_rate_is_told_right() -> None:
    clock = Clock()
    rate = Rate(window_s=10.0, clock=clock)
    for _ in range(100_000):
        clock.now += 0.001
        rate.add(3)
    assert rate.per_second() == pytest.approx(3000.0, rel=0.011)
    assert len(rate._buckets) <= 101


def test_counts_further_apart_than_the_window_are_divided_by_the_time_they_took() -> None:
    clock = Clock()
    rate = Rate(window_s=30.0, clock=clock)
    for _ in range(3):
        clock.now += 90.0
        rate.add(180)
        assert rate.per_second() == 180 / 90.0
    clock.now += 10.0
    assert rate.per_second() == 180 / 100.0


def test_totals_count_by_their_growth() -> None:
    clock = Clock()
    rate = Rate(window_s=60.0, clock=clock)
    rate.update_total(1_000_000)  # a resumed run
    clock.now += 10.0
    rate.update_total(1_000_050)
    rate.update_total(400)  # a shard was lost
    rate.update_total(420)
    assert rate.per_second() == (50 + 20) / 10.0


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="Expect `window_s` > 0, actually: 0"):
        Rate(window_s=0.0)
    with pytest.raises(ValueError, match="Expect `count` >= 0, actually: -1"):
        Rate(window_s=1.0).add(-1)
