"""What older runs left must be read for ever, and what is written now must be read by them.

`tests/golden` holds a snapshot folder as it was written when this test was: two snapshots of one
shard, of which the second drops the first segment and adds a third. The numbers in it are those of
`golden_segment` and `golden_state`. Whoever changes a layout on purpose gives it a new format
number, lets the old one be read, and adds files for it: these stay.

No byte here comes from lz4's compressor, whose output may change with its release: the blocks are
written by hand, as literals only, and each release decompresses them to the same frames.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes import NOTHING_LEARNED, SPEC, make_shard
from snapshotting import assert_same, names

from common.packing import check_segment, pack_segment, unpack_segment
from common.reports import ShardHistory
from common.types import Segment, SegmentName
from replay.decoding import Decoder
from replay.snapshot import SnapshotFolder
from replay.state import ShardState

GOLDEN = Path(__file__).parent / "golden"
FRAMES = 5  # in each segment; two in a block


def golden_frames(sequence: int) -> np.ndarray:
    """Return uint8[5, 2, 3]: six numbers that go on from frame to frame."""
    return (100 * sequence + np.arange(6 * FRAMES)).astype(np.uint8).reshape(FRAMES, 2, 3)


def golden_segment(sequence: int) -> Segment:
    """Return three transitions of two steps each; no two columns hold the same numbers."""
    raw = golden_frames(sequence).tobytes()
    parts = [raw[:12], raw[12:24], raw[24:]]
    # An lz4 block of less than 15 literals: their number in the high half of a byte, and they.
    blocks = [bytes([len(part) << 4]) + part for part in parts]
    return Segment(
        name=SegmentName(actor=3, incarnation=1, sequence=sequence),
        blocks=np.frombuffer(b"".join(blocks), np.uint8),
        block_ends=np.array([13, 26, 33], np.int64),
        num_frames=FRAMES,
        frames_per_block=2,
        newest_tm1=np.array([0, 1, 2], np.int32),
        newest_t=np.array([2, 3, 4], np.int32),
        depth_tm1=np.array([1, 2, 3], np.uint8),
        depth_t=np.array([3, 4, 4], np.uint8),
        a_tm1=np.array([5, 0, 17], np.int32),
        r_t=np.array([1.5, -0.25, sequence], np.float32),
        discount_t=np.array([0.9801, 0.99, 0.0], np.float32),
        priority=np.array([0.5, 2.0, 0.125], np.float32),
        weights_version=np.array([[1, 4000], [1, 4010], [2, 10 * sequence]], np.int64),
    )


def golden_state(number: int) -> ShardState:
    """Return what snapshot 1 or 2 holds: segments 0 and 1, or 1 and 2 of an incarnation later."""
    first = number - 1
    ids = [(1 << 56) + (incarnation << 40) + 3 * s for s, incarnation in ((0, 4), (1, 4), (2, 5))]
    return ShardState(
        shard=1,
        shards=2,
        observation=SPEC,
        incarnation=4 + first,
        alpha=0.5,
        inserted=3 * (first + 2),
        segments=tuple(pack_segment(golden_segment(s)) for s in (first, first + 1)),
        first_ids=np.array(ids[first : first + 2], np.int64),
        masses=np.array([0.5, 0.25, 1.0, 4.0, 3.0, 2.0 + number], np.float64),
        names=tuple(SegmentName(3, 1, s) for s in range(first + 2)),
        rng={
            "bit_generator": "PCG64",
            "state": {"state": 2**100 + 12345, "inc": 2**90 + 1},
            "has_uint32": 1,
            "uinteger": 77,
        },
        history=ShardHistory(
            samples=10**9 + number,
            stale_priority_updates=21,
            duplicate_segments=32,
            refused_pushes=43,
            refused_segments=54,
        ),
    )


def golden_bytes(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def test_segments_are_written_as_they_were() -> None:
    packed = [pack_segment(golden_segment(sequence)) for sequence in range(3)]
    assert golden_bytes("chunk_0000000001.segments") == packed[0] + packed[1]
    assert golden_bytes("chunk_0000000002.segments") == packed[2]


def test_old_segments_are_read_to_the_same_numbers() -> None:
    both = golden_bytes("chunk_0000000001.segments")
    middle = len(both) // 2
    old = [both[:middle], both[middle:], golden_bytes("chunk_0000000002.segments")]
    for sequence, packed in enumerate(old):
        segment = unpack_segment(packed)
        check_segment(segment, SPEC.stack)
        for field, expected in golden_segment(sequence)._asdict().items():
            found = getattr(segment, field)
            np.testing.assert_array_equal(found, expected, err_msg=field)
            assert not isinstance(expected, np.ndarray) or found.dtype == expected.dtype, field


def test_snapshots_are_written_as_they_were(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path, keep=2)
    for number in (1, 2):
        folder.write(golden_state(number))
    assert names(tmp_path) == names(GOLDEN)
    for name in names(GOLDEN):
        assert (tmp_path / name).read_bytes() == golden_bytes(name), name


@pytest.mark.parametrize("number", [1, 2])
def test_old_snapshots_are_read_to_the_same_numbers(tmp_path: Path, number: int) -> None:
    shutil.copytree(GOLDEN, tmp_path / "copy")
    for later in range(number + 1, 3):
        (tmp_path / "copy" / f"snapshot_{later:010d}.manifest").unlink()
    found = SnapshotFolder(tmp_path / "copy", keep=2).read_newest()
    assert found is not None and (found.number, found.damaged) == (number, ())
    assert_same(found.state, golden_state(number))


def test_shard_goes_on_from_an_old_snapshot_with_the_same_transitions() -> None:
    found = SnapshotFolder(GOLDEN, keep=2).read_newest()
    assert found is not None
    shard = make_shard(shard=1, shards=2, alpha=0.5, incarnation=6)
    shard.restore(found.state)
    assert_same(shard.capture()._replace(incarnation=5), golden_state(2))
    reply = shard.sample((400,), NOTHING_LEARNED).batches[0]
    ids, rows = np.unique(reply.ids, return_index=True)
    segments = [golden_segment(1), golden_segment(2)]
    assert ids.tolist() == [start + i for start in golden_state(2).first_ids for i in range(3)]
    for field in ("a_tm1", "r_t", "discount_t"):
        expected = np.concatenate([getattr(segment, field) for segment in segments])
        np.testing.assert_array_equal(getattr(reply, field)[rows], expected, err_msg=field)
    s_tm1, s_t = Decoder(spec=SPEC, threads=1).decode(reply)
    for s, sequence in enumerate((1, 2)):
        frames = golden_frames(sequence)
        none = np.zeros((3, 2, 3), np.uint8)
        np.testing.assert_array_equal(s_tm1[rows[3 * s]], [*none, frames[0]])
        np.testing.assert_array_equal(s_t[rows[3 * s]], [none[0], *frames[:3]])
        np.testing.assert_array_equal(s_t[rows[3 * s + 2]], frames[1:])
