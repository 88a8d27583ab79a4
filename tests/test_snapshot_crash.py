"""Kills, full disks and folders that go away under a SnapshotFolder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import make_shard
from snapshotting import assert_same, is_same, make_small, names, push, read, stray

from replay.shard import ReplayShard
from replay.snapshot import SnapshotFolder
from replay.state import ShardState

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def grown(folder: SnapshotFolder, shard: ReplayShard, writes: int) -> ShardState:
    """Write so many snapshots and return the last one's state."""
    for _ in range(writes):
        first = shard.inserted // 5
        push(shard, *range(first, first + 2))
        state = shard.capture()
        folder.write(state)
    return state


def at_each_step(monkeypatch: pytest.MonkeyPatch, step: Callable[[str], None]) -> None:
    """Call `step` before each thing that a write does to the disk."""

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            step(name)
            return real(*arguments, **keywords)

        return call

    # A checksum is taken right before each part is written.
    crc32 = watched("write", zlib.crc32)
    monkeypatch.setattr("replay.snapshot.zlib", SimpleNamespace(crc32=crc32))
    for name in ("fsync", "replace", "open"):
        monkeypatch.setattr(os, name, watched(name, getattr(os, name)))
    for name in ("unlink", "open"):
        monkeypatch.setattr(Path, name, watched(name, getattr(Path, name)))


def test_trap_killed_at_any_step_leaves_the_old_snapshot_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "snapshots"
    shard = make_shard(capacity=30, alpha=0.6)
    folder = SnapshotFolder(path, keep=1)
    older = grown(folder, shard, 7)
    push(shard, *range(20, 26))
    newer = shard.capture()
    push(shard, 30)
    newest = shard.capture()
    copies: list[tuple[str, Path]] = []

    def copy(step: str) -> None:
        with monkeypatch.context() as inner:
            inner.undo()
            target = tmp_path / f"copy_{len(copies)}"
            copies.append((step, target))
            subprocess.run(["cp", "-r", path, target], check=True)

    with pytest.MonkeyPatch.context() as patch:
        at_each_step(patch, copy)
        folder.write(newer)
    subprocess.run(["cp", "-r", path, tmp_path / "copy_last"], check=True)
    copies.append(("end", tmp_path / "copy_last"))
    steps = [step for step, _ in copies]
    assert {"write", "fsync", "replace", "unlink", "open"} <= set(steps) and len(copies) > 20
    is_new = [is_same(read(copied), newer) for _, copied in copies]
    assert is_new == sorted(is_new) and is_new[-1] and not is_new[0]
    assert is_new.index(True) == steps.index("replace") + 1
    # Every new file and then the folder are on the disk before the rename, and the rename after it.
    renamed = steps.index("replace")
    chunks = set(names(tmp_path / "copy_last", "chunk*")) - set(names(copies[0][1], "chunk*"))
    assert steps[:renamed].count("fsync") == len(chunks) + 1 + 1
    assert steps[renamed - 1 : renamed + 3] == ["fsync", "replace", "open", "fsync"]
    for (_, copied), new in zip(copies, is_new, strict=True):
        if not new:
            assert_same(read(copied), older)
        # The next writer removes what the killed one left, whether it has read or not.
        for has_read in (True, False):
            again = Path(shutil.copytree(copied, tmp_path / "again"))
            writer = SnapshotFolder(again, keep=1)
            if has_read:
                writer.read_newest()
            writer.write(newest)
            assert_same(read(again), newest)
            assert len(names(again, "snapshot*")) == 1 and stray(again) == set()
            shutil.rmtree(again)


def test_trap_error_at_any_step_leaves_the_old_snapshot_and_nothing_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails at the i-th step, and only there: before the snapshot is whole or after."""
    for failing in range(1000):
        path = tmp_path / f"snapshots_{failing}"
        shard = make_shard(capacity=30, alpha=0.6)
        folder = SnapshotFolder(path, keep=1)
        older = grown(folder, shard, 4)
        before = names(path)
        push(shard, *range(20, 24))
        newer = shard.capture()
        steps = 0

        def fail(step: str, failing: int = failing) -> None:
            nonlocal steps
            steps += 1
            if steps == failing + 1:
                raise OSError(28, f"No space left on device: {step}")

        with pytest.MonkeyPatch.context() as patch:
            at_each_step(patch, fail)
            try:
                folder.write(newer)
            except OSError as error:
                has_failed = "No space left on device" in str(error)
            else:
                has_failed = False
        if steps <= failing:
            break
        if is_same(read(path), older):
            assert has_failed
            assert names(path) == before
        else:
            assert_same(read(path), newer)
        push(shard, 24)
        newest = shard.capture()
        folder.write(newest)
        assert_same(read(path), newest)
        assert stray(path) == set()
        shutil.rmtree(path)
    assert failing >= 19


def test_folder_removed_under_the_run_gives_a_full_snapshot_next(tmp_path: Path) -> None:
    shard = make_shard()
    folder = SnapshotFolder(tmp_path / "snapshots", keep=2)
    grown(folder, shard, 3)
    shutil.rmtree(tmp_path / "snapshots")
    state = grown(folder, shard, 1)
    assert_same(read(tmp_path / "snapshots"), state)
    assert names(tmp_path / "snapshots", "snapshot*") == ["snapshot_0000000004.manifest"]
    # As long as it cannot be made again, that is an error; then all is well.
    shutil.rmtree(tmp_path / "snapshots")
    (tmp_path / "snapshots").write_text("in the way")
    with pytest.raises(OSError):  # noqa: PT011
        folder.write(state)
    (tmp_path / "snapshots").unlink()
    folder.write(state)
    assert_same(read(tmp_path / "snapshots"), state)


@pytest.mark.parametrize("lost", ["cut", "deleted"])
def test_chunk_that_was_lost_is_written_anew(tmp_path: Path, lost: str) -> None:
    shard = make_shard()
    folder = SnapshotFolder(tmp_path, keep=1)
    state = grown(folder, shard, 4)
    chunk = sorted(tmp_path.glob("chunk*"))[1]
    chunk.write_bytes(b"short") if lost == "cut" else chunk.unlink()
    folder.write(state)
    assert_same(read(tmp_path), state)


# --- real disks -----------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where the user may mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disk_leaves_the_old_snapshot_and_later_writes_work(tiny_disk: Path) -> None:
    path = tiny_disk / "snapshots"
    shard = make_shard(capacity=100_000)
    folder = SnapshotFolder(path, keep=2)
    state = grown(folder, shard, 3)
    before = names(path)
    many = make_shard(capacity=100_000)
    push(many, *range(400))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device"):
            folder.write(many.capture())
        assert names(path) == before
        assert_same(read(path), state)
    state = grown(folder, shard, 1)
    assert_same(read(path), state)


def test_leftovers_of_a_killed_writer_make_room_first(tiny_disk: Path) -> None:
    shard = make_shard()
    state = grown(SnapshotFolder(tiny_disk, keep=2), shard, 2)
    leftover = tiny_disk / "chunk_0000000099.segments"
    with pytest.raises(OSError, match="No space left on device"):
        leftover.write_bytes(bytes(1 << 17))
    (tiny_disk / "snapshot_0000000003.manifest").touch()
    folder = SnapshotFolder(tiny_disk, keep=2)
    assert folder.read_newest() is not None
    state = grown(folder, shard, 1)
    assert_same(read(tiny_disk), state)
    assert not leftover.exists()
    assert names(tiny_disk, "chunk*")[-1] == "chunk_0000000100.segments"


def test_read_only_disk_is_an_error_and_later_writes_work(tiny_disk: Path) -> None:
    path = tiny_disk / "snapshots"
    shard = make_shard()
    folder = SnapshotFolder(path, keep=2)
    state = grown(folder, shard, 2)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    push(shard, 10)
    with pytest.raises(OSError, match="Read-only file system"):
        folder.write(shard.capture())
    assert_same(read(path), state)
    subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)
    folder.write(shard.capture())
    assert_same(read(path), shard.capture())


LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path[:0] = [".", "tests"]
from fakes import make_shard
from snapshotting import assert_same, names, push, read
from replay.snapshot import SnapshotFolder

path = Path(sys.argv[1])
shard, folder = make_shard(), SnapshotFolder(path, keep=1)
push(shard, *range(5))
state = shard.capture()
folder.write(state)
before = names(path)
push(shard, *range(5, 100))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    folder.write(shard.capture())
except OSError as error:
    print(error)
assert names(path) == before
assert_same(read(path), state)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
folder.write(shard.capture())
assert_same(read(path), shard.capture())
"""


def test_file_that_may_not_grow_leaves_the_old_snapshot(tmp_path: Path) -> None:
    """Like a full disk, where none can be mounted: the system cuts a write short for good."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "snapshots")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "File too large" in result.stdout
