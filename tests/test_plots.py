"""plot_runs: PNGs from TensorBoard events."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common import plots
from common import tensorboard as tags
from common.plots import moving_average, plot_runs
from common.tensorboard import EventWriter

ALL = ["return", "evaluation", "loss", "epsilon", "throughput", "overview"]


def _make_run(
    folder: Path, *, game: str | None = "pong", values: int = 30, scale: float = 1.0
) -> Path:
    folder.mkdir(parents=True)
    if game is not None:
        (folder / "run.json").write_text(json.dumps({"game": game}))
    with EventWriter(folder=folder, flush_s=10.0, first_frames=0) as writer:
        for i in range(values):
            writer.scalars(
                {
                    tags.TRAIN_EPISODE_RETURN: -21 + scale * i,
                    tags.EVAL_EPISODE_RETURN: -20 + scale * i,
                    tags.LEARNER_TD_LOSS: math.inf if i == 3 else 0.01 + 0.001 * (i % 7),
                    tags.LEARNER_Q_MEAN: 0.1 * i,
                    tags.ACTORS_EPSILON: 0.057,
                    tags.ENV_FRAMES_PER_S: 1500 + i % 5,
                    tags.LEARNER_STEPS_PER_S: 24 + i % 3,
                    tags.REPLAY_SAMPLES_PER_INSERT: 8.0,
                    tags.ACTORS_POLICY_LAG_LEARNER_STEPS: 30 + i % 4,
                },
                10_000 * (i + 1),
            )
    return folder


def _pixels(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    return width, height


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Every figure by the name of its file, as it was when saved; nothing is rendered."""
    saved: dict[str, Figure] = {}

    def savefig(self: Figure, path: Path, **_: Any) -> None:
        saved[path.stem] = self

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def _heights(axes: Axes) -> list[np.ndarray]:
    """Return the y-values of each line."""
    return [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()]


def test_one_png_per_subject_and_an_overview_at_readme_size(tmp_path: Path) -> None:
    written = plot_runs([_make_run(tmp_path / "run")], tmp_path / "new" / "plots")
    assert written == [tmp_path / "new" / "plots" / f"{name}.png" for name in ALL]
    sizes = {path.stem: _pixels(path) for path in written}
    assert sizes["return"] == sizes["evaluation"] == sizes["loss"] == sizes["epsilon"] == (900, 500)
    assert sizes["throughput"] == (900, 600)
    assert sizes["overview"] == (900, 930)


def test_subject_nobody_has_values_of_is_left_out(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    run = tmp_path / "run"
    with EventWriter(folder=run, flush_s=10.0, first_frames=0) as writer:
        writer.scalar(tags.TRAIN_EPISODE_RETURN, -21.0, 0)
    assert [path.stem for path in plot_runs([run], tmp_path)] == ["return", "overview"]
    texts = [text.get_text() for ax in figures["overview"].axes for text in ax.texts]
    assert texts == ["no values yet"] * 5


def test_run_with_a_single_value_shows_a_point(tmp_path: Path, figures: dict[str, Figure]) -> None:
    plot_runs([_make_run(tmp_path / "run", values=1)], tmp_path)
    for name in ALL:
        for axes in figures[name].axes:
            assert axes.get_lines()[0].get_marker() != ""
            assert axes.get_lines()[-1].get_marker() != "" or name in ("evaluation", "overview")


def test_return_shows_each_game_and_the_mean_of_the_last_hundred(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    plot_runs([_make_run(tmp_path / "run", values=250, scale=0.1)], tmp_path)
    games, mean = _heights(figures["return"].axes[0])
    raw = -21 + 0.1 * np.arange(250)
    np.testing.assert_allclose(games, raw, atol=1e-5)
    assert mean[-1] == pytest.approx(raw[150:].mean(), abs=1e-5)
    assert mean[0] == pytest.approx(-21)
    assert "100 games" in figures["return"].axes[0].get_title(loc="left")


@pytest.mark.parametrize(("game", "lines"), [("pong", 2), ("CartPole-v1", 1), (None, 1)])
def test_evaluation_has_the_human_line_where_there_is_a_human_score(
    tmp_path: Path, figures: dict[str, Figure], game: str | None, lines: int
) -> None:
    plot_runs([_make_run(tmp_path / "run", game=game)], tmp_path)
    (axes,) = figures["evaluation"].axes
    assert len(axes.get_lines()) == lines
    assert [text.get_text() for text in axes.texts] == ["human 14.6"] * (lines - 1)
    if lines == 2:
        assert set(_heights(axes)[-1]) == {14.6}


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"game": 3}', '{"other": 1}', b"\xff"])
def test_unusable_run_json_only_costs_the_human_line(tmp_path: Path, content: str | bytes) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "run.json").write_bytes(raw)
    assert plots._human_score(tmp_path) is None


def test_infinite_values_are_left_out_and_spikes_do_not_flatten_the_rest(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    run = _make_run(tmp_path / "run", values=300)
    with EventWriter(folder=run, flush_s=10.0, first_frames=3_100_000) as writer:
        writer.scalar(tags.LEARNER_TD_LOSS, 1e6, 3_100_000)
    plot_runs([run], tmp_path)
    axes = figures["loss"].axes[0]
    raw, _ = _heights(axes)
    assert len(raw) == 300
    assert np.isfinite(raw).all()
    assert axes.get_ylim() == pytest.approx((0.0, 0.016), abs=0.002)


def test_several_runs_lie_over_each_other_with_a_legend_by_folder(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    runs = [_make_run(tmp_path / name) for name in ("apex", "nature")]
    plot_runs(runs, tmp_path)
    for name in ALL:
        (legend,) = figures[name].legends
        assert [text.get_text() for text in legend.get_texts()] == ["apex", "nature"]
    colours = [line.get_color() for line in figures["epsilon"].axes[0].get_lines()]
    assert len(set(colours)) == 2
    assert colours == [line.get_color() for line in figures["epsilon"].legends[0].get_lines()]
    assert len(figures["evaluation"].axes[0].texts) == 1, "one game, one human line"


def test_runs_of_the_same_name_are_told_apart_by_the_folder_above(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    runs = [_make_run(tmp_path / host / "run") for host in ("a", "b")]
    plot_runs(runs, tmp_path)
    texts = [text.get_text() for text in figures["return"].legends[0].get_texts()]
    assert texts == ["a/run", "b/run"]


def test_one_run_is_named_at_the_top(tmp_path: Path, figures: dict[str, Figure]) -> None:
    plot_runs([_make_run(tmp_path / "pong-apex-1")], tmp_path)
    assert figures["return"].get_suptitle() == "pong-apex-1"
    assert figures["return"].legends == []


def test_every_panel_of_a_figure_spans_the_same_frames(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    run = _make_run(tmp_path / "run")
    with EventWriter(folder=run, flush_s=10.0, first_frames=400_000) as writer:
        writer.scalar(tags.ENV_FRAMES_PER_S, 1.0, 1_000_000)
    plot_runs([run], tmp_path)
    limits = {axes.get_xlim() for name in ALL for axes in figures[name].axes}
    assert limits == {(0.0, 1_020_000.0)}


def test_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: is not a run folder: there is no such folder"):
        plot_runs([tmp_path / "nowhere"], tmp_path)


def test_folder_without_events_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    good = _make_run(tmp_path / "good")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="other: is not a run folder: there are no TensorBoard"):
        plot_runs([good, tmp_path / "other"], tmp_path / "plots")
    assert not (tmp_path / "plots").exists()


def test_run_without_values_is_named(tmp_path: Path) -> None:
    with EventWriter(folder=tmp_path / "run", flush_s=10.0, first_frames=0) as writer:
        writer.scalar(tags.LEARNER_TD_LOSS, math.inf, 1)
    with pytest.raises(ValueError, match="run: this run has no values to plot yet"):
        plot_runs([tmp_path / "run"], tmp_path)


def test_no_run_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expect at least one run folder, actually: none"):
        plot_runs([], tmp_path)


@pytest.mark.parametrize("window", [1, 3, 7, 50])
def test_moving_average_agrees_with_means_taken_one_by_one(window: int) -> None:
    values = np.random.default_rng(5).normal(size=20)
    expected = [values[max(0, end - window) : end].mean() for end in range(1, 21)]
    np.testing.assert_allclose(moving_average(values, window), expected, atol=1e-12)


def test_moving_average_over_no_values_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect `window` >= 1, actually: 0"):
        moving_average(np.zeros(3), 0)


def test_matplotlib_settings_of_the_process_stay_as_they_were(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    before = dict(mpl.rcParams)
    plot_runs([_make_run(tmp_path / "run", values=2)], tmp_path)
    assert dict(mpl.rcParams) == before
