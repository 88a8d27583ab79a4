"""What the tests of snapshots share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import make_push, make_segment

import replay.snapshot
from replay.manifest import unpack_manifest
from replay.shard import ReplayShard
from replay.snapshot import SnapshotFolder
from replay.state import ShardState


def push(shard: ReplayShard, *sequences: int, transitions: int = 5, actor: int = 0) -> None:
    """Push one segment for each sequence; priorities tell the rows apart."""
    for sequence in sequences:
        priority = (1.0 + sequence % 7 + np.arange(transitions) / 8).tolist()
        segment = make_segment(
            actor=actor, sequence=sequence, transitions=transitions, priority=priority
        )
        assert shard.add(make_push(segment))


def assert_same(one: ShardState, other: ShardState) -> None:
    """Compare everything, bit for bit."""
    for field in ShardState._fields:
        mine, theirs = getattr(one, field), getattr(other, field)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype, field
            np.testing.assert_array_equal(mine, theirs, err_msg=field)
        else:
            assert mine == theirs, field


def is_same(one: ShardState, other: ShardState) -> bool:
    try:
        assert_same(one, other)
    except AssertionError:
        return False
    return True


def read(folder: Path) -> ShardState:
    """Return the newest snapshot, as another process would."""
    found = SnapshotFolder(folder, keep=2).read_newest()
    assert found is not None
    return found.state


def names(folder: Path, pattern: str = "*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def stray(folder: Path) -> set[str]:
    """Return the files that no snapshot there needs."""
    needed: set[str] = set()
    for path in folder.glob("snapshot*"):
        chunks = {run.chunk.number for run in unpack_manifest(path.read_bytes()).runs}
        needed |= {path.name, *(f"chunk_{number:010d}.segments" for number in chunks)}
    return {path.name for path in folder.iterdir()} - needed


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few segments fill a chunk, and few chunks be too many."""
    monkeypatch.setattr(replay.snapshot, "_CHUNK_BYTES", 900)
    monkeypatch.setattr(replay.snapshot, "_CHUNKS_OF_ALL", 3)
    monkeypatch.setattr(replay.snapshot, "_MOST_RUNS", 6)
    monkeypatch.setattr(replay.snapshot, "_ROLLED_RUNS", 3)
    monkeypatch.setattr(replay.snapshot, "_BATCH_BYTES", 500)
