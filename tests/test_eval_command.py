"""`launch.py eval` and `launch.py plot`; what cannot be read is one clear line and exit 2."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import begin_run, made
from launching import launch

from actors.environments import resolve
from actors.policy import EpsilonGreedyPolicy
from common.config import AgentConfig, Config, EnvConfig, EvaluatorConfig
from common.networks import build_network, flatten_state
from common.types import Weights, WeightsVersion
from driver.run_folder import RunFolder
from driver.view import tags
from driver.view.events import EventWriter
from launch import main
from learner.checkpoint import CheckpointFolder, load, save
from learner.payload import weights_payload

SMALL = AgentConfig(network="mlp", hidden=(8,), dueling=False)
CARTPOLE = Config(env=EnvConfig(id="CartPole-v1"), agent=SMALL)


def make_run(path: Path, config: Config = CARTPOLE) -> Path:
    """Make the folder of a run that has nothing yet."""
    begin_run(RunFolder(path), config, resolve(config.env).name, ["python", "launch.py"])
    return path


def payload_of(config: Config, learner_step: int = 7) -> dict[str, Any]:
    spec = resolve(config.env)
    buffer = flatten_state(build_network(config.agent, spec))
    return weights_payload(config, spec, Weights(WeightsVersion(0, learner_step), buffer, 28), 1.0)


def save_last(run: Path, payload: dict[str, Any], learner_step: int = 7) -> Path:
    return CheckpointFolder(run / "checkpoints", 3).save(payload, learner_step)


# --- eval --------------------------------------------------------------------------------------


def test_last_best_and_a_path_name_the_weights_to_play(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    save_last(run, payload_of(CARTPOLE, 7), 7)
    save_last(run, payload_of(CARTPOLE, 30), 30)
    save(run / "checkpoints" / "best.pt", payload_of(CARTPOLE, 20))
    asked = {"last": 30, "best": 20, str(run / "checkpoints" / "checkpoint_0000000007.pt"): 7}
    for name, step in asked.items():
        assert main(["eval", str(run), "--episodes", "2", "--checkpoint", name]) == 0
        said = capsys.readouterr().out
        assert f"learner step {step};" in said
        assert "2 games, epsilon 0.001, seed 10000: mean " in said


@pytest.mark.parametrize(
    ("flags", "epsilon"), [((), "0.25"), (("--epsilon", "0"), "0"), (("--epsilon", "1"), "1")]
)
def test_games_are_played_with_the_runs_own_epsilon_unless_the_flag_says_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], epsilon: str
) -> None:
    # As its config.yaml has it: that of the checkpoint may be older, or another run's.
    config = dataclasses.replace(CARTPOLE, evaluator=EvaluatorConfig(epsilon=0.25))
    run = make_run(tmp_path / "run", config)
    save_last(run, payload_of(CARTPOLE))
    assert main(["eval", str(run), "--episodes", "2", *flags]) == 0
    assert f"2 games, epsilon {epsilon}, seed 10000: mean " in capsys.readouterr().out


def test_epsilon_of_the_run_is_the_one_that_plays_in_the_games_and_in_the_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[float] = []
    act = EpsilonGreedyPolicy.__init__

    def note(self: EpsilonGreedyPolicy, **parts: Any) -> None:
        played.extend(np.unique(parts["epsilons"]).tolist())
        act(self, **parts)

    monkeypatch.setattr(EpsilonGreedyPolicy, "__init__", note)
    run = make_run(
        tmp_path / "run", dataclasses.replace(CARTPOLE, evaluator=EvaluatorConfig(epsilon=0.75))
    )
    save_last(run, payload_of(CARTPOLE))
    assert main(["eval", str(run), "--episodes", "1", "--video"]) == 0
    assert played == [0.75, 0.75]


def test_epsilon_of_the_run_that_cannot_be_is_one_line(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    config = dataclasses.replace(CARTPOLE, evaluator=EvaluatorConfig(epsilon=1.5))
    run = make_run(tmp_path / "run", config)
    save_last(run, payload_of(CARTPOLE))
    said = refused("eval", run)
    assert "config.yaml: `evaluator.epsilon` is 1.5: must be from 0 to 1" in said


def test_video_of_a_whole_game_lies_in_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    save_last(run, payload_of(CARTPOLE))
    assert main(["eval", str(run), "--episodes", "1", "--video"]) == 0
    (video,) = (run / "videos").iterdir()
    assert video.suffix == ".mp4"
    assert video.stat().st_size > 1_000
    assert f"video: {video}" in capsys.readouterr().out


def test_video_that_cannot_be_written_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    save_last(run, payload_of(CARTPOLE))
    (run / "videos").rmdir()
    (run / "videos").write_text("not a folder")
    with pytest.raises(SystemExit) as end:
        main(["eval", str(run), "--episodes", "1", "--video"])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert "mean " in said.out, "the score is told all the same"
    assert said.err.count("\n") == 1
    assert "cartpole_v1_0000000007.mp4: cannot be written" in said.err


@pytest.mark.parametrize("seed", [-1, 2_000_000_001])
def test_seed_that_no_environment_takes_is_one_line(
    tmp_path: Path, refused: Callable[..., str], seed: int
) -> None:
    said = refused("eval", tmp_path, f"--seed={seed}")
    assert said == f"--seed {seed}: must be from 0 to 2,000,000,000"


def test_run_without_a_checkpoint_is_one_line(tmp_path: Path, refused: Callable[..., str]) -> None:
    run = make_run(tmp_path / "run")
    assert f"{run / 'checkpoints'}: has no checkpoint yet" in refused("eval", run)
    best = refused("eval", run, "--checkpoint", "best")
    assert "best.pt, actually: no such file" in best
    assert "nowhere.pt, actually: no such file" in refused(
        "eval", run, "--checkpoint", tmp_path / "nowhere.pt"
    )


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (Config(agent=SMALL), "game pong, not cartpole_v1; actions 6, not 2"),
        (
            Config(env=EnvConfig(id="CartPole-v1"), agent=AgentConfig(network="mlp", hidden=(9,))),
            "dueling True, not False; hidden layers [9], not [8]",
        ),
        (Config(env=EnvConfig(id="Acrobot-v1"), agent=SMALL), "observation float32[1, 6], not"),
    ],
)
def test_checkpoint_of_another_game_or_network_is_one_line(
    tmp_path: Path, refused: Callable[..., str], other: Config, said: str
) -> None:
    run = make_run(tmp_path / "run")
    path = tmp_path / "other.pt"
    save(path, payload_of(other))
    line = refused("eval", run, "--checkpoint", path)
    assert f"{path}: is of another game or network than {run}: " in line
    assert said in line


def test_weights_that_do_not_fit_their_own_network_are_one_line(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = make_run(tmp_path / "run")
    payload = payload_of(CARTPOLE)
    payload["weights"] = payload["weights"][:-4]
    save_last(run, payload)
    line = refused("eval", run)
    assert "checkpoint_0000000007.pt: holds no network that can be played: Expect `buffer`" in line


def test_truncated_checkpoint_is_one_line(tmp_path: Path, refused: Callable[..., str]) -> None:
    run = make_run(tmp_path / "run")
    path = save_last(run, payload_of(CARTPOLE))
    whole = path.read_bytes()
    for share in (0.0, 0.3, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        said = refused("eval", run)
        assert "truncated, or no checkpoint at all" in said
        assert said.count("Expect") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 99},
        {"config": "text"},
        {"config": {"agent": {"network": "transformer"}}},
        {"spec": {}},
        {"spec": None},
        {"weights": [1.0]},
        {"weights": torch.zeros(3)},
        {"counters": {}},
        {"config": {"agent": {"network": "mlp", "hidden": []}}},
        {"config": {"agent": {"network": "mlp", "hidden": [-4]}}},
    ],
)
def test_checkpoint_that_holds_something_else_is_one_line(
    tmp_path: Path, refused: Callable[..., str], changes: dict[str, Any]
) -> None:
    run = make_run(tmp_path / "run")
    path = save_last(run, payload_of(CARTPOLE) | changes)
    assert str(path) in refused("eval", run)


def test_bytes_that_rot_in_a_checkpoint_never_end_in_a_traceback(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = save_last(run, payload_of(CARTPOLE))
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        rotten = bytearray(whole)
        rotten[position] ^= 0x5A
        path.write_bytes(rotten)
        try:
            load(path)
        except ValueError as error:  # CheckpointError is one
            assert "\n" not in str(error)


def test_settings_of_the_run_that_were_spoilt_are_one_line(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = make_run(tmp_path / "run")
    save_last(run, payload_of(CARTPOLE))
    (run / "config.yaml").write_text("env: [")
    assert "config.yaml: cannot be read" in refused("eval", run)


def test_process_that_is_given_a_truncated_checkpoint_ends_with_2_and_no_traceback(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path / "run")
    path = save_last(run, payload_of(CARTPOLE))
    path.write_bytes(path.read_bytes()[:500])
    done = launch("eval", str(run))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("launch.py: ")
    assert done.stderr.count("\n") == 1


# --- plot --------------------------------------------------------------------------------------


def write_events(run: Path, values: int) -> Path:
    with EventWriter(folder=made(run), flush_s=10.0, first_frames=0) as writer:
        for i in range(values):
            writer.scalars({tags.TRAIN_EPISODE_RETURN: float(i)}, 100 * i)
    return run


def test_plot_of_a_run_with_no_data_yet_is_one_line(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = make_run(tmp_path / "run")
    assert f"{run}: has no values to plot: there are no" in refused("plot", run)
    write_events(run, 0)
    assert f"{run}: this run has no values to plot yet" in refused("plot", run)
    assert list((run / "plots").iterdir()) == []


def test_plot_of_a_file_that_is_no_saved_curves_is_one_line(
    tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = make_run(tmp_path / "run")
    assert "is no file of `plot --save-scalars`" in refused("plot", run / "run.json")
    assert "is not a run folder" in refused("plot", tmp_path / "nowhere.json")


def test_plot_that_cannot_write_is_one_line(tmp_path: Path, refused: Callable[..., str]) -> None:
    run = write_events(make_run(tmp_path / "run"), 3)
    (tmp_path / "taken").write_text("a file")
    said = refused("plot", run, "--out", tmp_path / "taken")
    assert "taken" in said


def test_curves_are_saved_and_drawn_again_from_the_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_events(make_run(tmp_path / "run"), 50)
    file = tmp_path / "docs" / "curves.json"
    assert main(["plot", str(run), "--save-scalars", str(file)]) == 0
    said = capsys.readouterr().out
    assert "run: python launch.py" in said
    assert f"{file}\n" in said
    assert json.loads(file.read_text())["about"]["game"] == "cartpole_v1"
    for path in (run / "plots").iterdir():
        path.unlink()
    assert main(["plot", str(file)]) == 0
    drawn = sorted((tmp_path / "docs" / "curves-plots").iterdir())
    assert [path.name for path in drawn] == ["epsilon.png", "overview.png", "return.png"]
    again = tmp_path / "again"
    assert main(["plot", str(file), "--out", str(again)]) == 0
    assert [p.read_bytes() for p in sorted(again.iterdir())] == [p.read_bytes() for p in drawn]


def test_plot_by_minutes_has_files_of_its_own(tmp_path: Path) -> None:
    run = write_events(make_run(tmp_path / "run"), 50)
    assert main(["plot", str(run), "--x", "minutes"]) == 0
    assert (run / "plots" / "return_by_minutes.png").exists()
    assert not (run / "plots" / "return.png").exists()


# --- environments that fail --------------------------------------------------------------------


def odd_run(path: Path, name: str) -> Path:
    """Make the folder of a run of one of `odd_environments`, with a checkpoint."""
    config = dataclasses.replace(CARTPOLE, env=EnvConfig(id=f"odd_environments:{name}-v0"))
    run = make_run(path, config)
    save_last(run, payload_of(config))
    return run


@pytest.mark.parametrize(
    ("name", "flags", "line", "score"),
    [
        ("RaisesInStep", (), "in step 5, raised RuntimeError: two words in two lines", False),
        ("NanReward", (), "in step 5, gave the reward nan: must be finite", False),
        ("Plain", ("--video",), "in make, raised TypeError: ", False),
        ("BlackScreen", ("--video",), "in render, raised RuntimeError: the lamp is broken", True),
        (
            "ListScreen",
            ("--video",),
            "in render, gave no picture: it must draw an rgb_array",
            False,
        ),
    ],
)
def test_environment_that_fails_is_one_line_and_its_traceback_is_in_the_log(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    flags: tuple[str, ...],
    line: str,
    score: bool,
) -> None:
    run = odd_run(tmp_path / "run", name)
    known = ("--env", f"odd_environments:{name}-v0")
    with pytest.raises(SystemExit) as end:
        main(["eval", str(run), "--episodes", "2", *known, *flags])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"launch.py: the environment odd_environments:{name}-v0, {line}")
    assert said.err.count("\n") == 1
    assert ("mean " in said.out) == score, "no game is played for a score without its video"
    assert list((run / "videos").iterdir()) == []
    if "raised" in line:
        assert "Traceback" in (run / "log.txt").read_text()
