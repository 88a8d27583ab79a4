"""Reporter when reports fail to come, processes come back, and a run goes on with old replay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from reporting import NOTHING_BEFORE, Stage, game, learner_report, phases, shard_report

from common.reports import LearnerReport, ReplayReport
from driver.view.status import RunStatus


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    made.start()
    yield made
    made.reporter.close()
    made.console.close()


def book(
    stage: Stage,
    shards: dict[int, ReplayReport] | None = None,
    learner: LearnerReport | None = None,
    *,
    after_s: float = 1.0,
    restarts: dict[str, int] | None = None,
) -> RunStatus:
    """Book the reports that came in one round, and only those."""
    stage.now_s += after_s
    stage.reporter.update(shards or {}, learner, restarts or {}, 1)
    return stage.statuses[-1]


# --- rounds in which not everybody answers --------------------------------------------------------


def test_shard_missing_from_a_round_keeps_its_state_and_books_no_game_twice(stage: Stage) -> None:
    first = shard_report(
        inserts=300,
        transitions=300,
        bytes=3_000,
        episodes=(game(7.0),),
        ended_episodes=1,
        phases=phases(sample=1.0),
    )
    book(stage, {0: first, 1: shard_report(inserts=100, transitions=100, bytes=1_000)})
    status = book(stage, {1: shard_report(inserts=200, transitions=200, bytes=2_000)})
    assert (status.frames, status.replay_fill, status.replay_bytes) == (500 * 4, 0.5, 5_000)
    status = book(stage, {})
    assert (status.frames, status.replay_fill, status.replay_bytes) == (500 * 4, 0.5, 5_000)
    assert stage.reporter.progress.episodes == 1
    book(stage, {}, after_s=2.0)
    assert stage.pairs("train/episode_return") == [(300 * 4, 7.0)]
    # One second of sampling in two shards' five: what it did is not counted again, either.
    ((frames, share),) = stage.pairs("time/replay_sample_share")
    assert frames == 500 * 4
    assert share == pytest.approx(1 / (2 * 5))
    assert stage.pairs("replay/transitions") == [(500 * 4, 500)]


def test_before_the_learners_first_report_the_rest_is_shown(stage: Stage) -> None:
    status = book(stage, {0: shard_report(inserts=100)}, after_s=5.0)
    assert status.frames == 400
    assert status.samples_per_insert == 0.0
    assert status.limiting_stage == "acting (filling replay)"
    assert stage.reporter.progress.learner_steps == 0
    scalars = stage.scalars()
    assert scalars["throughput/learner_steps_per_s"].values.tolist() == [0.0]
    assert "learner/dropped_priority_updates" not in scalars
    assert "learner/td_loss" not in scalars
    assert "time/learner_step_share" not in scalars


def test_round_without_the_learner_keeps_what_it_said_last(stage: Stage) -> None:
    said = learner_report(
        learner_step=10, samples=400, dropped_priority_updates=6, phases=phases(step=1.0)
    )
    book(stage, {0: shard_report(inserts=100)}, said)
    status = book(stage, {0: shard_report(inserts=200)}, None, after_s=4.0)
    assert status.samples_per_insert == 400 / 200
    assert stage.reporter.progress.learner_steps == 10
    assert stage.pairs("learner/dropped_priority_updates") == [(800, 6.0)]
    assert stage.pairs("time/learner_step_share") == [(800, 1.0)]


# --- samples per insert ---------------------------------------------------------------------------


def test_learner_that_went_back_to_a_checkpoint_keeps_samples_per_insert_right(
    stage: Stage,
) -> None:
    """What it sampled before its death was sampled, although its own count forgets it."""
    rounds = [(100, 10, 800), (200, 20, 1_600), (300, 12, 1_000), (400, 20, 1_700)]
    for inserts, step, samples in rounds:
        status = book(
            stage,
            {0: shard_report(inserts=inserts)},
            learner_report(learner_step=step, samples=samples),
        )
    # 1,600 before the death, 700 after its first report; those between the two nobody tells.
    assert status.samples_per_insert == (1_600 + 700) / 400
    assert stage.reporter.progress.learner_steps == 20
    assert status.learner_steps_per_s == (20 - 10 + 20 - 12) / 4
    assert min(value for _, value in stage.pairs("throughput/transitions_sampled_per_s")) >= 0.0


def test_samples_per_insert_does_not_count_what_was_restored(tmp_path: Path) -> None:
    """Replay came back with more than the minimum: each new transition counts."""
    stage = Stage(tmp_path)
    stage.start(min_size=100, before=NOTHING_BEFORE._replace(samples=5_000, agent_steps=900))
    shards = {0: shard_report(incarnation=1, inserts=500, restored=500)}
    status = book(stage, shards, learner_report(samples=5_000))
    assert math.isnan(status.samples_per_insert)
    shards = {0: shard_report(incarnation=1, inserts=550, restored=500)}
    status = book(stage, shards, learner_report(samples=5_400))
    assert status.samples_per_insert == 400 / 50
    assert status.frames == (900 + 50) * 4
    stage.reporter.close()


def test_samples_per_insert_counts_from_the_minimum_where_less_was_restored(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path)
    stage.start(min_size=100)
    shards = {0: shard_report(incarnation=1, inserts=190, restored=40)}
    status = book(stage, shards, learner_report(samples=720))
    assert status.samples_per_insert == 720 / (190 - 100)
    stage.reporter.close()


def test_death_of_a_shard_leaves_samples_per_insert_as_it_was(stage: Stage) -> None:
    learner = learner_report(samples=4_000)
    before = book(stage, {0: shard_report(inserts=500)}, learner)
    back = shard_report(incarnation=1, inserts=200, restored=200, by_the_dead=500)
    after = book(stage, {0: back}, learner)
    assert before.samples_per_insert == after.samples_per_insert == 4_000 / 500


# --- shards that died -----------------------------------------------------------------------------


def test_frames_and_games_of_a_shard_that_died_stay_counted(stage: Stage) -> None:
    book(stage, {0: shard_report(inserts=500, episodes=(game(1.0),), ended_episodes=1)})
    back = shard_report(
        incarnation=1,
        inserts=230,
        restored=200,
        by_the_dead=500,
        episodes=(game(2.0),),
        ended_episodes=2,
    )
    status = book(stage, {0: back})
    assert status.frames == (500 + 30) * 4
    assert stage.reporter.progress.episodes == 2
    assert stage.reporter.totals.lost == 300


def test_lost_and_evicted_transitions_are_written(stage: Stage) -> None:
    book(
        stage,
        {0: shard_report(inserts=500, evicted=40), 1: shard_report(inserts=300, evicted=2)},
        after_s=5.0,
    )
    back = shard_report(incarnation=1, inserts=210, restored=200, by_the_dead=500, evicted=10)
    book(stage, {0: back}, after_s=5.0)
    assert stage.pairs("replay/lost_transitions") == [(3_200, 0.0), (3_240, 300.0)]
    assert stage.pairs("replay/evicted_transitions") == [(3_200, 42.0), (3_240, 12.0)]


def test_restarts_of_every_role_are_written(stage: Stage) -> None:
    restarts = {"actor": 4, "evaluator": 1, "learner": 2, "replay": 3, "weight_store": 5}
    book(stage, {0: shard_report(inserts=1)}, after_s=5.0, restarts=restarts)
    scalars = stage.scalars()
    for role, count in restarts.items():
        assert scalars[f"health/{role}_restarts"].values.tolist() == [count]
