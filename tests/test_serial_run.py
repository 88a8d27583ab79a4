"""SerialRun with parts that only count: who moves when, what ends it, and what the clock may do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import NO_PHASES, NOTHING_BEFORE, FakeClock, make_segment, new_plan
from reporting import evaluation

from common.config import Config
from common.endings import RunEnded
from common.reports import EvaluationResult
from common.types import EnvironmentSpec, EpisodeRecord, ObservationSpec, PhaseSeconds, Segment
from driver.interrupts import Interrupts
from driver.serial_cores import Cores
from driver.serial_run import SerialRun

SPEC = EnvironmentSpec("toy", ObservationSpec((2, 3), "uint8", 4), 3, 1, "")
STEPS = 5  # of one push


class Stage:
    """Parts that write what happens into one diary, and a limiter as simple as can be.

    A player gives one segment of 5 transitions each `every` calls; one game ends with each. A push
    is open until the learner has taken `ratio` steps for it.
    """

    def __init__(self, *, players: int = 1, every: int = 1, ratio: int = 2) -> None:
        self.diary: list[str] = []
        self.interrupts = Interrupts()
        self.returns: list[float] = []  # of the evaluations to come
        self.before = NOTHING_BEFORE
        self.every = every
        self.ratio = ratio
        self.pushes = 0
        self.accepted = 0
        self.ended_episodes = 0
        self.steps = 0
        self.interrupt_at_step = -1
        self.trouble = ""  # of every save
        self.notes: list[str] = []
        self.evaluations: list[EvaluationResult] = []
        self.waits: set[str] = set()  # who books the present moment as waiting
        parts: Any = Cores  # they are none of the types that it names
        self.cores = parts(
            players=[_Player(self, k) for k in range(players)],
            writers=[_Writer(self, k) for k in range(players)],
            replay=self,
            learner=self,
            save=self._save,
            evaluate=self._evaluate,
        )

    def _save(self) -> str:
        self.diary.append("save")
        return self.trouble

    def run(self, folder: Path, spec: EnvironmentSpec = SPEC, **settings: Any) -> str:
        """Run with these settings; return why it ended."""
        config = Config(total_frames=10**6)
        config = dataclasses.replace(
            config,
            checkpoint=dataclasses.replace(config.checkpoint, every_minutes=1e6),
            evaluator=dataclasses.replace(config.evaluator, every_minutes=1e6),
        )
        plan = dataclasses.replace(
            new_plan(dataclasses.replace(config, **settings), spec, folder), before=self.before
        )
        return SerialRun(
            plan=plan,
            cores=self.cores,
            reporter=self,  # type: ignore[arg-type]
            note=self.notes.append,
            interrupts=self.interrupts,
        ).run()

    @property
    def moves(self) -> str:
        """The diary in letters: p a push, l a learner step."""
        return "".join(entry[0] for entry in self.diary if entry in ("push", "learn"))

    # --- replay and its shard, learner, reporter, evaluator ---

    @property
    def shards(self) -> list[Stage]:
        return [self]

    @property
    def episodes(self) -> int:
        return self.ended_episodes

    def report(self, **of_its_process: Any) -> Any:
        return _Report()

    @contextmanager
    def waiting(self, who: str = "learner") -> Iterator[None]:
        self.waits.add(who)
        yield
        self.waits.remove(who)

    def run_step(self, timeout_s: float) -> bool:
        assert timeout_s == 0.0
        assert self.waits == {"player 0"}
        if self.steps >= self.ratio * self.pushes:
            return False
        self.steps += 1
        self.diary.append("learn")
        if self.steps == self.interrupt_at_step:
            self.interrupts.requested.set()
        return True

    def flush_priorities(self) -> None:
        self.diary.append("flush")

    def publish(self) -> None:
        self.diary.append("publish")

    def publish_if_due(self) -> None:
        assert self.waits == {"player 0"}
        if self.diary[-1] == "learn":
            self.diary.append("publish")

    def update(
        self, shards: dict[int, Any], learner: Any, restarts: dict[str, int], playing: int
    ) -> None:
        assert list(shards) == [0] and learner is not None and restarts == {} and playing > 0
        self.diary.append("report")

    def evaluated(self, result: EvaluationResult) -> None:
        self.evaluations.append(result)

    def _evaluate(self) -> EvaluationResult | None:
        self.diary.append("evaluate")
        return evaluation(self.returns.pop(0)) if self.returns else None


class _Report:
    """Stands for any report: the reporter of this stage looks at none."""


class _Player:
    epsilon = 0.5

    def __init__(self, stage: Stage, index: int) -> None:
        self._stage = stage
        self._index = index
        self._calls = 0

    def collect(self, num_steps: int) -> list[Segment]:
        assert num_steps == 1
        assert self._stage.waits == {"learner"}
        self._calls += 1
        if self._calls % self._stage.every:
            return []
        return [make_segment(actor=self._index, sequence=self._calls, transitions=STEPS)]

    def drain_episodes(self) -> tuple[EpisodeRecord, ...]:
        return (EpisodeRecord(float(self._calls), STEPS, epsilon=0.1, ladder_position=0.0),)

    def waiting(self) -> AbstractContextManager[None]:
        return self._stage.waiting(f"player {self._index}")

    def drain_phases(self) -> PhaseSeconds:
        return NO_PHASES


class _Writer:
    def __init__(self, stage: Stage, index: int) -> None:
        self._stage = stage
        self._index = index

    def push(
        self,
        segments: Sequence[Segment],
        episodes: tuple[EpisodeRecord, ...],
        phases: PhaseSeconds,
        epsilon: float,
    ) -> None:
        assert phases == NO_PHASES
        assert all(segment.name.actor == self._index for segment in segments)
        self._stage.diary.append("push")
        self._stage.pushes += 1
        self._stage.accepted += sum(segment.num_transitions for segment in segments)
        self._stage.ended_episodes += len(episodes)

    def has_room(self) -> bool:
        return self._stage.steps >= self._stage.ratio * (self._stage.pushes - 1)


# --- who moves when -------------------------------------------------------------------------------


def test_learner_moves_until_the_limiter_stops_it_and_then_the_actors(tmp_path: Path) -> None:
    stage = Stage(ratio=3)
    assert stage.run(tmp_path, total_frames=20) == "done"
    assert stage.moves == "plll" * 4


def test_weights_go_out_at_the_end_of_the_learners_turn(tmp_path: Path) -> None:
    stage = Stage(ratio=3)
    stage.run(tmp_path, total_frames=10)
    moves = [entry for entry in stage.diary if entry in ("push", "learn", "publish")]
    turn = ["push", "learn", "learn", "learn", "publish"]
    assert moves == ["publish", *turn, *turn, "publish"]


def test_without_a_ratio_a_turn_of_the_learner_is_one_step(tmp_path: Path) -> None:
    stage = Stage(ratio=3)
    replay = dataclasses.replace(Config().replay, samples_per_insert="off")
    stage.run(tmp_path, total_frames=10, replay=replay)
    # Two steps are due still, but the second push found room.
    assert stage.moves == "plpl"


def test_every_actor_has_its_turn_and_a_full_one_is_not_asked(tmp_path: Path) -> None:
    stage = Stage(players=3, ratio=0)
    stage.run(tmp_path, total_frames=45)
    assert stage.pushes == 45 // STEPS
    assert [player._calls for player in stage.cores.players] == [3, 3, 3]


def test_player_without_a_segment_pushes_nothing_and_keeps_its_games(tmp_path: Path) -> None:
    stage = Stage(every=4)
    stage.run(tmp_path, total_frames=15)
    assert stage.pushes == stage.ended_episodes == 3
    assert stage.cores.players[0]._calls == 12


# --- what it writes -------------------------------------------------------------------------------


def test_run_begins_by_publishing_and_ends_by_saving_what_it_learned(tmp_path: Path) -> None:
    stage = Stage(ratio=1)
    stage.run(tmp_path, total_frames=10)
    assert stage.diary[0] == "publish"
    # Priorities before the checkpoint, and what is evaluated last is what was learned last.
    assert stage.diary[-5:] == ["flush", "save", "publish", "report", "evaluate"]
    assert stage.diary.count("save") == stage.diary.count("evaluate") == 1


def test_speed_changes_nothing_but_how_often_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diaries = []
    for seconds in (0.0, 0.7, 100.0):  # that pass between two looks at the clock
        clock = FakeClock()

        def tick(clock: FakeClock = clock, seconds: float = seconds) -> float:
            clock.now_s += seconds
            return clock.now_s

        monkeypatch.setattr("driver.serial_run.time.monotonic", tick)
        stage = Stage(players=2, every=3, ratio=3)
        stage.returns = [1.0] * 1_000
        defaults = Config()
        # Without a ratio steps are always due, so that one more would not be refused.
        replay = dataclasses.replace(defaults.replay, samples_per_insert="off")
        stage.run(
            tmp_path,
            total_frames=20_000,
            checkpoint=dataclasses.replace(defaults.checkpoint, every_minutes=1.0),
            evaluator=dataclasses.replace(defaults.evaluator, every_minutes=2.0),
            replay=replay,
        )
        diaries.append(stage.diary)
        assert len(stage.evaluations) == stage.diary.count("evaluate")
    assert diaries[0].count("report") < diaries[1].count("report")
    # The learner of this stage publishes where nothing came between.
    kinds = ("push", "learn", "save", "evaluate")
    done = [[entry for entry in diary if entry in kinds] for diary in diaries]
    assert done[0] == done[1] == done[2]
    minutes = (20_000 + done[0].count("learn")) / 6_000
    assert minutes > 4
    assert done[0].count("save") == int(minutes) + 1
    assert done[0].count("evaluate") == int(minutes / 2) + 1


@pytest.mark.parametrize("ratio", [0, 7])
def test_a_minute_is_6000_agent_and_learner_steps(ratio: int, tmp_path: Path) -> None:
    stage = Stage(ratio=ratio)
    checkpoint = dataclasses.replace(Config().checkpoint, every_minutes=0.5)
    stage.run(tmp_path, total_frames=20_000, checkpoint=checkpoint)
    saves = [number for number, entry in enumerate(stage.diary) if entry == "save"]
    each = STEPS + ratio  # steps in a turn of both
    for number, place in enumerate(saves[:-1], start=1):
        before = stage.diary[:place]
        steps = STEPS * before.count("push") + before.count("learn")
        # Looked at after a turn of both, and counted from that look.
        assert steps == number * each * -(-3_000 // each)
        assert before[-1] == "report"
    assert len(saves) - 1 == (20_000 // STEPS * each) // (each * -(-3_000 // each))


def test_long_turn_of_the_learner_is_reported_while_it_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("driver.serial_run._REPORT_MINUTES", 0.0)
    stage = Stage(ratio=50)
    stage.run(tmp_path, total_frames=5)
    first, last = stage.diary.index("learn"), len(stage.diary) - stage.diary[::-1].index("learn")
    assert stage.diary[first:last].count("report") >= 49


def test_run_without_an_evaluator_evaluates_nothing(tmp_path: Path) -> None:
    stage = Stage()
    evaluator = dataclasses.replace(Config().evaluator, enabled=False, every_minutes=1e-9)
    stage.run(tmp_path, total_frames=20, evaluator=evaluator)
    assert "evaluate" not in stage.diary


# --- what ends it ---------------------------------------------------------------------------------


def test_frames_end_it_as_soon_as_they_are_in(tmp_path: Path) -> None:
    stage = Stage()
    assert stage.run(tmp_path, total_frames=23) == "done"
    assert stage.accepted == 25  # whole pushes


def test_frames_are_agent_steps_times_the_repeat_less_those_before(tmp_path: Path) -> None:
    stage = Stage()
    stage.before = NOTHING_BEFORE._replace(agent_steps=5)
    assert stage.run(tmp_path, SPEC._replace(action_repeat_frames=4), total_frames=80) == "done"
    assert stage.accepted == 80 // 4 - 5


def test_episodes_end_it_less_those_before(tmp_path: Path) -> None:
    stage = Stage()
    stage.before = NOTHING_BEFORE._replace(episodes=4)
    assert stage.run(tmp_path, total_episodes=7) == "done"
    assert stage.ended_episodes == 3


def test_goal_of_the_training_games_ends_it_and_is_said(tmp_path: Path) -> None:
    stage = Stage()
    reason = stage.run(tmp_path, stop_at_return=60.0, stop_at_return_of="train")
    # Returns are 1, 2, 3, ...: of the games up to n the last hundred average n - 49.5.
    assert reason == "train return 60.5 >= 60 (mean of 100 games)"
    assert stage.notes == [reason]
    assert stage.ended_episodes == 110


def test_goal_of_an_evaluation_ends_it(tmp_path: Path) -> None:
    stage = Stage()
    stage.returns = [1.0, 2.0, 30.0, 4.0]
    evaluator = dataclasses.replace(Config().evaluator, every_minutes=1e-9)
    reason = stage.run(tmp_path, stop_at_return=10.0, evaluator=evaluator)
    assert reason == "eval return 30 >= 10 (mean of 1 games)"
    assert stage.pushes == 3
    assert [float(np.mean(one.returns)) for one in stage.evaluations] == [1.0, 2.0, 30.0, 4.0]


def test_interrupt_ends_it_in_the_middle_of_the_learners_turn_and_everything_is_saved(
    tmp_path: Path,
) -> None:
    stage = Stage(ratio=50)
    stage.interrupt_at_step = 7
    assert stage.run(tmp_path) == "interrupted"
    assert stage.moves == "p" + "l" * 7
    assert stage.diary[-5:] == ["flush", "save", "publish", "report", "evaluate"]
    assert stage.evaluations == []


def test_run_that_is_done_and_cannot_be_saved_has_failed(tmp_path: Path) -> None:
    stage = Stage()
    stage.trouble = "the checkpoint could not be written: disk full"
    with pytest.raises(RunEnded, match="^the checkpoint could not be written: disk full$"):
        stage.run(tmp_path, total_frames=20)
    assert stage.diary[-3:] == ["flush", "save", "report"]


def test_save_that_fails_on_the_way_or_at_an_interrupt_is_said_and_ends_nothing(
    tmp_path: Path,
) -> None:
    stage = Stage()
    stage.trouble = "disk full"
    stage.interrupt_at_step = 30
    checkpoint = dataclasses.replace(Config().checkpoint, every_minutes=1e-9)
    assert stage.run(tmp_path, checkpoint=checkpoint) == "interrupted"
    assert stage.diary.count("save") > 5
    assert stage.notes == ["disk full; training goes on"] * (stage.diary.count("save") - 1) + [
        "disk full"
    ]


def test_interrupt_before_the_start_plays_nothing(tmp_path: Path) -> None:
    stage = Stage()
    stage.interrupts.requested.set()
    assert stage.run(tmp_path) == "interrupted"
    assert stage.moves == ""
    assert "save" in stage.diary
