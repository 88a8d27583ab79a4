from __future__ import annotations

import dataclasses

import pytest
from fakes import FakeClock, make_segment, make_shard
from hypothesis import given
from hypothesis import strategies as st

from common.types import LearnerCounts, PhaseSeconds
from replay.handles import LocalHandle
from replay.rate_limiter import RateLimiter
from replay.waiting_line import WaitingLine
from replay.writer import ReplayWriter


def test_room_is_promised_to_those_who_asked_before() -> None:
    line = WaitingLine()
    assert line.ahead_of(b"a") == 0
    line.wait(b"a", 400)
    line.wait(b"b", 50)
    assert (line.ahead_of(b"a"), line.ahead_of(b"b"), line.ahead_of(b"new")) == (0, 400, 450)


def test_place_is_kept_while_asking_again_and_given_up_on_leaving() -> None:
    line = WaitingLine()
    for key in (b"a", b"b", b"a", b"b"):
        line.wait(key, 10)
    assert (line.ahead_of(b"a"), line.ahead_of(b"b"), len(line)) == (0, 10, 2)
    line.leave(b"a")
    line.leave(b"never waited")
    assert (line.ahead_of(b"b"), len(line)) == (0, 1)


@given(dead=st.integers(1, 70), living=st.integers(1, 8))
def test_the_dead_lose_their_places_after_40_rounds_however_many_they_are(
    dead: int, living: int
) -> None:
    line = WaitingLine()
    for k in range(dead):
        line.wait(b"dead %d" % k, 100)
    for rounds in range(60):
        for k in range(living):
            line.wait(b"%d" % k, 1)
        if rounds < 38:
            assert line.ahead_of(b"0") == 100 * dead
        if rounds > 42:
            assert len(line) == living
            assert [line.ahead_of(b"%d" % k) for k in range(living)] == list(range(living))


# --- with writers and a shard ---------------------------------------------------------------------


@dataclasses.dataclass
class FakeActor:
    """Offers one push after the other, each of so many segments of 5 transitions."""

    actor: int
    segments: int
    writer: ReplayWriter
    sequence: int = 0
    longest_wait_s: float = 0.0
    waited_s: float = 0.0

    def turn(self, seconds: float) -> None:
        if not self.writer.has_room():
            self.waited_s += seconds
            self.longest_wait_s = max(self.longest_wait_s, self.waited_s)
            return
        self.waited_s = 0.0
        new = range(self.sequence, self.sequence + self.segments)
        self.sequence = new.stop
        made = [make_segment(actor=self.actor, sequence=s) for s in new]
        self.writer.push(made, (), PhaseSeconds(()), 0.5)


def compete(sizes: list[int], seconds: float, window: int = 1) -> list[FakeActor]:
    """Let actors with such pushes compete for the room that 600 samples/s leave."""
    limiter = RateLimiter(min_size=1, samples_per_insert=1.0, band=160.0)
    shard = make_shard(capacity=1_000, limiter=limiter)
    clock = FakeClock()
    handle = LocalHandle(shard)
    actors = [
        FakeActor(k, size, ReplayWriter(shards=[handle], window=window, first_shard=0, clock=clock))
        for k, size in enumerate(sizes)
    ]
    tick_s = 0.0101
    samples = 0.0
    while clock.now_s < seconds:
        clock.now_s += tick_s
        samples = min(samples + 600.0 * tick_s, shard.inserted + 160.0)
        shard.counts(LearnerCounts(samples=int(samples), inserts_elsewhere=0, version=None))
        for actor in actors:
            actor.turn(tick_s)
    return actors


@pytest.mark.parametrize("window", [1, 2])
def test_trap_small_pushes_do_not_keep_a_large_one_out(window: int) -> None:
    *small, large = compete([1, 1, 1, 16], 60.0, window)
    # The learner takes a sixth of a second for a round of 95 transitions; retries come on top.
    assert max(actor.longest_wait_s for actor in (*small, large)) < 0.5 * window
    assert large.writer.accepted_transitions > 10 * small[0].writer.accepted_transitions


@pytest.mark.parametrize("window", [1, 2])
def test_nothing_the_learner_has_room_for_is_kept_out(window: int) -> None:
    """Keeping order costs no throughput, as whoever fits beside those who wait goes in."""
    actors = compete([1, 3, 16, 8], 60.0, window)
    inserted = sum(actor.writer.accepted_transitions for actor in actors)
    assert inserted >= 0.97 * 600.0 * 60.0
    # Everybody gets one turn a round.
    turns = [actor.writer.accepted_transitions / (5 * actor.segments) for actor in actors]
    assert max(turns) < 1.3 * min(turns)
