"""EventWriter and read_scalars: what is written is what TensorBoard and the plots see."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fakes import made
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator,
)

from driver.view import events
from driver.view.events import (
    EventWriter,
    Series,
    Session,
    read_events,
    read_scalars,
    running_seconds,
)


def _write(folder: Path, rows: list[tuple[str, float, int]], *, first_frames: int = 0) -> Path:
    with EventWriter(folder=made(folder), flush_s=10.0, first_frames=first_frames) as writer:
        for tag, value, frames in rows:
            writer.scalars({tag: value}, frames)
    return writer.path


def _pairs(series: Series) -> list[tuple[float, float]]:
    return list(zip(series.frames.tolist(), series.values.tolist(), strict=True))


def test_values_come_back_by_tag_with_frames_and_wall_time(tmp_path: Path) -> None:
    before = time.time()
    _write(tmp_path, [("a/x", 1.5, 10), ("b/y", -2.0, 10), ("a/x", 2.5, 30)])
    read = read_scalars(tmp_path)
    assert _pairs(read["a/x"]) == [(10, 1.5), (30, 2.5)]
    assert _pairs(read["b/y"]) == [(10, -2.0)]
    assert all(column.dtype == np.float64 for column in read["a/x"])
    assert before <= read["a/x"].wall_s[0] <= read["a/x"].wall_s[1] <= time.time()


def test_nan_is_skipped_and_infinity_is_kept(tmp_path: Path) -> None:
    _write(tmp_path, [("loss", math.nan, 1), ("loss", math.inf, 2), ("empty", math.nan, 3)])
    read = read_scalars(tmp_path)
    assert _pairs(read["loss"]) == [(2, math.inf)]
    assert "empty" not in read


def test_values_at_one_frame_count_each_keep_a_frame_of_their_own(tmp_path: Path) -> None:
    _write(
        tmp_path,
        [("return", value, 100) for value in (1.0, 2.0, 3.0)]
        + [("return", 4.0, 101), ("return", 5.0, 200)],
    )
    assert _pairs(read_scalars(tmp_path)["return"]) == [
        (100, 1.0),
        (101, 2.0),
        (102, 3.0),
        (103, 4.0),
        (200, 5.0),
    ]


@pytest.mark.parametrize("flush_s", [0.0, -1.0, 10.5, math.nan])
def test_flush_time_outside_the_promise_is_refused(tmp_path: Path, flush_s: float) -> None:
    with pytest.raises(ValueError, match=r"Expect 0 < `flush_s` <= 10, actually"):
        EventWriter(folder=tmp_path, flush_s=flush_s, first_frames=0)


def test_negative_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expect `first_frames` >= 0, actually: -1"):
        EventWriter(folder=tmp_path, flush_s=1.0, first_frames=-1)


def test_resumed_run_replaces_what_the_crashed_one_wrote_after_its_checkpoint(
    tmp_path: Path,
) -> None:
    rows = [("fast", float(frames), frames) for frames in range(0, 100, 10)]
    _write(tmp_path, [*rows, ("slow", 1.0, 40), ("slow", 2.0, 85), ("only_late", 1.0, 60)])
    _write(tmp_path, [("fast", -1.0, 55), ("slow", -1.0, 99)], first_frames=50)
    read = read_scalars(tmp_path)
    kept = [(0, 0), (10, 10), (20, 20), (30, 30), (40, 40), (50, 50)]
    assert _pairs(read["fast"]) == [*kept, (55, -1)]
    assert _pairs(read["slow"]) == [(40, 1.0), (99, -1.0)]
    assert "only_late" not in read


def test_every_start_of_a_run_is_a_session_from_its_first_event_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("driver.view.events.time.time", lambda: now_s[0])
    for start_s, end_s, first_frames in ((100.0, 160.0, 0), (1_000.0, 1_030.0, 7)):
        now_s[0] = start_s
        with EventWriter(folder=tmp_path, flush_s=10.0, first_frames=first_frames) as writer:
            now_s[0] = end_s
            writer.scalars({"a": 1.0}, first_frames + 5)
    scalars, sessions = read_events(tmp_path)
    assert sessions == [Session(100.0, 160.0), Session(1_000.0, 1_030.0)]
    # The 840 s in which nothing ran do not count.
    assert running_seconds(scalars["a"].wall_s, sessions).tolist() == [60.0, 60.0 + 30.0]


def test_running_seconds_stand_still_between_sessions() -> None:
    sessions = [Session(10.0, 20.0), Session(50.0, 55.0)]
    wall_s = np.array([5.0, 10.0, 13.0, 20.0, 30.0, 50.0, 52.0, 60.0])
    assert running_seconds(wall_s, sessions).tolist() == [0, 0, 3, 10, 10, 10, 12, 15]


def test_run_started_over_from_nothing_in_the_same_folder_drops_everything_older(
    tmp_path: Path,
) -> None:
    _write(tmp_path, [("a", 1.0, 5), ("a", 2.0, 9)])
    _write(tmp_path, [("a", 3.0, 1)])
    assert _pairs(read_scalars(tmp_path)["a"]) == [(1, 3.0)]


def test_tensorboards_own_reader_sees_the_same_merged_values(tmp_path: Path) -> None:
    _write(tmp_path, [("a", float(frames), frames) for frames in range(0, 100, 10)])
    _write(tmp_path, [("a", -1.0, 55)], first_frames=50)
    accumulator = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    accumulator.Reload()
    seen = [(event.step, event.tensor_proto.float_val[0]) for event in accumulator.Tensors("a")]
    assert seen == _pairs(read_scalars(tmp_path)["a"])
    assert accumulator.SummaryMetadata("a").plugin_data.plugin_name == "scalars"


def test_files_sort_in_the_order_they_were_made_even_within_a_second_or_after_a_fast_clock(
    tmp_path: Path,
) -> None:
    ahead = tmp_path / f"events.out.tfevents.{int(time.time()) + 1000}.other-host.1"
    ahead.write_bytes(b"")
    made = [_write(tmp_path, [("a", 1.0, frames)], first_frames=frames) for frames in range(3)]
    assert events.event_files(tmp_path) == [ahead, *made]


@pytest.mark.parametrize("keep", [0, 1, 11, 12, 20, -1])
def test_file_that_breaks_off_is_read_up_to_its_last_whole_record(
    tmp_path: Path, keep: int
) -> None:
    path = _write(tmp_path, [("a", 1.0, 1)])
    whole = path.read_bytes()
    longer = _write(tmp_path / "other", [("a", 1.0, 1), ("a", 2.0, 2)]).read_bytes()
    assert len(longer) > len(whole)
    last_record = longer[len(whole) :]
    path.write_bytes(whole + last_record[:keep])
    assert _pairs(read_scalars(tmp_path)["a"]) == [(1, 1.0)]
    path.write_bytes(whole + last_record)
    assert _pairs(read_scalars(tmp_path)["a"]) == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("tail", [b"\0" * 4096, b"\xff" * 64])
def test_file_with_rubbish_at_its_end_is_read_up_to_there(tmp_path: Path, tail: bytes) -> None:
    path = _write(tmp_path, [("a", 1.0, 1)])
    path.write_bytes(path.read_bytes() + tail)
    assert _pairs(read_scalars(tmp_path)["a"]) == [(1, 1.0)]


def test_record_with_a_damaged_message_ends_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, [("a", 1.0, 1)])
    whole = path.read_bytes()
    _write(tmp_path / "other", [("a", 1.0, 1), ("a", 2.0, 2)])
    (other,) = events.event_files(tmp_path / "other")
    record = other.read_bytes()[len(whole) :]
    path.write_bytes(whole + record[:12] + b"\xff" * (len(record) - 12))
    assert _pairs(read_scalars(tmp_path)["a"]) == [(1, 1.0)]


def test_folder_without_event_files_has_no_scalars(tmp_path: Path) -> None:
    assert read_scalars(tmp_path) == {}
    assert read_scalars(tmp_path / "missing") == {}


def test_neither_torch_nor_tensorflow_is_imported(tmp_path: Path) -> None:
    # A fake stands in for an installed tensorflow, which tensorboard would take where it can.
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\n"
        "from driver.view.events import EventWriter, read_scalars\n"
        f"folder = Path({str(made(tmp_path / 'run'))!r})\n"
        "with EventWriter(folder=folder, flush_s=1.0, first_frames=0) as writer:\n"
        "    writer.scalars({'a': 1.0}, 1)\n"
        "assert list(read_scalars(folder)) == ['a']\n"
        "assert not {'torch', 'tensorflow'} & set(sys.modules)\n"
    )
    root = Path(events.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
