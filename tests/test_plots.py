"""plot_runs: PNGs from the curves of runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from fakes import made
from launching import launch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.config import ActorConfig, Config
from common.config_file import save_file
from common.presets import PRESETS
from driver.command_line import PlotCommand
from driver.plot_command import draw as draw_command
from driver.view import plots, tags
from driver.view.curve_sources import load_curves
from driver.view.events import EventWriter
from driver.view.plots import XAxis, plot_runs
from driver.view.provenance import provenance
from driver.view.saved_curves import save_curves

ALL = [
    *("return", "evaluation", "loss", "epsilon", "throughput"),
    *("samples_per_insert", "policy_lag", "overview"),
]


# Saved before files spoke of games or averages; its run is gone.
OLDER = Path(__file__).parents[1] / "docs" / "experiments" / "curves" / "pong-fast-seed1.json"


def draw(sources: list[Path], out: Path, x: XAxis = "frames") -> list[Path]:
    return plot_runs(load_curves(sources), out, x)


def _make_run(
    folder: Path, *, game: str | None = "pong", values: int = 30, scale: float = 1.0
) -> Path:
    folder.mkdir(parents=True)
    if game is not None:
        (folder / "run.json").write_text(json.dumps({"game": game}))
    with EventWriter(folder=made(folder), flush_s=10.0, first_frames=0) as writer:
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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an older file looks like in a process that has set nothing, rendered once."""
    out = tmp_path_factory.mktemp("new") / "plots"
    written = draw([OLDER], out)
    assert written == [out / f"{name}.png" for name in ALL]
    return out


def expect_same_bytes(drawn: Path, plain: Path) -> None:
    files = sorted(plain.iterdir())
    assert [file.name for file in sorted(drawn.iterdir())] == [file.name for file in files]
    for file in files:
        assert file.read_bytes() == (drawn / file.name).read_bytes(), file.name


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """Every figure by the name of its file, as it was when saved; nothing is rendered."""
    saved: dict[str, Figure] = {}
    drawn: list[Figure] = []

    def savefig(self: Figure, *_: Any, **__: Any) -> None:
        drawn.append(self)

    def write_whole(path: Path, _: Any) -> None:
        saved[path.stem] = drawn[-1]

    monkeypatch.setattr(Figure, "savefig", savefig)
    monkeypatch.setattr(plots, "write_whole", write_whole)
    return saved


def _heights(axes: Axes) -> list[np.ndarray]:
    """Return the y-values of each line."""
    return [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.get_lines()]


def test_subject_nobody_has_values_of_is_left_out(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    run = tmp_path / "run"
    with EventWriter(folder=made(run), flush_s=10.0, first_frames=0) as writer:
        writer.scalars({tags.TRAIN_EPISODE_RETURN: -21.0}, 0)
    assert [path.stem for path in draw([run], tmp_path)] == ["return", "overview"]
    texts = [text.get_text() for ax in figures["overview"].axes for text in ax.texts]
    assert texts == ["no values yet"] * 7


def test_run_with_a_single_value_shows_a_point(tmp_path: Path, figures: dict[str, Figure]) -> None:
    draw([_make_run(tmp_path / "run", values=1)], tmp_path)
    for name in ALL:
        for axes in figures[name].axes:
            assert axes.get_lines()[0].get_marker() != ""
            assert axes.get_lines()[-1].get_marker() != "" or name in ("evaluation", "overview")


def test_return_shows_each_game_and_the_mean_of_the_last_hundred(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    draw([_make_run(tmp_path / "run", values=250, scale=0.1)], tmp_path)
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
    draw([_make_run(tmp_path / "run", game=game)], tmp_path)
    (axes,) = figures["evaluation"].axes
    assert len(axes.get_lines()) == lines
    assert [text.get_text() for text in axes.texts] == ["human 14.6"] * (lines - 1)
    if lines == 2:
        assert set(_heights(axes)[-1]) == {14.6}


@pytest.mark.parametrize(
    ("game", "scores", "said"),
    [
        ("seaquest", (80.0, 208.0), "human 42,054.7, far above"),
        ("boxing", (99.0, 100.0), "human 12.1, far below"),
    ],
)
def test_human_score_far_from_the_curve_is_told_and_does_not_flatten_it(
    tmp_path: Path, figures: dict[str, Figure], game: str, scores: tuple[float, ...], said: str
) -> None:
    run = tmp_path / "run"
    with EventWriter(folder=made(run), flush_s=10.0, first_frames=0) as writer:
        for step, score in enumerate(scores):
            writer.scalars({tags.EVAL_EPISODE_RETURN: score}, step)
    (run / "run.json").write_text(json.dumps({"game": game}))
    draw([run], tmp_path)
    (axes,) = figures["evaluation"].axes
    assert [text.get_text() for text in axes.texts] == [said]
    assert len(axes.get_lines()) == 1
    low, high = axes.get_ylim()
    assert high - low < 1.2 * (max(scores) - min(scores))


def test_infinite_values_are_left_out_and_spikes_do_not_flatten_the_rest(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    run = _make_run(tmp_path / "run", values=300)
    with EventWriter(folder=made(run), flush_s=10.0, first_frames=3_100_000) as writer:
        writer.scalars({tags.LEARNER_TD_LOSS: 1e6}, 3_100_000)
    draw([run], tmp_path)
    axes = figures["loss"].axes[0]
    raw, _ = _heights(axes)
    assert len(raw) == 300
    assert np.isfinite(raw).all()
    assert axes.get_ylim() == pytest.approx((0.0, 0.016), abs=0.002)


def test_several_runs_lie_over_each_other_with_a_legend_by_folder(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    runs = [_make_run(tmp_path / name) for name in ("apex", "nature")]
    draw(runs, tmp_path)
    for name in ALL:
        (legend,) = figures[name].legends
        assert [text.get_text() for text in legend.get_texts()] == ["apex", "nature"]
    colours = [line.get_color() for line in figures["epsilon"].axes[0].get_lines()]
    assert len(set(colours)) == 2
    assert colours == [line.get_color() for line in figures["epsilon"].legends[0].get_lines()]
    assert len(figures["evaluation"].axes[0].texts) == 1, "one game, one human line"
    draw(runs[:1], tmp_path)
    assert (figures["return"].get_suptitle(), figures["return"].legends) == ("apex", [])


def test_every_panel_of_a_figure_spans_the_same_frames(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    run = _make_run(tmp_path / "run")
    with EventWriter(folder=made(run), flush_s=10.0, first_frames=400_000) as writer:
        writer.scalars({tags.ENV_FRAMES_PER_S: 1.0}, 1_000_000)
    draw([run], tmp_path)
    limits = {axes.get_xlim() for name in ALL for axes in figures[name].axes}
    assert limits == {(0.0, 1_020_000.0)}


# --- epsilon -----------------------------------------------------------------------------------


def _with_config(run: Path, config: Config) -> Path:
    save_file(config, run / "config.yaml")
    return run


def test_ladder_is_drawn_by_its_rates_one_for_each_environment(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    actor = ActorConfig(count=3, envs=5, epsilon=0.4, epsilon_alpha=7.0)
    draw([_with_config(_make_run(tmp_path / "run"), Config(actor=actor))], tmp_path)
    (axes,) = figures["epsilon"].axes
    (rates,) = _heights(axes)
    np.testing.assert_allclose(rates, [0.4 ** (1 + 7 * i / 14) for i in range(15)])
    assert axes.get_yscale() == "log"
    assert axes.get_xlabel() == "environment, by rank (0 explores most)"
    titles = [axes.get_title(loc="left") for axes in figures["overview"].axes]
    assert "Epsilon of each environment" in titles


def test_schedule_is_drawn_over_frames(tmp_path: Path, figures: dict[str, Figure]) -> None:
    draw([_with_config(_make_run(tmp_path / "run"), PRESETS["nature"].config)], tmp_path)
    (axes,) = figures["epsilon"].axes
    assert axes.get_title(loc="left") == "Epsilon, mean of all environments"
    assert axes.get_xlabel() == "frames"
    assert axes.get_yscale() == "linear"


def test_ladder_and_schedule_beside_each_other_when_runs_differ(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    runs = [
        _with_config(_make_run(tmp_path / name), PRESETS[name].config)
        for name in ("apex", "nature")
    ]
    draw(runs, tmp_path)
    ladder, schedule = figures["epsilon"].axes
    assert len(ladder.get_lines()) == 1
    assert len(schedule.get_lines()) == 2
    assert ladder.get_lines()[0].get_color() == schedule.get_lines()[0].get_color()


def test_ladder_of_zeros_and_of_one_environment_can_be_drawn(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    for i, actor in enumerate((ActorConfig(epsilon=0.0), ActorConfig(count=1, envs=1))):
        run = _with_config(_make_run(tmp_path / f"run{i}", values=1), Config(actor=actor))
        draw([run], tmp_path)
        (axes,) = figures["epsilon"].axes
        assert axes.get_yscale() == ("linear" if actor.epsilon == 0 else "log")
        figures["epsilon"].canvas.draw()


# --- minutes -----------------------------------------------------------------------------------


def test_curves_can_be_drawn_by_the_minutes_the_run_had_run(
    tmp_path: Path, figures: dict[str, Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1_000.0]
    monkeypatch.setattr("driver.view.events.time.time", lambda: now_s[0])
    with EventWriter(folder=made(tmp_path / "run"), flush_s=10.0, first_frames=0) as writer:
        for minute in range(1, 4):
            now_s[0] += 60.0
            writer.scalars({tags.EVAL_EPISODE_RETURN: float(minute)}, 1_000 * minute)
    written = draw([tmp_path / "run"], tmp_path / "plots", "minutes")
    assert [path.name for path in written] == [
        "evaluation_by_minutes.png",
        "overview_by_minutes.png",
    ]
    (axes,) = figures["evaluation_by_minutes"].axes
    np.testing.assert_allclose(np.asarray(axes.get_lines()[0].get_xdata()), [1.0, 2.0, 3.0])
    assert axes.get_xlabel() == "minutes"
    assert axes.get_xlim() == pytest.approx((0.0, 3.06))


# --- training games, and their average ---------------------------------------------------------


def test_curves_can_be_drawn_by_the_training_games_that_had_ended(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    run = tmp_path / "run"
    with EventWriter(folder=made(run), flush_s=10.0, first_frames=0) as writer:
        for frames in (100, 110, 500, 900):
            writer.scalars({tags.TRAIN_EPISODE_RETURN: float(frames)}, frames)
        for frames in (50, 400, 900):
            writer.scalars({tags.EVAL_EPISODE_RETURN: float(frames)}, frames)
    save_curves(load_curves([run])[0], tmp_path / "run.json")
    for source in (run, tmp_path / "run.json"):
        assert [path.name for path in draw([source], tmp_path / "plots", "games")] == [
            *("return_by_games.png", "evaluation_by_games.png", "overview_by_games.png")
        ]
        for name, along in (("return", [1, 2, 3, 4]), ("evaluation", [0, 2, 4])):
            (axes,) = figures[f"{name}_by_games"].axes
            assert axes.get_lines()[0].get_xdata() == pytest.approx(along)
            assert axes.get_xlabel() == "games"
            assert axes.get_xlim() == pytest.approx((0.0, 4.08))


@pytest.mark.parametrize("x", ["frames", "minutes"])
def test_older_file_is_drawn_by_frames_and_minutes(
    tmp_path: Path, figures: dict[str, Figure], x: XAxis
) -> None:
    written: list[str] = []
    draw_command(PlotCommand((OLDER,), out=tmp_path / "plots", x=x), written.append)
    assert len(figures) == len(ALL)
    assert figures[Path(written[-1]).stem].get_suptitle() == "pong-fast, seed 1"


def test_older_file_is_refused_by_games_before_anything_is_drawn(tmp_path: Path) -> None:
    sources = (_with_config(_make_run(tmp_path / "run", values=3), Config()), OLDER)
    with pytest.raises(ValueError, match=r"pong-fast-seed1\.json: ") as raised:
        draw_command(PlotCommand(sources, out=tmp_path / "plots", x="games"), print)
    assert str(raised.value) == (
        f"{OLDER}: must be drawn by frames or minutes, since it does not say how many games had "
        "ended: an older version saved it"
    )
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("average", "line", "last"),
    [
        (20.0, "mean of 20 games", -21 + np.mean(range(30, 50))),
        (0.9, "smoothed by 0.9", -21 + sum(0.1 * 0.9 ** (49 - i) * i for i in range(50))),
    ],
)
def test_line_through_training_returns_is_the_average_asked_for(
    tmp_path: Path, figures: dict[str, Figure], average: float, line: str, last: float
) -> None:
    run = _with_config(_make_run(tmp_path / "run", values=50), Config())
    command = PlotCommand((run,), average=average, save_scalars=tmp_path / "run.json")
    for again in (command, PlotCommand((tmp_path / "run.json",), average=average)):
        draw_command(again, print)
        for axes in (figures["return"].axes[0], figures["overview"].axes[0]):
            assert axes.get_title(loc="left") == f"Training return (line: {line})"
            games, mean = _heights(axes)
            assert games.tolist() == list(range(-21, 29))
            assert mean[-1] == pytest.approx(last, rel=1e-5)
    assert json.loads((tmp_path / "run.json").read_text())["average"] == average


# --- where curves come from --------------------------------------------------------------------


ABOUT = {
    "game": "pong",
    "command": ["python", "launch.py", "--env", "pong", "--run-dir", "my runs/1"],
    "started": "2026-11-21T09:00:00+0000",
    "git_commit": "0123456789abcdef0123",
    "git_changed": True,
    "machine": {"cpu": "Xeon", "cores": 2, "gpus": []},
}


def test_one_run_says_below_where_its_curves_come_from(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    run = _make_run(tmp_path / "run")
    (run / "run.json").write_text(json.dumps(ABOUT))
    draw([run], tmp_path)
    assert figures["return"].get_supxlabel() == (
        "python launch.py --env pong --run-dir 'my runs/1'\n"
        "commit 0123456789ab with uncommitted changes, 2026-11-21, Xeon, 2 cores, no GPU"
    )


def test_several_runs_say_below_where_each_comes_from(
    tmp_path: Path, figures: dict[str, Figure]
) -> None:
    one, other, unknown = (_make_run(tmp_path / name) for name in ("one", "other", "unknown"))
    for run, commit in ((one, "abc"), (other, "def")):
        about = {"command": ["python", "launch.py", "--seed", commit], "git_commit": commit}
        (run / "run.json").write_text(json.dumps(about))
    (unknown / "run.json").unlink()
    draw([one, other, unknown], tmp_path)
    assert figures["return"].get_supxlabel().splitlines() == [
        "one: python launch.py --seed abc; commit abc",
        "other: python launch.py --seed def; commit def",
    ]


@pytest.mark.parametrize(
    ("about", "lines"),
    [
        ({}, []),
        ({"command": "text", "git_commit": None, "machine": None}, []),
        ({"git_commit": "abc", "git_changed": False}, ["commit abc"]),
        (
            {"machine": {"cpu": "EPYC", "cores": 16, "gpus": ["H200", "H200"]}},
            ["EPYC, 16 cores, H200, H200"],
        ),
        ({"git_commit": "abc", "resumed": [{"git_commit": "abc"}]}, ["commit abc, resumed once"]),
        (
            {
                "git_commit": "abc",
                "resumed": [
                    *({"git_commit": "abc"}, {"git_commit": "def", "git_changed": True}),
                    *({"git_commit": None}, *[{"git_commit": "0123456789abcdef"}] * 2),
                ],
            },
            [
                "commit abc, resumed 5 times (once at def with uncommitted changes, 2 times at "
                "0123456789ab)",
            ],
        ),
    ],
)
def test_what_run_json_does_not_say_is_left_out(
    tmp_path: Path, about: dict[str, Any], lines: list[str]
) -> None:
    run = _make_run(tmp_path / "run", values=1)
    (run / "run.json").write_text(json.dumps(about))
    (curves,) = load_curves([run])
    assert provenance(curves) == lines


# Settings of a user's, or of a stranger's in the working directory; the last line is no text.
SETTINGS = b"text.usetex: True\nfont.size: 40\nbackend: nonsense\nbogus: 3\nfont.family: \xff\xfe\n"


def test_nobodys_settings_of_matplotlib_change_a_plot(tmp_path: Path, plain: Path) -> None:
    """Whether they lie in the working directory or are named by a variable."""
    folder = tmp_path / "settings"
    folder.mkdir()
    (folder / "matplotlibrc").write_bytes(SETTINGS)
    done = launch(
        *("plot", str(OLDER), "--out", str(tmp_path / "drawn")),
        cwd=folder,
        environment={"MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(folder)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    expect_same_bytes(tmp_path / "drawn", plain)


def test_same_curves_make_the_same_bytes_whatever_this_process_has_set(
    tmp_path: Path, plain: Path
) -> None:
    with mpl.rc_context({"text.usetex": True, "font.size": 40, "figure.facecolor": "red"}):
        before = dict(mpl.rcParams)
        draw([OLDER], tmp_path / "drawn")
        assert dict(mpl.rcParams) == before
    expect_same_bytes(tmp_path / "drawn", plain)
