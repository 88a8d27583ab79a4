"""JsonLines: what any reader of JSON finds in `scalars.jsonl` is what TensorBoard gets."""

from __future__ import annotations

import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from disks import SmallDisk, files_no_longer_than
from fakes import made
from reporting import Stage, evaluation, game, learner_report, phases, shard_report

from driver.view.events import read_scalars
from driver.view.json_lines import JsonLines
from driver.view.sinks import Sinks
from launch import main


def opened(folder: Path, first_frames: int = 0, flush_s: float = 10.0) -> JsonLines:
    return JsonLines(folder=folder, flush_s=flush_s, first_frames=first_frames)


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return every line, each parsed by itself, without the numbers that JSON does not have."""

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is no JSON")

    text = (folder / "scalars.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return what counts of a run that was resumed, as the documentation tells a reader to do."""
    found: list[dict[str, Any]] = []
    for line in lines(folder):
        if line.get("start"):
            found = [row for row in found if row["frames"] <= line["frames"]]
        else:
            found.append(line)
    return found


def by_tag(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Return (frames, value) of every tag."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows(folder):
        for tag in row.keys() - {"frames", "time_s"}:
            found.setdefault(tag, []).append((row["frames"], row[tag]))
    return found


def test_reader_of_json_finds_the_values_of_tensorboard(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    reporter = stage.start(beside=[opened(tmp_path)])
    for second in range(1, 12):
        stage.update(
            shard_report(
                inserts=100 * second,
                transitions=90 * second,
                policy_lag_learner_steps=second / 3,
                episodes=(game(-21.0 + second, position=0.3), game(1e7 / second)),
                actor_phases=phases(environment=1.0, wait=0.3),
            ),
            after_s=1.0,
            learner=learner_report(
                learner_step=second,
                metrics={"td_loss": 0.1 * second},
                phases=phases(step=float(second)),
            ),
        )
    reporter.evaluated(evaluation(3.0, 7.0, agent_steps=250))
    events = stage.scalars()  # which closes both
    found = by_tag(tmp_path)
    assert found.keys() == events.keys()
    assert len(events["train/episode_return"].values) == 22
    for tag, series in events.items():
        frames, values = zip(*found[tag], strict=True)
        assert series.frames.tolist() == list(frames), tag
        assert series.values.tolist() == pytest.approx(values, rel=1e-6), tag  # float32 there


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_run_with_the_flag_and_its_resumption_write_one_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    new = ("--preset", "cartpole", "--serial", "--seed", "7", "--evaluator.no-enabled")
    before_s = time.time()
    assert main([*new, "--total-frames", "1100", "--log.jsonl", "--run-dir", str(run)]) == 0
    frames = json.loads((run / "result.json").read_text())["frames"]
    assert main(["--resume", str(run), "--serial", "--total-frames", "2200"]) == 0
    starts = [line for line in lines(run) if line.get("start")]
    assert [line["frames"] for line in starts] == [0, frames]
    assert before_s - 1 <= starts[0]["time_s"] <= starts[1]["time_s"] <= time.time()
    found, events = by_tag(run), read_scalars(run)
    assert found.keys() == events.keys()
    for tag, series in events.items():
        assert series.values.tolist() == pytest.approx([v for _, v in found[tag]], rel=1e-6), tag


def test_nan_is_left_out_and_infinity_is_null(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        file.scalars({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1 / 3}, 7)
        file.scalars({"a": math.nan}, 8)
    (row,) = rows(tmp_path)
    del row["time_s"]
    assert row == {"frames": 7, "b": None, "c": None, "d": 1 / 3}


def test_line_is_in_the_file_while_the_run_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path, flush_s=0.02) as file:
        assert [line["start"] for line in lines(tmp_path)] == [True]
        file.scalars({"a": 1.0}, 1)
        deadline_s = time.monotonic() + 10
        while not rows(tmp_path) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert rows(tmp_path)


def test_resumed_run_drops_what_the_crashed_one_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        for frames in range(10, 100, 10):
            file.scalars({"a": float(frames)}, frames)
    with opened(tmp_path, first_frames=50) as file:
        file.scalars({"a": -1.0}, 55)
    kept = [(frames, float(frames)) for frames in range(10, 60, 10)]
    assert by_tag(tmp_path) == {"a": [*kept, (55, -1.0)]}
    assert len(lines(tmp_path)) == 12, "nothing is gone for good"


@pytest.mark.parametrize("seed", range(4))
def test_half_line_that_a_killed_run_left_is_taken_back(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    with opened(tmp_path) as file:
        for frames in range(20):
            file.scalars({"a": float(frames), "b" * rng.randrange(1, 300): 1.0}, frames)
    whole = file.path.read_bytes()
    cut = rng.randrange(len(whole))
    os.truncate(file.path, cut)
    with opened(tmp_path, first_frames=100) as file:
        pass
    kept = whole[: whole[:cut].rfind(b"\n") + 1]
    assert file.path.read_bytes().startswith(kept)
    assert len(lines(tmp_path)) == kept.count(b"\n") + 1


def test_file_that_is_edited_while_it_is_written_keeps_what_it_has(tmp_path: Path) -> None:
    sink = opened(made(tmp_path))
    for frames in (4, 8):
        sink.scalars({"a": frames}, frames)
    sink.flush()
    text = sink.path.read_text()
    sink.path.unlink()  # as editors and `sed -i` do
    sink.path.write_text(text)
    sink.scalars({"a": 12}, 12)
    sink.close()
    assert by_tag(tmp_path) == {"a": [(4, 4), (8, 8), (12, 12)]}


def test_full_disk_delays_rows_and_is_said_once(small_disk: SmallDisk) -> None:
    folder = made(small_disk.path / "run")
    said: list[str] = []
    file = opened(folder)
    sinks = Sinks([file], said.append)
    small_disk.fill()
    for frames in range(1_000):
        sinks.scalars({"a": float(frames)}, frames)
        if frames % 100 == 0:
            sinks.flush()
            sinks.complain()
    assert said == [
        f"scalars could not be written: {file.path}: cannot be written: No space left on device; "
        "training goes on, they are kept in memory until the disk takes them"
    ]
    assert len(rows(folder)) < 1_000  # and whole lines alone
    small_disk.free()
    sinks.close()
    assert by_tag(folder) == {"a": [(frames, float(frames)) for frames in range(1_000)]}
    assert (len(said), file.trouble, file.lost_records) == (1, "", 0)


def test_rows_lost_to_a_disk_that_stays_full_are_said_once_for_each_file(tmp_path: Path) -> None:
    said: list[str] = []
    files = [opened(made(tmp_path / name)) for name in "ab"]
    sinks = Sinks(files, said.append)
    with files_no_longer_than(files[0].path.stat().st_size):
        sinks.scalars({"a": 1.0}, 5)
        sinks.close()
    sinks.close()
    assert [file.lost_records for file in files] == [1, 1]
    assert sum("are kept in memory" in text for text in said) == 2
    assert sum("scalars are lost" in text for text in said) == 2


def test_resumption_on_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    with opened(tmp_path) as file:
        file.scalars({"a": 1.0}, 5)
    whole = file.path.read_bytes()
    with files_no_longer_than(len(whole) + 10), pytest.raises(OSError, match="File too large"):
        opened(tmp_path, first_frames=5)
    assert file.path.read_bytes() == whole


@pytest.mark.parametrize("kind", ["symbolic", "hard", "FIFO", "folder"])
def test_what_is_no_file_of_the_run_is_neither_followed_nor_waited_for(
    tmp_path: Path, kind: str
) -> None:
    folder, target = made(tmp_path / "run"), tmp_path / "target"
    target.write_text("precious\n")

    def put(place: Path) -> None:
        match kind:
            case "symbolic":
                place.symlink_to(target)
            case "hard":
                place.hardlink_to(target)
            case "FIFO":
                os.mkfifo(place)
            case _:
                place.mkdir()

    file = opened(folder)
    file.path.unlink()  # under the run
    put(file.path)
    file.scalars({"a": 1.0}, 1)
    file.flush()
    assert file.trouble.startswith(f"{folder / 'scalars.jsonl'}: cannot be written: ")
    file.close()
    assert file.lost_records == 1
    with pytest.raises(OSError):
        opened(folder)
    assert target.read_text() == "precious\n"


def test_folder_that_moves_is_followed_and_one_that_is_removed_is_not_made_again(
    tmp_path: Path,
) -> None:
    folder = made(tmp_path / "run")

    class Moving(os.PathLike[str]):
        path = folder

        def __fspath__(self) -> str:
            return str(self.path)

    place = Moving()
    with JsonLines(folder=place, flush_s=10.0, first_frames=0) as file:
        place.path = folder.rename(tmp_path / "moved")
        file.scalars({"a": 1.0}, 1)
        file.flush()
        assert (file.trouble, by_tag(place.path)) == ("", {"a": [(1, 1.0)]})
        file.path.unlink()
        place.path.rmdir()
        file.flush()
        assert file.trouble.endswith("No such file or directory")
    assert list(tmp_path.iterdir()) == []
