"""Reporter: reports fed by hand under a fake clock, and what it wrote, read back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from design_tags import DESIGN_TAGS
from reporting import (
    NOTHING_BEFORE,
    PONG,
    Stage,
    evaluation,
    game,
    learner_report,
    phases,
    shard_report,
)

from common.reports import SaveStatus
from driver.view.events import read_scalars
from driver.view.reporter import Progress
from driver.view.status import RunStatus

# The same with phases that stand for each role's.
TAGS = DESIGN_TAGS | {
    "eval/human_normalized_score",
    "time/actor_environment_share",
    "time/actor_wait_share",
    "time/replay_sample_share",
    "time/learner_step_share",
    "time/learner_wait_share",
}

BEYOND_DESIGN = {
    "train/episode_agent_steps",
    "train/mean_episode_return",
    "train/episode_return_epsilon_quartile_1",
    "replay/refused_segments",
    "replay/evicted_transitions",
    "replay/lost_transitions",
    "learner/dropped_priority_updates",
}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    made.start()
    yield made
    made.reporter.close()
    made.console.close()


def test_every_tag_of_the_design_is_written_at_frames_with_its_value(stage: Stage) -> None:
    stage.update(shard_report(), shard_report(), after_s=0.0)
    stage.reporter.evaluated(evaluation(10.0, 13.0, agent_steps=250))
    stage.update(
        shard_report(
            inserts=300,
            transitions=290,
            bytes=6_000,
            stale_priority_updates=4,
            policy_lag_learner_steps=20.0,
            episodes=(game(-21.0), game(-19.0)),
            actor_phases=phases(environment=3.0, wait=1.0),
            phases=phases(sample=2.0),
        ),
        shard_report(
            inserts=200,
            transitions=190,
            bytes=4_000,
            stale_priority_updates=1,
            actors=((0, 0, 0.25), (1, 2, 0.75)),
            policy_lag_learner_steps=30.0,
            actor_phases=phases(environment=3.0, wait=1.0),
            phases=phases(sample=1.0),
        ),
        after_s=5.0,
        learner=learner_report(
            learner_step=50,
            samples=1_600,
            metrics={"td_loss": 0.5, "q_mean": 1.5, "grad_norm": 7.0, "entropy": 0.25},
            phases=phases(step=4.0, wait=1.0),
        ),
    )
    scalars = stage.scalars()
    assert set(scalars) >= TAGS, TAGS - set(scalars)
    last = {tag: (s.frames[-1], s.values[-1]) for tag, s in scalars.items()}
    frames = 500 * 4
    expected = {
        "throughput/env_frames_per_s": 500 * 4 / 5,
        "throughput/learner_steps_per_s": 50 / 5,
        "throughput/transitions_sampled_per_s": 1_600 / 5,
        "throughput/transitions_inserted_per_s": 500 / 5,
        "learner/td_loss": 0.5,
        "learner/q_mean": 1.5,
        "learner/grad_norm": 7.0,
        "learner/entropy": 0.25,  # whatever comes
        "replay/transitions": 290 + 190,
        "replay/bytes": 10_000,
        "replay/samples_per_insert": 1_600 / 500,
        "replay/stale_priority_updates": 5,
        "actors/policy_lag_learner_steps": 25.0,
        "actors/epsilon": (0.25 + 0.75) / 2,
        "train/mean_episode_return": (-21.0 - 19.0) / 2,
        "time/actor_environment_share": 6 / 8,
        "time/actor_wait_share": 2 / 8,
        # Of two shards' 5 s each: a shard is idle between calls.
        "time/replay_sample_share": 3 / (2 * 5),
        "time/learner_step_share": 4 / 5,
        "time/learner_wait_share": 1 / 5,
        "health/actor_restarts": 3,
        "health/replay_restarts": 0,
        "health/learner_restarts": 1,
    }
    for tag, value in expected.items():
        assert last[tag] == (frames, pytest.approx(value)), tag
    assert scalars["train/episode_return"].values.tolist() == [-21.0, -19.0]
    # An evaluation stands where its weights stood: 250 agent steps. Pong: random -20.7, human 14.6.
    assert last["eval/episode_return"] == (250 * 4, 11.5)
    assert last["eval/human_normalized_score"] == (
        250 * 4,
        pytest.approx((11.5 + 20.7) / (14.6 + 20.7)),
    )
    known = TAGS | BEYOND_DESIGN | {"learner/entropy"}
    assert set(scalars) == known


def test_returns_are_raw_and_split_by_quarter_of_the_ladder(stage: Stage) -> None:
    games = [(500.0, 0.0), (300.0, 0.24), (40.0, 0.25), (7.0, 0.5), (1.0, 0.75), (3.0, 0.99)]
    stage.update(
        shard_report(inserts=10, episodes=tuple(game(r, p) for r, p in games)), after_s=5.0
    )
    values = {tag: s.values.tolist() for tag, s in stage.scalars().items()}
    name = "train/episode_return_epsilon_quartile_"
    assert values["train/episode_return"] == [500.0, 300.0, 40.0, 7.0, 1.0, 3.0]
    # 1 explores most: its environments stand at the ladder's start.
    assert [values[f"{name}{i}"] for i in (1, 2, 3, 4)] == [
        [500.0, 300.0],
        [40.0],
        [7.0],
        [1.0, 3.0],
    ]
    assert values["train/episode_agent_steps"] == [100.0] * 6


def test_quarter_without_a_game_writes_nothing(stage: Stage) -> None:
    stage.update(shard_report(inserts=10, episodes=(game(5.0, 0.6),)), after_s=5.0)
    stage.update(shard_report(inserts=20), after_s=5.0)
    scalars = stage.scalars()
    returns = [tag for tag in scalars if tag.startswith("train/episode_return")]
    assert sorted(returns) == ["train/episode_return", "train/episode_return_epsilon_quartile_3"]
    assert len(scalars["train/episode_return"].frames) == 1


def test_every_game_is_written_by_itself_once(stage: Stage) -> None:
    for second in range(1, 4):
        stage.update(shard_report(inserts=second, episodes=(game(float(second)),)), after_s=1.0)
    assert stage.pairs("train/episode_return") == [(4, 1.0), (8, 2.0), (12, 3.0)]


def test_scalars_come_every_five_seconds(stage: Stage) -> None:
    for second in range(1, 13):
        stage.update(shard_report(transitions=second, inserts=second), after_s=1.0)
    assert [frames for frames, _ in stage.pairs("replay/transitions")[:2]] == [20, 40]


def test_what_came_after_the_last_row_is_written_on_closing_once(stage: Stage) -> None:
    stage.update(shard_report(inserts=10, episodes=(game(1.0),)), after_s=5.0)
    stage.update(shard_report(inserts=12, episodes=(game(9.0),)), after_s=1.0)
    assert stage.pairs("train/episode_return") == [(40, 1.0), (48, 9.0)]
    assert stage.pairs("train/episode_return") == [(40, 1.0), (48, 9.0)]  # closed twice


def test_closing_right_after_a_row_or_before_any_report_writes_nothing_more(
    stage: Stage, tmp_path: Path
) -> None:
    stage.update(shard_report(inserts=10, transitions=9), after_s=5.0)
    assert stage.pairs("replay/transitions") == [(40, 9)]
    other = Stage(tmp_path / "other")
    other.start().close()
    assert read_scalars(tmp_path / "other") == {}


def test_what_is_not_known_yet_is_not_written(stage: Stage) -> None:
    stage.update(shard_report(), after_s=5.0, restarts={})
    scalars = stage.scalars()
    for tag in (
        "learner/td_loss",
        "replay/samples_per_insert",
        "actors/policy_lag_learner_steps",
        "train/episode_return",
        "eval/episode_return",
        "health/actor_restarts",
    ):
        assert tag not in scalars
    status = stage.statuses[-1]
    for unknown in (status.train_return, status.eval_score, status.eta_s, status.policy_lag):
        assert math.isnan(unknown)


def test_learner_report_that_did_not_change_counts_once(stage: Stage) -> None:
    old = learner_report(learner_step=1, phases=phases(step=1.0))
    for _ in range(4):
        stage.update(shard_report(inserts=1), after_s=1.0, learner=old)
    new = learner_report(learner_step=2, phases=phases(wait=3.0))
    stage.update(shard_report(inserts=1), after_s=1.0, learner=new)
    assert stage.pairs("time/learner_step_share") == [(4, 0.25)]
    assert stage.pairs("time/learner_wait_share") == [(4, 0.75)]


def test_learner_rows_are_the_means_since_the_row_before_and_a_pause_at_the_end_hides_none(
    stage: Stage,
) -> None:
    """A learner that took no step in a row's last second did take those before."""
    for second, loss in enumerate([1.0, 3.0, math.nan, 8.0, math.nan, math.nan], 1):
        numbers = {"td_loss": loss, "q_mean": 2 * loss, "grad_norm": 3 * loss}
        learned = {} if math.isnan(loss) else numbers
        report = learner_report(phases=phases(step=float(second)), metrics=learned)
        stage.update(shard_report(inserts=second), after_s=1.0, learner=report)
    # The first row is written at 5 s; in what came after, up to closing, nothing was learned.
    assert stage.pairs("learner/td_loss") == [(20, 4.0)]
    assert stage.pairs("learner/q_mean") == [(20, 8.0)]
    assert stage.pairs("learner/grad_norm") == [(20, 12.0)]


def test_policy_lag_of_an_old_row_is_not_written_again_but_stays_on_the_console(
    stage: Stage,
) -> None:
    stage.update(shard_report(inserts=1, policy_lag_learner_steps=8.0), after_s=5.0)
    status = stage.update(shard_report(inserts=2), after_s=5.0)
    assert status.policy_lag == 8.0
    assert stage.pairs("actors/policy_lag_learner_steps") == [(4, 8.0)]


def test_console_gets_the_whole_status(stage: Stage) -> None:
    stage.update(shard_report(), after_s=0.0)
    stage.reporter.evaluated(evaluation(-3.0))
    status = stage.update(
        shard_report(
            inserts=1_000,
            transitions=600,
            bytes=12_345,
            policy_lag_learner_steps=4.0,
            episodes=(game(-20.0), game(-10.0)),
        ),
        after_s=10.0,
        learner=learner_report(learner_step=70, samples=2_000),
    )
    assert status == RunStatus(
        frames=4_000,
        total_frames=40_000,
        episodes=2,
        total_episodes=None,
        eta_s=36_000 / 400,
        frames_per_s=400.0,
        learner_steps_per_s=7.0,
        train_return=-15.0,
        eval_score=-3.0,
        human_normalized=pytest.approx((-3.0 + 20.7) / (14.6 + 20.7)),  # type: ignore[arg-type]
        samples_per_insert=2.0,
        replay_fill=0.6,
        replay_bytes=12_345,
        policy_lag=4.0,
        limiting_stage=status.limiting_stage,
        elapsed_s=10.0,
    )


def test_games_of_one_report_stand_at_equal_distances_up_to_its_frames(stage: Stage) -> None:
    """A checkpoint in between covers those that ended before it, as nearly as one can tell."""
    stage.update(shard_report(inserts=25, episodes=(game(1.0),)), after_s=1.0)
    stage.update(shard_report(inserts=50, episodes=(game(2.0), game(3.0))), after_s=1.0)
    assert stage.pairs("train/episode_return") == [(100, 1.0), (150, 2.0), (200, 3.0)]


def test_time_left_is_that_to_the_last_game_where_games_end_the_run_first(stage: Stage) -> None:
    stage.start(total_episodes=50, before=NOTHING_BEFORE._replace(episodes=10))
    stage.update(shard_report(), after_s=0.0)
    status = stage.update(shard_report(inserts=100), after_s=10.0)
    assert status.eta_s == 39_600 / 40  # no game has ended: by frames
    games = (game(1.0),) * 5
    status = stage.update(shard_report(inserts=200, episodes=games), after_s=10.0)
    assert (status.episodes, status.total_episodes) == (15, 50)
    assert status.eta_s == pytest.approx(35 / (5 / 20.0))


def test_time_left_by_games_that_take_longer_than_the_window(stage: Stage) -> None:
    stage.start(total_episodes=50)
    stage.update(shard_report(), after_s=0.0)
    for _ in range(3):
        for _ in range(8):
            stage.update(shard_report(), after_s=50.0)
        status = stage.update(shard_report(inserts=9, episodes=(game(1.0),)), after_s=50.0)
    assert status.eta_s == pytest.approx(47 * 450.0)
    assert stage.update(shard_report(), after_s=400.0).eta_s == status.eta_s


def test_progress_is_what_result_json_needs(stage: Stage) -> None:
    nan = pytest.approx(math.nan, nan_ok=True)
    assert stage.reporter.progress == Progress(0, 0, 0, 0, nan, nan)  # type: ignore[arg-type]
    stage.update(
        shard_report(inserts=7, episodes=(game(1.0),)),
        shard_report(inserts=5, episodes=(game(2.0),)),
        after_s=1.0,
        learner=learner_report(learner_step=9),
    )
    stage.reporter.evaluated(evaluation(4.0, 6.0))
    assert stage.reporter.progress == Progress(
        frames=48,
        agent_steps=12,
        episodes=2,
        learner_steps=9,
        last_train_return=1.5,
        last_eval_score=5.0,
    )


def test_train_return_is_the_mean_of_the_last_hundred_games(stage: Stage) -> None:
    games = tuple(game(float(i)) for i in range(150))
    stage.update(shard_report(inserts=1, episodes=games), after_s=1.0)
    assert stage.reporter.progress.last_train_return == np.mean(range(50, 150))


def test_resumed_run_goes_on_where_it_stood(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    before = NOTHING_BEFORE._replace(agent_steps=1_000, samples=8_000, learner_steps=300)
    stage.start(before=before)
    assert stage.reporter.progress.frames == 4_000
    assert stage.reporter.progress.learner_steps == 300
    stage.update(
        shard_report(), after_s=0.0, learner=learner_report(learner_step=300, samples=8_000)
    )
    status = stage.update(
        shard_report(inserts=100),
        after_s=5.0,
        learner=learner_report(learner_step=310, samples=8_400),
    )
    assert status.frames == 4_400
    # Counted from the new start, not as if all of 8,400 samples came in these seconds.
    assert status.samples_per_insert == 4.0
    assert status.learner_steps_per_s == 2.0
    assert stage.pairs("throughput/transitions_sampled_per_s")[-1] == (4_400, 80.0)


def test_evaluation_of_a_game_without_published_scores_has_no_normalised_one(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path)
    stage.start(spec=PONG._replace(name="cartpole", action_repeat_frames=1))
    stage.reporter.evaluated(evaluation(9.0, 200.0, agent_steps=30))
    assert stage.pairs("eval/episode_return") == [(30, 104.5)]
    assert "eval/human_normalized_score" not in stage.scalars()
    assert numbers(stage) == ["50", "104.5", "2", "9", "200", "0.001", "12"]


def test_evaluation_note_names_the_human_normalised_score(stage: Stage) -> None:
    stage.reporter.evaluated(evaluation(14.6, -3.05))
    assert numbers(stage) == ["50", "5.8", "2", "-3", "15", "0.75", "0.001", "12"]


def numbers(stage: Stage) -> list[str]:
    """Return those of an evaluation: step, mean, games, least, most, human, epsilon, seconds."""
    return re.findall(r"-?\d+(?:\.\d+)?", stage.output.getvalue())


def test_seconds_of_saves_are_those_of_the_slowest_shard_that_has_saved(stage: Stage) -> None:
    def saved(held_s: float, seconds: float) -> SaveStatus:
        return SaveStatus(attempts=1, path="x", trouble="", held_s=held_s, seconds=seconds)

    stage.update(shard_report(), shard_report(), after_s=5.0, learner=learner_report())
    stage.update(
        shard_report(inserts=1),
        shard_report(save=saved(0.5, 2.0)),
        after_s=5.0,
        learner=learner_report(),
    )
    stage.update(
        shard_report(inserts=1, save=saved(0.25, 4.0)),
        shard_report(save=saved(0.5, 2.0)),
        after_s=5.0,
        learner=learner_report(save=saved(0.125, 1.0)),
    )
    scalars = stage.scalars()
    assert scalars["health/replay_save_held_s"][1].tolist() == [0.5, 0.5]
    assert scalars["health/replay_save_s"][1].tolist() == [2.0, 4.0]
    assert scalars["health/learner_save_held_s"][1].tolist() == [0.125]
    assert scalars["health/learner_save_s"][1].tolist() == [1.0]


@pytest.mark.parametrize(
    ("actor_wait_s", "learner_wait_s", "replay_s", "learner_step", "limit"),
    [
        (0.0, 5.0, 0.0, 0, "acting (filling replay)"),
        (0.0, 4.0, 1.0, 10, "acting"),
        (4.0, 0.0, 1.0, 10, "learning"),
        (1.0, 1.1, 1.0, 10, "acting"),
        (1.1, 1.0, 1.0, 10, "learning"),
        (0.0, 4.0, 4.2, 10, "replay"),
        (4.0, 0.0, 4.2, 10, "replay"),
        (4.0, 0.0, 3.9, 10, "learning"),
    ],
)
def test_limiting_stage_is_a_busy_replay_or_whoever_waits_least(
    stage: Stage,
    actor_wait_s: float,
    learner_wait_s: float,
    replay_s: float,
    learner_step: int,
    limit: str,
) -> None:
    status = stage.update(
        shard_report(
            inserts=10,
            actor_phases=phases(environment=5.0 - actor_wait_s, wait=actor_wait_s),
            phases=phases(sample=replay_s / 2, add=replay_s / 2),
        ),
        after_s=5.0,
        learner=learner_report(
            learner_step=learner_step, phases=phases(step=5.0 - learner_wait_s, wait=learner_wait_s)
        ),
    )
    assert status.limiting_stage == limit


def test_learning_never_limits_a_run_in_which_nobody_plays(stage: Stage) -> None:
    status = stage.update(
        shard_report(inserts=10),
        after_s=5.0,
        learner=learner_report(learner_step=10, phases=phases(step=1.0)),
        playing=0,
    )
    assert status.limiting_stage == "acting (nobody plays)"


def test_one_busy_shard_of_two_does_not_limit_the_run(stage: Stage) -> None:
    status = stage.update(
        shard_report(inserts=1, phases=phases(sample=4.9)),
        shard_report(inserts=1, phases=phases(sample=1.0)),
        after_s=5.0,
        learner=learner_report(learner_step=1),
    )
    assert status.limiting_stage == "learning"


def test_samples_per_insert_counts_from_the_minimum_size_as_the_limiter_does(
    tmp_path: Path,
) -> None:
    stage = Stage(tmp_path)
    stage.start(min_size=100)
    filling = stage.update(shard_report(inserts=100), after_s=1.0)
    assert math.isnan(filling.samples_per_insert)
    status = stage.update(
        shard_report(inserts=150), after_s=1.0, learner=learner_report(samples=400)
    )
    assert status.samples_per_insert == 400 / (150 - 100)
