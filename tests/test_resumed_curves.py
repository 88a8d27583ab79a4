"""Curves of runs that crash, end and go on: no gap, no overlap, in all of TensorBoard's readers."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from disks import SmallDisk, files_no_longer_than
from fakes import made
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator,
)

from driver.view.events import EventWriter, event_files, read_scalars

Curves = dict[str, list[tuple[int, float]]]


def of_troop(folder: Path) -> Curves:
    return {
        tag: list(zip(map(int, series.frames), series.values.tolist(), strict=True))
        for tag, series in read_scalars(folder).items()
    }


def of_slow_reader(folder: Path) -> Curves:
    """Return what TensorBoard shows with `--load_fast=false`."""
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    curves = {
        tag: [(event.step, event.tensor_proto.float_val[0]) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }
    return {tag: curve for tag, curve in curves.items() if curve}


def of_fast_reader(folder: Path, expected: Curves) -> Curves:
    """Return what TensorBoard shows by default, once that is `expected`, or after 20 s."""
    pytest.importorskip("tensorboard_data_server")
    from tensorboard import context
    from tensorboard.data.server_ingester import (
        SubprocessServerDataIngester,
        get_server_binary,
    )
    from tensorboard.util.grpc_util import (
        ChannelCredsType,
    )

    server = SubprocessServerDataIngester(
        server_binary=get_server_binary(),
        logdir=str(folder),
        reload_interval=1,
        channel_creds_type=ChannelCredsType.LOCAL,
    )
    server.start()
    try:
        deadline_s = time.monotonic() + 20
        while True:
            runs = server.data_provider.read_scalars(
                context.RequestContext(),
                experiment_id="",
                plugin_name="scalars",
                downsample=10_000,
            )
            curves = {
                tag: [(datum.step, datum.value) for datum in series]
                for run in runs.values()
                for tag, series in run.items()
            }
            if curves == expected or time.monotonic() > deadline_s:
                return curves
            time.sleep(0.05)
    finally:
        server._stdin_handle.close()  # the server ends with it


class Played:
    """A run in pieces, and what its curves must be: whatever no checkpoint covers is gone.

    One tag has a value at each report; one has several at a time, as games that end together; one
    is rare.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.rng = rng
        self.expected: Curves = {}
        self.checkpoint_frames = 0

    def session(self, *, crashes: bool) -> None:
        """Play on from the checkpoint."""
        rng, frames = self.rng, self.checkpoint_frames
        first = frames + 1 if frames else 0
        for tag, curve in list(self.expected.items()):
            self.expected[tag] = [point for point in curve if point[0] <= frames]
        file_bytes = kept_points = 0
        with EventWriter(folder=made(self.folder), flush_s=10, first_frames=frames) as writer:
            for _ in range(rng.randrange(1, 30)):
                frames += rng.randrange(1, 40)
                for tag, least, most in (("each", 1, 1), ("games", 0, 4), ("rare", -8, 1)):
                    for _ in range(rng.randint(least, most)):
                        value = float(rng.randrange(1_000))
                        writer.scalars({tag: value}, frames)
                        curve = self.expected.setdefault(tag, [])
                        last = curve[-1][0] if curve else -1
                        curve.append((max(frames, last + 1, first), value))
                if rng.random() < 0.2:
                    self.checkpoint_frames = frames
                    writer.flush()
                    file_bytes = writer.path.stat().st_size
                    kept_points = sum(map(len, self.expected.values()))
            if not crashes:
                self.checkpoint_frames = frames
        if crashes and kept_points:
            # A kill: what is behind the last flush never came, or a part of it did.
            size = writer.path.stat().st_size
            os.truncate(writer.path, rng.randint(file_bytes, size))

    def curves(self) -> Curves:
        """Return what must be seen once the run has gone on, before it wrote anything."""
        kept = {
            tag: [point for point in curve if point[0] <= self.checkpoint_frames]
            for tag, curve in self.expected.items()
        }
        return {tag: curve for tag, curve in kept.items() if curve}


@pytest.mark.parametrize("seed", range(40))
def test_runs_that_crash_and_go_on_have_each_frame_once_and_lose_nothing(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    run = Played(tmp_path, rng)
    for _ in range(5):
        run.session(crashes=rng.random() < 0.5)
    frames = run.checkpoint_frames
    with EventWriter(folder=tmp_path, flush_s=10, first_frames=frames):
        pass
    expected = run.curves() if frames else {}
    assert of_troop(tmp_path) == expected
    assert of_slow_reader(tmp_path) == expected
    for curve in expected.values():
        steps = [step for step, _ in curve]
        assert steps == sorted(set(steps))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # TensorBoard lets go of its server
def test_last_report_of_a_run_that_ended_well_stands_beside_the_first_of_the_next(
    tmp_path: Path,
) -> None:
    for first, frames in ((0, (10, 20, 100)), (100, (100, 120, 200)), (200, (200, 210))):
        with EventWriter(folder=tmp_path, flush_s=10, first_frames=first) as writer:
            for at in frames:
                writer.scalars({"a": float(first + at)}, at)
    steps = [10, 20, 100, 101, 120, 200, 201, 210]
    values = [10.0, 20.0, 100.0, 200.0, 220.0, 300.0, 400.0, 410.0]
    expected = {"a": list(zip(steps, values, strict=True))}
    assert of_troop(tmp_path) == expected
    assert of_slow_reader(tmp_path) == expected
    assert of_fast_reader(tmp_path, expected) == expected


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_crashed_run_that_goes_on_overlaps_in_no_reader(tmp_path: Path) -> None:
    for first, frames in ((0, range(10, 200, 10)), (100, range(101, 160, 7))):
        with EventWriter(folder=tmp_path, flush_s=10, first_frames=first) as writer:
            for at in frames:
                writer.scalars({"a": float(at)}, at)
    steps = [*range(10, 101, 10), *range(101, 160, 7)]
    expected = {"a": [(step, float(step)) for step in steps]}
    assert of_troop(tmp_path) == expected
    assert of_slow_reader(tmp_path) == expected
    assert of_fast_reader(tmp_path, expected) == expected


def write_rows(writer: EventWriter, numbers: range) -> Curves:
    """Write a point for each number; return all up to the last."""
    for number in numbers:
        writer.scalars({"a": float(number)}, number)
    return {"a": [(number, float(number)) for number in range(numbers.stop)]}


def test_full_disk_delays_values_and_tells_why(small_disk: SmallDisk) -> None:
    folder = small_disk.path / "run"
    with EventWriter(folder=made(folder), flush_s=0.02, first_frames=0) as writer:
        write_rows(writer, range(100))
        writer.flush()
        small_disk.fill()
        expected = write_rows(writer, range(100, 1_000))
        writer.flush()
        assert writer.trouble == f"{writer.path}: cannot be written: No space left on device"
        # What fits of a write that then fails is taken back, so the two may see different moments.
        for seen in (of_slow_reader(folder)["a"], of_troop(folder)["a"]):
            assert 100 <= len(seen) < 1_000
            assert seen == expected["a"][: len(seen)]
        small_disk.free()
        deadline_s = time.monotonic() + 10
        while writer.trouble and time.monotonic() < deadline_s:
            time.sleep(0.01)  # the writer's own thread comes by
        assert (writer.trouble, writer.lost_records) == ("", 0)
        assert of_troop(folder) == expected
    assert of_slow_reader(folder) == expected
    (file,) = event_files(folder)
    assert file == writer.path


def test_values_lost_to_a_disk_that_stays_full_are_counted(tmp_path: Path) -> None:
    writer = EventWriter(folder=tmp_path, flush_s=10, first_frames=0)
    write_rows(writer, range(3))
    writer.flush()
    with files_no_longer_than(writer.path.stat().st_size):
        writer.scalars({"a": 1.0, "b": 2.0}, 5)
        writer.scalars({"c": 3.0}, 6)
        writer.close()
    assert writer.lost_records == 2
    assert writer.trouble.endswith("cannot be written: File too large")
    assert len(of_troop(tmp_path)["a"]) == 3


def test_folder_removed_under_a_run_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with EventWriter(folder=made(folder), flush_s=10, first_frames=50) as writer:
        writer.scalars({"a": 1.0}, 60)
        shutil.rmtree(folder)
        writer.flush()
        assert writer.trouble == f"{writer.path}: cannot be written: No such file or directory"
    assert list(tmp_path.iterdir()) == []


def test_file_removed_under_a_resumed_run_is_followed_by_another(tmp_path: Path) -> None:
    with EventWriter(folder=tmp_path, flush_s=10, first_frames=50) as writer:
        writer.scalars({"a": 1.0}, 60)
        writer.flush()
        writer.path.unlink()
        writer.scalars({"a": 2.0}, 70)
        writer.flush()
        assert writer.trouble == ""
    assert of_troop(tmp_path) == of_slow_reader(tmp_path) == {"a": [(70, 2.0)]}


def test_file_removed_under_a_resumed_run_leaves_what_its_checkpoint_covers(tmp_path: Path) -> None:
    with EventWriter(folder=tmp_path, flush_s=10, first_frames=0) as writer:
        write_rows(writer, range(100))
    with EventWriter(folder=tmp_path, flush_s=10, first_frames=50) as writer:
        writer.scalars({"a": -1.0}, 60)
        writer.flush()
        writer.path.unlink()
        writer.scalars({"a": -2.0}, 70)
    expected = {"a": [*((number, float(number)) for number in range(51)), (70, -2.0)]}
    assert of_troop(tmp_path) == of_slow_reader(tmp_path) == expected


def test_run_does_not_start_on_a_disk_without_room(small_disk: SmallDisk) -> None:
    small_disk.fill()
    with pytest.raises(OSError, match="No space left on device"):
        EventWriter(folder=small_disk.path, flush_s=10, first_frames=0)
    assert event_files(small_disk.path) == []
