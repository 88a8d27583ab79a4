"""The command on disks that are full, read-only, damaged, or in use: one line, and no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import SmallDisk

from driver.run_folder import RunFolder
from driver.serial_run import SerialRun
from driver.view.events import event_files, read_events, read_scalars
from launch import main
from learner.checkpoint import CheckpointFolder, load

NEW = ("--preset", "cartpole", "--serial", "--evaluator.no-enabled", "--seed", "7")

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A short run that ended well."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_disk_that_fills_up_changes_neither_result_nor_exit_code(
    small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_at_the_end(*_: object) -> str:
        small_disk.fill()
        return "done"

    monkeypatch.setattr(SerialRun, "run", full_at_the_end)
    path = small_disk.path / "run"
    assert main([*NEW, "--run-dir", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.count("result.json cannot be written: No space left on device") == 1
    assert "done: {'frames': 0," in said
    assert json.loads((path / "result.json").read_text())["end_reason"] == "running"


def test_resume_goes_back_to_the_newest_whole_checkpoint_and_its_curves_go_on(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = run / "checkpoints"
    newest = CheckpointFolder(checkpoints, 1).newest()
    assert newest is not None
    damaged = checkpoints / "checkpoint_9999999999.pt"
    damaged.write_bytes(newest.read_bytes()[:-100])
    (checkpoints / "best.pt").write_bytes(b"also damaged")
    before = read_scalars(run)
    end = load(newest)["counters"]["agent_steps"]
    assert before["replay/transitions"].frames[-1] == end

    capsys.readouterr()
    assert main(["--resume", str(run), "--serial", "--total-frames", "2200"]) == 0
    said = capsys.readouterr().out
    assert f"skipped a checkpoint: Expect a checkpoint at {damaged}, actually" in said
    assert f"resuming from {newest}" in said
    assert json.loads((run / "result.json").read_text())["frames"] >= 2_200
    for tag, series in read_scalars(run).items():
        frames = series.frames.tolist()
        assert frames == sorted(set(frames))
        old = [at for at in before[tag].frames.tolist() if at <= end] if tag in before else []
        assert frames[: len(old)] == old, tag
    RunFolder(run).expect_unused()  # the command let go of it


def test_time_of_a_start_that_left_no_result_counts(run: Path) -> None:
    (run / "result.json").unlink()  # as if it had been killed
    assert main(["--resume", str(run), "--serial", "--total-frames", "2200"]) == 0
    first_s, second_s = (end_s - start_s for start_s, end_s in read_events(run).sessions)
    assert min(first_s, second_s) > 0.0
    # The second is measured from a little later to a little earlier.
    assert json.loads((run / "result.json").read_text())["seconds"] >= first_s + second_s / 2


def test_time_of_a_start_whose_events_are_lost_counts(run: Path) -> None:
    for path in event_files(run):
        path.unlink()
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"seconds": 1_000.0}))
    assert main(["--resume", str(run), "--serial", "--total-frames", "2200"]) == 0
    assert json.loads((run / "result.json").read_text())["seconds"] > 1_000.0


def test_settings_that_cannot_be_read_are_told_once(run: Path, refused: Callable[..., str]) -> None:
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(settings + "sed: 3\n")
    assert "unknown key `sed`" in refused("--resume", run, "--total-frames", "2200")


def test_run_too_short_to_learn_says_so(
    capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path
) -> None:
    assert "nothing will be learned" not in (run / "log.txt").read_text()
    short = ("--total-frames", "900", "--replay.min-size", "1000")
    assert main([*NEW, *short, "--run-dir", str(tmp_path / "short")]) == 0
    assert "ends before replay holds 1,000 transitions" in capsys.readouterr().out
    more = ("--total-frames", "1500")  # replay is there already
    assert main(["--resume", str(run), "--serial", *more]) == 0
    assert "nothing will be learned" not in capsys.readouterr().out


def test_run_in_use_is_not_resumed(run: Path, refused: Callable[..., str]) -> None:
    driving = RunFolder(run)
    driving.lock()
    shutil.rmtree(run / "checkpoints")  # it may not have got so far: in use comes first
    assert refused("--resume", run, "--total-frames", "2200").startswith(
        f"{run}: is in use by process "
    )


def test_resume_without_checkpoints_is_one_line(run: Path, refused: Callable[..., str]) -> None:
    shutil.rmtree(run / "checkpoints")
    said = refused("--resume", run, "--total-frames", "2200")
    assert said == f"{run}: has no checkpoint to resume from"


def test_resume_from_nothing_but_damage_is_one_line(run: Path, refused: Callable[..., str]) -> None:
    for path in (run / "checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:1_000])
    said = refused("--resume", run, "--total-frames", "2200")
    assert "truncated, or no checkpoint at all" in said


def test_run_on_a_read_only_disk_is_not_resumed(
    small_disk: SmallDisk, run: Path, refused: Callable[..., str]
) -> None:
    path = small_disk.path / "run"
    shutil.copytree(run, path, ignore=shutil.ignore_patterns("*.pt", "events.*"))
    small_disk.set_read_only(read_only=True)
    said = refused("--resume", path, "--total-frames", "2200")
    assert said == f"{path}: cannot be written: Read-only file system"


@pytest.mark.parametrize("room", [0, 2])
def test_start_on_a_full_disk_is_one_line(
    small_disk: SmallDisk, refused: Callable[..., str], room: int
) -> None:
    page = 4096
    path = small_disk.path / "run"
    (small_disk.path / "room").write_bytes(b"x" * room * page)
    small_disk.fill()
    (small_disk.path / "room").unlink()  # for `.lock` and more, but not for all a run begins with
    said = refused(*NEW, "--run-dir", path)
    assert said == f"{path}: cannot be written: No space left on device"


def test_start_where_no_folder_can_be_made_is_one_line(refused: Callable[..., str]) -> None:
    said = refused(*NEW, "--run-dir", "/proc/troop")  # which even root may not make
    assert said.startswith("/proc/troop: cannot be written: ") or "--run-dir /proc/troop" in said
