from __future__ import annotations

import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import NOTHING_LEARNED, make_shard
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshotting import assert_same, make_small, names, push, read

from common.types import PriorityUpdate, SegmentName
from replay.manifest import pack_manifest, unpack_manifest
from replay.snapshot import SnapshotFolder
from replay.state import ShardState, SnapshotError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


# --- what comes back ------------------------------------------------------------------------------


def test_snapshot_comes_back_as_it_was_written(tmp_path: Path) -> None:
    shard = make_shard(alpha=0.6, shard=1, shards=2, incarnation=3)
    push(shard, *range(4))
    shard.sample((3,), NOTHING_LEARNED)
    state = shard.capture()
    folder = SnapshotFolder(tmp_path / "a" / "b", keep=2)
    assert folder.write(state) == 1
    found = SnapshotFolder(tmp_path / "a" / "b", keep=2).read_newest()
    assert found is not None
    assert (found.number, found.damaged) == (1, ())
    assert_same(found.state, state)


def test_no_snapshot_is_none(tmp_path: Path) -> None:
    assert SnapshotFolder(tmp_path / "missing", keep=1).read_newest() is None
    assert SnapshotFolder(tmp_path, keep=1).read_newest() is None


def test_empty_shard_can_be_saved(tmp_path: Path) -> None:
    state = make_shard().capture()
    SnapshotFolder(tmp_path, keep=1).write(state)
    assert_same(read(tmp_path), state)
    assert names(tmp_path, "chunk*") == []


def test_keep_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expect `keep` >= 1, actually: 0"):
        SnapshotFolder(tmp_path, keep=0)


MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 6), st.integers(1, 9)),
        st.tuples(st.just("priorities"), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("sample"), st.integers(1, 5)),
        st.tuples(st.just("write")),
        st.tuples(st.just("write")),
        st.tuples(st.just("reopen"), st.booleans()),
        st.tuples(st.just("crash"), st.booleans(), st.integers(20, 60)),
    ),
    min_size=3,
    max_size=40,
)


@given(moves=MOVES, alpha=st.sampled_from([0.0, 0.6]))
@settings(max_examples=50, deadline=None)
def test_what_was_written_last_is_what_is_restored_whatever_happened_before(
    moves: list[Any], alpha: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Pushes, evictions, new priorities, writes, restarts of the writer, crashes of the shard."""
    path = tmp_path_factory.mktemp("snapshots")
    shard = make_shard(capacity=40, alpha=alpha)
    folder = SnapshotFolder(path, keep=2)
    sequence, incarnation = 0, 0
    last: ShardState | None = None
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_small(monkeypatch)
        for move, *arguments in moves:
            if move == "push":
                count, transitions = arguments
                push(shard, *range(sequence, sequence + count), transitions=transitions)
                sequence += count
            elif move == "priorities":
                rng = np.random.default_rng(arguments[0])
                ids = rng.integers(0, shard.inserted + 1, 8) + (incarnation << 40)
                shard.update_priorities(PriorityUpdate(ids, rng.random(8).astype(np.float32)))
            elif move == "sample":
                shard.sample((arguments[0],), NOTHING_LEARNED)
            elif move == "write":
                last = shard.capture()
                folder.write(last)
                assert_same(read(path), last)
                assert len(names(path, "snapshot*")) <= 2
            elif move == "reopen":
                folder = SnapshotFolder(path, keep=2)
                if arguments[0]:
                    folder.read_newest()
            elif last is not None:
                is_new_writer, capacity = arguments
                incarnation += 1
                if is_new_writer:
                    folder = SnapshotFolder(path, keep=2)
                found = folder.read_newest()
                assert found is not None
                assert_same(found.state, last)
                shard = make_shard(
                    capacity=capacity, alpha=alpha, incarnation=incarnation, seed=incarnation
                )
                shard.restore(found.state)
                shard.check_valid()
                masses = shard.capture().masses.tolist()
                assert masses == last.masses.tolist()[len(last.masses) - len(masses) :]
                twin = make_shard(capacity=capacity, alpha=alpha, incarnation=incarnation)
                twin.restore(last)
                for one, two in zip(
                    shard.sample((4, 2), NOTHING_LEARNED).batches,
                    twin.sample((4, 2), NOTHING_LEARNED).batches,
                    strict=True,
                ):
                    assert one.ids.tolist() == two.ids.tolist()
                    assert one.probability.tolist() == two.probability.tolist()
                    assert one.blocks.tobytes() == two.blocks.tobytes()
    shutil.rmtree(path)


# --- only what is new -----------------------------------------------------------------------------


def test_second_snapshot_writes_what_is_new(tmp_path: Path) -> None:
    shard = make_shard()
    folder = SnapshotFolder(tmp_path, keep=2)
    push(shard, *range(100))
    folder.write(shard.capture())
    push(shard, *range(100, 105))
    state = shard.capture()
    folder.write(state)
    new = b"".join(state.segments[-5:])
    assert (tmp_path / "chunk_0000000002.segments").read_bytes() == new
    before = names(tmp_path, "chunk*")
    folder.write(state)
    assert names(tmp_path, "chunk*") == before
    assert_same(read(tmp_path), state)


def test_restarted_writer_that_has_read_goes_on_incrementally(tmp_path: Path) -> None:
    shard = make_shard()
    push(shard, *range(50))
    SnapshotFolder(tmp_path, keep=1).write(shard.capture())
    folder = SnapshotFolder(tmp_path, keep=1)
    found = folder.read_newest()
    assert found is not None
    other = make_shard(incarnation=1, capacity=200)
    other.restore(found.state)
    push(other, 50)
    state = other.capture()
    folder.write(state)
    chunk = tmp_path / "chunk_0000000002.segments"
    assert chunk.read_bytes() == state.segments[-1]
    assert_same(read(tmp_path), state)


def test_old_snapshots_and_the_chunks_only_they_need_are_deleted(tmp_path: Path) -> None:
    shard = make_shard(capacity=10)
    folder = SnapshotFolder(tmp_path, keep=2)
    for sequence in range(6):
        push(shard, sequence)
        folder.write(shard.capture())
    assert names(tmp_path) == [
        *(f"chunk_{number:010d}.segments" for number in (4, 5, 6)),
        *(f"snapshot_{number:010d}.manifest" for number in (5, 6)),
    ]


def test_number_of_chunks_and_bytes_written_stay_bounded(tmp_path: Path) -> None:
    """Like 400 writes with little new in each."""
    shard = make_shard(capacity=2000)
    folder = SnapshotFolder(tmp_path, keep=1)
    segments = written = pushed = 0
    for sequence in range(400):
        push(shard, sequence, transitions=10)
        state = shard.capture()
        pushed += len(state.segments[-1])
        before = names(tmp_path, "chunk*")
        folder.write(state)
        written += sum(
            path.stat().st_size for path in tmp_path.glob("chunk*") if path.name not in before
        )
        segments = max(segments, len(names(tmp_path, "chunk*")))
    assert segments <= 64 + 1
    assert written <= 3 * pushed
    assert_same(read(tmp_path), state)


def test_large_snapshots_are_cut_into_chunks(tmp_path: Path, small: None) -> None:
    shard = make_shard()
    push(shard, *range(12))
    state = shard.capture()
    SnapshotFolder(tmp_path, keep=1).write(state)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("chunk*"))]
    assert len(sizes) > 1 and sum(sizes) == sum(len(packed) for packed in state.segments)
    assert_same(read(tmp_path), state)


# --- crashed lineages -----------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ["same", "has read", "fresh"])
def test_trap_other_segments_at_the_same_positions_are_written_anew(
    tmp_path: Path, writer: str
) -> None:
    """An older snapshot is restored, and its stream goes on differently."""
    shard = make_shard()
    folder = SnapshotFolder(tmp_path, keep=2)
    push(shard, 0)
    older = shard.capture()
    folder.write(older)
    push(shard, 1)
    folder.write(shard.capture())
    if writer != "same":  # that one saved what was lost afterwards, and still knows where it lies
        (tmp_path / "snapshot_0000000002.manifest").write_bytes(b"rubbish")
        folder = SnapshotFolder(tmp_path, keep=2)
    if writer == "has read":
        found = folder.read_newest()
        assert found is not None
        assert_same(found.state, older)
        assert [Path(text.split(":")[0]).name for text in found.damaged] == [
            "snapshot_0000000002.manifest"
        ]
    other = make_shard(incarnation=1)
    other.restore(older)
    push(other, 1, actor=7)
    state = other.capture()
    assert folder.write(state) == 3
    assert_same(read(tmp_path), state)
    assert ("snapshot_0000000002.manifest" in names(tmp_path)) == (writer == "same")
    assert read(tmp_path).names[-1] == SegmentName(7, 0, 1)


def test_damaged_snapshots_do_not_count_as_kept(tmp_path: Path) -> None:
    shard = make_shard()
    folder = SnapshotFolder(tmp_path, keep=2)
    for sequence in range(2):
        push(shard, sequence)
        state = shard.capture()
        folder.write(state)
    chunk = tmp_path / "chunk_0000000002.segments"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    folder = SnapshotFolder(tmp_path, keep=2)
    found = folder.read_newest()
    assert found is not None and found.number == 1 and "chunk_0000000002" in found.damaged[0]
    folder.write(state)
    assert names(tmp_path, "snapshot*") == [
        "snapshot_0000000001.manifest",
        "snapshot_0000000003.manifest",
    ]
    assert_same(read(tmp_path), state)


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[ShardState]]:
    """A folder with three snapshots, and what they hold."""
    path = tmp_path_factory.mktemp("three")
    shard = make_shard(capacity=30, alpha=0.6)
    folder = SnapshotFolder(path, keep=3)
    states = []
    for first in (0, 4, 7):
        push(shard, *range(first, first + 4))
        states.append(shard.capture())
        folder.write(states[-1])
    return path, states


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_trap_damage_at_any_byte_gives_an_older_snapshot_or_an_error_and_never_garbage(
    three: tuple[Path, list[ShardState]],
    data: st.DataObject,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path, states = three
    copy = tmp_path_factory.mktemp("damaged") / "copy"
    shutil.copytree(path, copy)
    name = data.draw(st.sampled_from(names(path)))
    content = bytearray((copy / name).read_bytes())
    how = data.draw(st.sampled_from(["cut", "flip", "delete", "append", "empty"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if how == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif how == "append":
        content += b"\0"
    else:
        content = content[: place if how == "cut" else 0]
    (copy / name).unlink() if how == "delete" else (copy / name).write_bytes(content)
    folder = SnapshotFolder(copy, keep=3)
    try:
        found = folder.read_newest()
    except SnapshotError as error:
        assert name.startswith("chunk") and name in str(error)
        found = None
    if found is not None:
        assert_same(found.state, states[found.number - 1])
        if how != "delete" or name.startswith("chunk"):
            assert len(found.damaged) == 3 - found.number
        if name.startswith("snapshot") and name != "snapshot_0000000003.manifest":
            assert found.number == 3
    # Whatever it was, a write makes it good.
    for writer in (folder, SnapshotFolder(copy, keep=3)):
        writer.write(states[2])
        newest = read(copy)
        if writer is folder:
            assert_same(newest, states[2])
    shutil.rmtree(copy.parent)


def test_manifest_of_something_else_is_refused(three: tuple[Path, list[ShardState]]) -> None:
    path, states = three
    packed = (path / "snapshot_0000000003.manifest").read_bytes()
    manifest = unpack_manifest(packed)
    assert b"".join(bytes(part) for part in pack_manifest(manifest)) == packed
    assert_same(manifest.state._replace(segments=states[2].segments), states[2])
    other = b"TRSS\x02" + packed[5:]
    for wrong, match in (
        (b"", "Expect a manifest of >= 20 bytes, actually: 0"),
        (b"x" * 100, "Expect a manifest of format 1, actually: b'xxxx'"),
        (other, r"Expect a manifest of format 1, actually: b'TRSS' 2"),
        (packed[:-1], "its bytes changed"),
    ):
        with pytest.raises(SnapshotError, match=match):
            unpack_manifest(wrong)
    body = packed[:-4].replace(b'"alpha"', b'"gamma"')
    with pytest.raises(SnapshotError, match="actually: `alpha` is missing"):
        unpack_manifest(body + zlib.crc32(body).to_bytes(4, "little"))
    body = packed[:-12]  # without the last segment's size
    with pytest.raises(SnapshotError, match="Expect a sound manifest"):
        unpack_manifest(body + zlib.crc32(body).to_bytes(4, "little"))
