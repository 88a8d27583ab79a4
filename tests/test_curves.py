"""Curves of runs: from their folders, into a small JSON that documents keep, and back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import made

from common.config import ActorConfig, Config
from common.config_file import save_file
from common.presets import PRESETS
from common.schedules import epsilon_ladder
from driver.view import tags
from driver.view.averages import average_returns, moving_average
from driver.view.curve_sources import load_curves
from driver.view.curves import KINDS, Ladder
from driver.view.events import EventWriter
from driver.view.saved_curves import SAVED_VALUES, save_curves

ABOUT = {
    "game": "pong",
    "command": ["python", "launch.py"],
    "git_commit": "abc",
    "machine": {"cpu": "Xeon", "cores": 2, "gpus": []},
}

# Saved before files spoke of games or averages; its run is gone.
OLDER = Path(__file__).parents[1] / "docs" / "experiments" / "curves" / "pong-fast-seed1.json"


def make_run(folder: Path, *, values: int = 30, config: Config | None = None) -> Path:
    """Write a run of every kind of curve, a value each second and 100 frames."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(ABOUT | {"python": "3.11"}))
    if config is not None:
        save_file(config, folder / "config.yaml")
    rng = np.random.default_rng(3)
    with EventWriter(folder=made(folder), flush_s=10.0, first_frames=0) as writer:
        for i in range(values):
            writer.scalars({tag: float(rng.normal()) for tag in KINDS}, 100 * (i + 1))
            writer.scalars({"replay/bytes": 1.0}, 100 * (i + 1))
    return folder


# --- folders -----------------------------------------------------------------------------------


def test_curve_holds_frames_seconds_values_and_their_moving_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [500.0]
    monkeypatch.setattr("driver.view.events.time.time", lambda: now_s[0])
    with EventWriter(folder=made(tmp_path / "run"), flush_s=10.0, first_frames=0) as writer:
        for i in range(250):
            now_s[0] += 2.0
            writer.scalars({tags.TRAIN_EPISODE_RETURN: float(i)}, 10 * i)
    (run,) = load_curves([tmp_path / "run"])
    curve = run.curves[tags.TRAIN_EPISODE_RETURN]
    assert curve.frames.tolist() == [10 * i for i in range(250)]
    assert curve.seconds.tolist() == [2.0 * (i + 1) for i in range(250)]
    assert curve.values.tolist() == list(range(250))
    assert curve.smooth[-1] == np.mean(range(150, 250))
    assert curve.smooth[0] == 0.0


def test_curves_know_how_many_training_games_had_ended(tmp_path: Path) -> None:
    with EventWriter(folder=tmp_path, flush_s=10.0, first_frames=0) as writer:
        for frames, value in ((10, 1.0), (20, math.inf), (30, 3.0), (40, 4.0)):
            writer.scalars({tags.TRAIN_EPISODE_RETURN: value}, frames)
        for frames in (9, 10, 29, 30, 500):
            writer.scalars({tags.LEARNER_TD_LOSS: 1.0}, frames)
    (run,) = load_curves([tmp_path])
    games = {tag: curve.games for tag, curve in run.curves.items()}
    assert run.has_games
    np.testing.assert_equal(
        games,
        {
            tags.TRAIN_EPISODE_RETURN: np.array([1.0, 3.0, 4.0]),  # the second game counts too
            tags.LEARNER_TD_LOSS: np.array([0.0, 1.0, 2.0, 3.0, 4.0]),
        },
    )


def test_run_without_training_games_has_had_none(tmp_path: Path) -> None:
    with EventWriter(folder=tmp_path, flush_s=10.0, first_frames=0) as writer:
        writer.scalars({tags.EVAL_EPISODE_RETURN: 1.0}, 100)
    (run,) = load_curves([tmp_path])
    np.testing.assert_equal(run.curves[tags.EVAL_EPISODE_RETURN].games, np.zeros(1))


def test_infinite_values_are_left_out(tmp_path: Path) -> None:
    with EventWriter(folder=tmp_path, flush_s=10.0, first_frames=0) as writer:
        for frames, value in enumerate((1.0, math.inf, 3.0)):
            writer.scalars({tags.LEARNER_TD_LOSS: value}, frames)
    (run,) = load_curves([tmp_path])
    assert run.curves[tags.LEARNER_TD_LOSS].frames.tolist() == [0, 2]


def test_run_knows_its_ladder_and_its_human_score(tmp_path: Path) -> None:
    actor = ActorConfig(count=4, envs=2, epsilon=0.3, epsilon_alpha=5.0)
    (run,) = load_curves([make_run(tmp_path / "run", config=Config(actor=actor))])
    assert run.ladder == Ladder(8, 0.3, 5.0)
    by_actor = [epsilon_ladder(4, 2, actor, 0.3, 5.0) for actor in range(4)]
    expected = sorted(np.concatenate(by_actor), reverse=True)
    np.testing.assert_allclose(run.ladder.rates, expected)
    assert run.human_score == 14.6


def test_run_with_a_schedule_or_without_settings_has_no_ladder(tmp_path: Path) -> None:
    scheduled = make_run(tmp_path / "scheduled", config=PRESETS["nature"].config)
    bare = make_run(tmp_path / "bare")
    spoilt = make_run(tmp_path / "spoilt")
    (spoilt / "config.yaml").write_text("actor: {count: -3}")
    assert [run.ladder for run in load_curves([scheduled, bare, spoilt])] == [None] * 3


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"game": 3}', '{"other": 1}', b"\xff"])
def test_unusable_run_json_only_costs_what_it_would_have_said(
    tmp_path: Path, content: str | bytes
) -> None:
    run_dir = make_run(tmp_path / "run")
    raw = content if isinstance(content, bytes) else content.encode()
    (run_dir / "run.json").write_bytes(raw)
    (run,) = load_curves([run_dir])
    assert run.human_score is None


def test_runs_of_the_same_name_are_told_apart_by_the_folder_above(tmp_path: Path) -> None:
    runs = load_curves([make_run(tmp_path / host / "run") for host in ("a", "b")])
    assert [run.label for run in runs] == ["a/run", "b/run"]


def test_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: is not a run folder: there is no such folder"):
        load_curves([tmp_path / "nowhere"])


def test_folder_without_events_is_named(tmp_path: Path) -> None:
    good = make_run(tmp_path / "good")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="other: has no values to plot: there are no TensorBoard"):
        load_curves([good, tmp_path / "other"])


def test_run_without_values_is_named(tmp_path: Path) -> None:
    with EventWriter(folder=made(tmp_path / "run"), flush_s=10.0, first_frames=0) as writer:
        writer.scalars({tags.LEARNER_TD_LOSS: math.inf}, 1)
    with pytest.raises(ValueError, match="run: this run has no values to plot yet"):
        load_curves([tmp_path / "run"])


@pytest.mark.parametrize("window", [1, 3, 7, 50])
def test_moving_average_agrees_with_means_taken_one_by_one(window: int) -> None:
    values = np.random.default_rng(5).normal(size=20)
    expected = [values[max(0, end - window) : end].mean() for end in range(1, 21)]
    np.testing.assert_allclose(moving_average(values, window), expected, atol=1e-12)


def test_moving_average_over_no_values_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect `window` >= 1, actually: 0"):
        moving_average(np.zeros(3), 0)


@pytest.mark.parametrize("average", [1, 20.0, 1e300])
def test_average_from_1_on_is_a_mean_of_so_many_games(average: float) -> None:
    values = np.random.default_rng(5).normal(size=50)
    expected = [values[max(0, end - int(average)) : end].mean() for end in range(1, 51)]
    np.testing.assert_allclose(average_returns(values, average), expected, atol=1e-12)


@pytest.mark.parametrize("average", [0.1, 0.9, 0.999])
def test_average_below_1_is_exponential_smoothing(average: float) -> None:
    values = np.random.default_rng(5).normal(size=50)
    expected = [values[0]]
    for value in values[1:]:
        expected.append(average * expected[-1] + (1 - average) * value)
    np.testing.assert_allclose(average_returns(values, average), expected, rtol=1e-12)
    assert len(average_returns(values[:0], average)) == 0


@pytest.mark.parametrize("average", [0.0, -3.0, 1.5, math.nan, math.inf])
def test_average_that_is_none_is_refused(average: float) -> None:
    with pytest.raises(ValueError, match=f"Expect `average` whole .*, actually: {average}"):
        average_returns(np.zeros(3), average)


def test_average_is_of_the_training_returns_alone(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", values=200)
    (usual,), (other,) = load_curves([run_dir]), load_curves([run_dir], 20)
    assert (usual.average, other.average) == (100, 20)
    for tag, curve in other.curves.items():
        same = bool(np.array_equal(curve.smooth, usual.curves[tag].smooth))
        assert same == (tag != tags.TRAIN_EPISODE_RETURN), tag
    returns = other.curves[tags.TRAIN_EPISODE_RETURN]
    assert returns.smooth[-1] == pytest.approx(returns.values[-20:].mean(), abs=1e-12)


# --- saved curves ------------------------------------------------------------------------------


def test_saved_curves_come_back_as_they_were(tmp_path: Path) -> None:
    (run,) = load_curves([make_run(tmp_path / "run", config=Config())])
    file = tmp_path / "docs" / "run.json"
    save_curves(run, file)
    (back,) = load_curves([file])
    assert (back.label, back.about, back.ladder) == (run.label, ABOUT, run.ladder)
    assert set(back.curves) == set(KINDS) == set(run.curves)
    for tag, curve in run.curves.items():
        assert back.curves[tag].frames.tolist() == curve.frames.tolist()
        np.testing.assert_equal(back.curves[tag].games, np.arange(1.0, 31.0))
        np.testing.assert_allclose(back.curves[tag].seconds, curve.seconds, atol=0.051)
        np.testing.assert_allclose(back.curves[tag].values, curve.values, rtol=1e-5)
        np.testing.assert_allclose(back.curves[tag].smooth, curve.smooth, rtol=1e-5)


def test_long_curves_are_thinned_but_keep_ends_and_true_moving_averages(tmp_path: Path) -> None:
    (run,) = load_curves([make_run(tmp_path / "run", values=2_000)])
    save_curves(run, tmp_path / "run.json")
    (back,) = load_curves([tmp_path / "run.json"])
    for tag, whole in run.curves.items():
        thin = back.curves[tag]
        assert len(thin.frames) == SAVED_VALUES
        assert (thin.frames[0], thin.frames[-1]) == (whole.frames[0], whole.frames[-1])
        steps = np.diff(thin.frames)
        assert steps.max() - steps.min() <= 100, "evenly spread"
        at = np.searchsorted(whole.frames, thin.frames)
        np.testing.assert_equal(thin.games, thin.frames / 100)  # a game every 100 frames
        np.testing.assert_allclose(thin.smooth, whole.smooth[at], rtol=1e-5)
        np.testing.assert_allclose(thin.values, whole.values[at], rtol=1e-5)
    assert (tmp_path / "run.json").stat().st_size < 200_000


def test_saving_is_deterministic_and_saving_again_changes_nothing(tmp_path: Path) -> None:
    (run,) = load_curves([make_run(tmp_path / "run", values=700)])
    first, second, third = (tmp_path / f"{i}.json" for i in range(3))
    save_curves(run, first)
    save_curves(run, second)
    (back,) = load_curves([first])
    save_curves(back, third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()


@pytest.mark.parametrize("average", [20, 0.9])
def test_file_says_which_average_it_holds(tmp_path: Path, average: float) -> None:
    (run,) = load_curves([make_run(tmp_path / "run", values=700)], average)
    file = tmp_path / "run.json"
    save_curves(run, file)
    assert f'"average": {average},' in file.read_text()
    (back,) = load_curves([file], average)
    assert back.average == average
    whole, thin = (curves.curves[tags.TRAIN_EPISODE_RETURN] for curves in (run, back))
    at = np.searchsorted(whole.frames, thin.frames)
    np.testing.assert_allclose(thin.smooth, whole.smooth[at], rtol=1e-5)
    with pytest.raises(ValueError, match=r"run\.json: ") as raised:
        load_curves([file])
    assert str(raised.value) == (
        f"{file}: its average must stay `--average {average}`, since the file does not hold every "
        "game of the run"
    )


def test_file_of_every_game_is_averaged_anew(tmp_path: Path) -> None:
    run_dir, file = make_run(tmp_path / "run", values=SAVED_VALUES), tmp_path / "run.json"
    save_curves(load_curves([run_dir])[0], file)
    for average in (20, 0.9):
        (run,), (back,) = load_curves([run_dir], average), load_curves([file], average)
        assert back.average == average
        for tag, curve in run.curves.items():
            np.testing.assert_allclose(back.curves[tag].smooth, curve.smooth, atol=1e-5)


def test_file_that_lacks_a_game_is_not_averaged_anew(tmp_path: Path) -> None:
    with EventWriter(folder=made(tmp_path / "run"), flush_s=10.0, first_frames=0) as writer:
        for frames, value in ((10, 1.0), (20, math.inf), (30, 3.0)):
            writer.scalars({tags.TRAIN_EPISODE_RETURN: value}, frames)
    save_curves(load_curves([tmp_path / "run"])[0], tmp_path / "run.json")
    with pytest.raises(ValueError, match="the file does not hold every game of the run"):
        load_curves([tmp_path / "run.json"], 20)


def test_file_without_training_games_has_whatever_average(tmp_path: Path) -> None:
    (tmp_path / "sound.json").write_text(json.dumps(spoil()))
    (run,) = load_curves([tmp_path / "sound.json"], 0.9)
    assert run.average == 0.9


def test_older_file_is_read_without_games_as_the_mean_of_100(tmp_path: Path) -> None:
    (run,) = load_curves([OLDER])
    assert (run.average, run.has_games) == (100, False)
    assert {curve.games is None for curve in run.curves.values()} == {True}
    save_curves(run, tmp_path / "new.json")
    assert (
        json.loads((tmp_path / "new.json").read_text())["scalars"]
        == (json.loads(OLDER.read_text())["scalars"])
    )
    with pytest.raises(ValueError, match=r"pong-fast-seed1\.json: .* `--average 100`, since"):
        load_curves([OLDER], 20)


def test_folders_and_files_are_drawn_together(tmp_path: Path) -> None:
    (run,) = load_curves([make_run(tmp_path / "one")])
    save_curves(run._replace(label="saved"), tmp_path / "two.json")
    assert [r.label for r in load_curves([tmp_path / "one", tmp_path / "two.json"])] == [
        "one",
        "saved",
    ]


COLUMNS = {"frames": [1], "seconds": [1.0], "values": [2.0]}


def spoil(**changes: Any) -> dict[str, Any]:
    """Return what a file may wrongly hold."""
    sound = {
        "format": "troop-scalars-1",
        "label": "run",
        "about": {},
        "ladder": None,
        "scalars": {tags.LEARNER_TD_LOSS: COLUMNS},
    }
    return sound | changes


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "3",
        b"\xff\xfe",
        '{"rows": []}',
        spoil(format="troop-scalars-9"),
        spoil(about=3),
        spoil(ladder={"environments": 0, "epsilon": 0.4, "alpha": 7.0}),
        spoil(ladder={"steps": 3}),
        spoil(average=0),
        spoil(average="20"),
        spoil(scalars=[]),
        spoil(scalars={tags.LEARNER_TD_LOSS: {"frames": [1]}}),
        spoil(scalars={tags.LEARNER_TD_LOSS: {"frames": [1, 2], "seconds": [1], "values": [2]}}),
        spoil(scalars={tags.LEARNER_TD_LOSS: {"frames": [], "seconds": [], "values": []}}),
        spoil(scalars={tags.LEARNER_TD_LOSS: {"frames": "a", "seconds": [1], "values": [2]}}),
        spoil(scalars={tags.LEARNER_TD_LOSS: COLUMNS | {"games": [1, 2]}}),
    ],
)
def test_file_of_anything_else_is_one_clear_line(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.json"
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"other\.json: ") as raised:
        load_curves([path])
    assert "\n" not in str(raised.value)


def test_sound_file_of_the_test_above_is_read(tmp_path: Path) -> None:
    (tmp_path / "sound.json").write_text(json.dumps(spoil()))
    (run,) = load_curves([tmp_path / "sound.json"])
    assert run.curves[tags.LEARNER_TD_LOSS].values.tolist() == [2.0]


def test_file_without_values_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text(json.dumps(spoil(scalars={})))
    with pytest.raises(ValueError, match=r"empty\.json: has no values to plot"):
        load_curves([tmp_path / "empty.json"])
