from __future__ import annotations

import math

import numpy as np
import pytest
from fakes import LatePending, LateShard, make_push, make_segment, make_shard
from shard_contract import CONFIG, START, Connect, ShardHandleContract, connect_local

from common.packing import pack_segment
from common.types import (
    EpisodeRecord,
    LearnerCounts,
    PhaseSeconds,
    PriorityUpdate,
    Segment,
    SegmentName,
    WeightsVersion,
)
from replay.assembly import make_limiter
from replay.handles import Done
from replay.rate_limiter import RateLimiter

EPISODE = EpisodeRecord(episode_return=21.0, agent_steps=900, epsilon=0.1, ladder_position=0.5)


class TestLocalShard(ShardHandleContract):
    @pytest.fixture
    def connect(self) -> Connect:
        return connect_local


class TestLateShard(ShardHandleContract):
    """The wire that other tests use keeps the contract too, once `result` waits for it."""

    @pytest.fixture
    def connect(self) -> Connect:
        return lambda *arguments: WaitingShard(connect_local(*arguments)._shard)


class WaitingShard(LateShard):
    """A late shard that serves what is asked when one looks for the answer."""

    def _call(self, method: str, *arguments: object) -> LatePending:
        pending = super()._call(method, *arguments)
        self.deliver_all()
        return pending


def test_answer_that_is_there_needs_no_waiting() -> None:
    done = Done(7)
    assert done.wait(0.0)
    assert done.result() == 7


# --- the limiter ----------------------------------------------------------------------------------


def test_refused_push_leaves_nothing_behind() -> None:
    limiter = RateLimiter(min_size=5, samples_per_insert=1.0, band=4.0)
    shard = make_shard(limiter=limiter)
    shard.add(make_push(make_segment(sequence=0)))
    push = make_push(
        make_segment(sequence=1), episodes=(EPISODE,), phases=PhaseSeconds((("pack", 1.0),))
    )
    shard.report()
    assert not shard.add(push)
    report = shard.report()
    assert (report.counts.inserts, report.history.refused_pushes) == (5, 1)
    assert report.episodes == ()
    assert report.actors == ()
    assert report.actor_phases.phases == ()
    shard.counts(START._replace(samples=2))
    assert shard.add(push)
    assert shard.report().episodes == (EPISODE,)


def test_below_the_minimal_size_pushes_always_pass() -> None:
    limiter = RateLimiter(min_size=100, samples_per_insert=1.0, band=1.0)
    shard = make_shard(limiter=limiter)
    accepted = [shard.add(make_push(make_segment(sequence=s))) for s in range(22)]
    assert accepted == [True] * 20 + [False] * 2


def test_limiter_of_the_configuration_is_used() -> None:
    limiter = make_limiter(CONFIG)
    assert limiter.error(30, 0) == (30 - 10) * 2.0
    assert not limiter.can_insert(30, 0, 1)
    assert limiter.can_insert(29, 0, 1)


# --- the report -----------------------------------------------------------------------------------


def test_report_counts_everything_since_the_start() -> None:
    shard = make_shard(capacity=12, incarnation=3)
    for sequence in (0, 1, 1, 2):
        shard.add(make_push(make_segment(sequence=sequence)))
    shard.sample((7,), START)
    shard.sample((2,), START)
    shard.update_priorities(PriorityUpdate(np.array([0, 14]) + 3 * 2**40, np.ones(2, np.float32)))
    for _ in range(2):
        report = shard.report()
        assert (report.counts.transitions, report.counts.inserts, report.evicted) == (10, 15, 5)
        assert (report.counts.incarnation, report.counts.accepted) == (3, 15)
        assert report.history.samples == 7 + 2
        assert report.history.stale_priority_updates == 1
        assert report.history.duplicate_segments == 1
        assert report.bytes == sum(map(len, shard.capture().segments)) > 0
    assert shard.inserted == 15


def test_episodes_actors_and_phases_are_reported_once() -> None:
    shard = make_shard()
    for actor, epsilon in ((3, 0.9), (1, 0.5), (3, 0.8)):
        push = make_push(
            make_segment(actor=actor, sequence=actor + shard.inserted),
            episodes=(EPISODE._replace(agent_steps=actor),),
            phases=PhaseSeconds((("pack", 0.25), ("wait", float(actor)))),
            epsilon=epsilon,
        )
        assert shard.add(push)
    report = shard.report()
    assert report.actors == ((1, 0, 0.5), (3, 0, 0.8))
    assert [episode.agent_steps for episode in report.episodes] == [3, 1, 3]
    assert dict(report.actor_phases.phases) == {"pack": 3 * 0.25, "wait": 3.0 + 1.0 + 3.0}
    assert {name for name, _ in report.phases.phases} == {"add"}
    again = shard.report()
    assert (again.actors, again.episodes) == ((), ())
    assert again.actor_phases.phases == again.phases.phases == ()


def test_ended_games_are_counted_once_and_ride_on_every_reply_to_the_learner() -> None:
    limiter = RateLimiter(min_size=5, samples_per_insert=1.0, band=4.0)
    shard = make_shard(limiter=limiter)
    push = make_push(make_segment(), episodes=(EPISODE, EPISODE))
    assert shard.add(push)
    refused = make_push(make_segment(sequence=1), episodes=(EPISODE,))
    assert not shard.add(refused)
    assert shard.add(make_push(episodes=(EPISODE,)))
    assert shard.report().counts.episodes == shard.report().counts.episodes == 3
    assert shard.ended_episodes == 3
    assert shard.counts(START).episodes == shard.sample((2,), START).counts.episodes == 3
    shard.counts(START._replace(samples=20))
    assert shard.add(refused)
    assert shard.add(refused)
    assert shard.ended_episodes == 4


def test_retried_push_brings_its_records_once() -> None:
    shard = make_shard()
    push = make_push(make_segment(), episodes=(EPISODE,), phases=PhaseSeconds((("pack", 1.0),)))
    assert shard.add(push)
    assert shard.add(push)
    report = shard.report()
    assert report.episodes == (EPISODE,)
    assert dict(report.actor_phases.phases) == {"pack": 1.0}
    assert report.history.duplicate_segments == 1


def test_push_of_records_alone_is_booked() -> None:
    shard = make_shard()
    assert shard.add(make_push(episodes=(EPISODE,)))
    assert shard.report().episodes == (EPISODE,)


def test_policy_lag_is_the_learner_step_less_the_step_that_acted() -> None:
    shard = make_shard()
    assert math.isnan(shard.report().policy_lag_learner_steps)
    shard.counts(LearnerCounts(samples=0, inserts_elsewhere=0, version=WeightsVersion(0, 100)))
    shard.add(make_push(*(make_segment(sequence=s, learner_step=70 + 20 * s) for s in range(2))))
    assert shard.report().policy_lag_learner_steps == ((100 - 70) + (100 - 90)) / 2
    assert math.isnan(shard.report().policy_lag_learner_steps)


@pytest.mark.parametrize("version", [None, WeightsVersion(1, 40)])
def test_policy_lag_says_nothing_of_another_learners_steps(version: WeightsVersion | None) -> None:
    """Of a learner that is dead, or of one that this shard has not heard of yet."""
    shard = make_shard()
    shard.counts(LearnerCounts(samples=0, inserts_elsewhere=0, version=version))
    shard.add(make_push(make_segment(learner_step=90)))
    assert math.isnan(shard.report().policy_lag_learner_steps)


def test_phases_name_what_the_shard_did() -> None:
    shard = make_shard()
    shard.add(make_push(make_segment()))
    shard.sample((3,), START)
    shard.update_priorities(PriorityUpdate(np.array([0]), np.ones(1, np.float32)))
    assert {name for name, _ in shard.report().phases.phases} == {"add", "sample", "update"}


def broken(packed: bytes) -> bytes:
    return bytes([packed[0] ^ 1]) + packed[1:]


@pytest.mark.parametrize(
    "senseless",
    [
        make_segment(sequence=1, priority=[1, 1, np.nan, 1, 1]),
        make_segment(sequence=1, priority=[1, 1, np.inf, 1, 1]),
        make_segment(sequence=1)._replace(r_t=np.array([0, np.nan, 0, 0, 0], np.float32)),
        make_segment(sequence=1)._replace(r_t=np.array([0, np.inf, 0, 0, 0], np.float32)),
        None,
    ],
    ids=["priority nan", "priority inf", "return nan", "return inf", "changed byte"],
)
def test_trap_corrupt_segment_is_refused_and_counted_and_the_others_are_in(
    senseless: Segment | None,
) -> None:
    shard = make_shard(alpha=1.0)
    sound = make_push(*(make_segment(sequence=s) for s in range(3)), episodes=(EPISODE,))
    bad = broken(sound.segments[1]) if senseless is None else pack_segment(senseless)
    push = sound._replace(segments=(sound.segments[0], bad, sound.segments[2]))
    assert shard.add(push)
    shard.check_valid()
    report = shard.report()
    assert (report.history.refused_segments, report.history.refused_pushes) == (1, 0)
    assert (report.counts.inserts, report.counts.accepted, report.counts.transitions) == (
        10,
        10,
        10,
    )
    assert report.episodes == (EPISODE,)
    assert shard.capture().names == (SegmentName(0, 0, 0), SegmentName(0, 0, 2))
    assert shard.add(push)  # a retry: nothing comes in, no game is booked again
    report = shard.report()
    assert (report.counts.inserts, report.history.refused_segments, report.episodes) == (10, 2, ())


def test_games_of_a_push_that_is_corrupt_throughout_are_booked() -> None:
    shard = make_shard()
    push = make_push(make_segment(), episodes=(EPISODE,))
    assert shard.add(push._replace(segments=(broken(push.segments[0]),)))
    report = shard.report()
    assert (report.counts.inserts, report.history.refused_segments, report.counts.episodes) == (
        0,
        1,
        1,
    )


def test_segment_larger_than_the_shard_is_an_error_and_the_retry_adds_the_rest() -> None:
    shard = make_shard(capacity=6)
    push = make_push(make_segment(sequence=0), make_segment(sequence=1, transitions=7))
    with pytest.raises(ValueError, match="Expect a segment of <= 6 transitions"):
        shard.add(push)
    assert shard.inserted == 5
    rest = make_push(make_segment(sequence=0), make_segment(sequence=1), episodes=(EPISODE,))
    assert shard.add(rest)
    assert shard.report().episodes == (EPISODE,)
