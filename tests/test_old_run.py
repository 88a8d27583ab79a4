"""A run folder of an older version: it is scored, drawn and gone on with as it was then.

tests/old_run.tar.gz was made at commit 3d950de, before driver and view had rooms of their own, by
`python launch.py --preset cartpole --serial --total-frames 400 --agent.hidden 8 --replay.min-size
100 --replay.capacity 200 --learner.batch-size 8 --replay.samples-per-insert 1 --evaluator.episodes
2 --checkpoint.keep 1 --env.max-game-frames 200 --seed 5 --run-dir old_run`. The figures below are
what that version made of a copy. Once a format changes on purpose, the new one gets a run of its
own beside this one.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from launching import ROOT, result_of

from driver.view.events import read_scalars
from launch import main

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with tarfile.open(ROOT / "tests" / "old_run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old_run"


def test_old_run_is_scored_as_it_was(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint in ("best", "last"):
        assert main(["eval", str(run), "--episodes", "5", "--checkpoint", checkpoint]) == 0
        said = capsys.readouterr().out
        assert "learner step 75; CartPole-v1 is gymnasium's" in said
        assert "Observations are read as they are; rewards are learned as they are" in said
        assert "mean 14.60, standard deviation 1.36, min 12, max 16" in said


def test_old_run_is_drawn_with_its_curves(run: Path, tmp_path: Path) -> None:
    assert main(["plot", str(run), "--save-scalars", str(tmp_path / "saved.json")]) == 0
    saved = json.loads((tmp_path / "saved.json").read_text())
    returns = saved["scalars"]["train/episode_return"]
    assert returns["frames"][:3] + returns["frames"][-1:] == [17, 34, 51, 400]
    assert returns["values"][:8] == [12.0, 13.0, 15.0, 16.0, 13.0, 16.0, 17.0, 18.0]
    assert len(returns["games"]) == returns["games"][-1] == 26
    assert saved["scalars"]["eval/episode_return"]["values"] == [15.0]
    assert saved["about"]["command"][-1] == "old_run"
    assert (run / "plots" / "overview.png").exists()


def test_old_run_goes_on_with_its_weights_counters_curves_and_replay(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--resume", str(run), "--serial", "--total-frames", "600"]) == 0
    said = capsys.readouterr().out
    assert f"resuming from {run}/checkpoints/checkpoint_0000000075.pt" in said
    assert "replay 0: goes on with the 200 transitions of its snapshot" in said
    result = result_of(run)
    assert (result["frames"], result["episodes"], result["learner_steps"]) == (600, 38, 136)
    assert result["last_train_return"] == pytest.approx(15.2105, abs=1e-4)
    assert result["seconds"] > 11.8  # of both
    frames, values, _ = read_scalars(run)["train/episode_return"]
    assert (len(values), frames[25], frames[-1]) == (38, 400, 600)
