"""Segments as bytes: the same bytes travel, lie in memory and are saved.

Layout, little endian: a header (see `_HEADER`), the columns of `_COLUMNS` one after the other,
`block_ends`, the blocks, and a CRC-32 of all that. No pickle: unpacking never runs code, and a
changed byte is an error.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.compression import MOST_EXPANSION, num_blocks
from common.types import Segment, SegmentName

_MAGIC = b"TRSG"
_FORMAT = 1
# magic, format, actor, incarnation, sequence, F, frames per block, T, bytes of blocks
_HEADER = struct.Struct("<4sIqqqIIIQ")
_CHECKSUM = struct.Struct("<I")
# Frames and bytes of blocks are counted in int32 from here to the learner.
_MOST_INT32 = 2**31 - 1
_COLUMNS: tuple[tuple[str, str, int], ...] = (  # field, dtype, numbers per transition
    ("weights_version", "<i8", 2),
    ("newest_tm1", "<i4", 1),
    ("newest_t", "<i4", 1),
    ("a_tm1", "<i4", 1),
    ("r_t", "<f4", 1),
    ("discount_t", "<f4", 1),
    ("priority", "<f4", 1),
    ("depth_tm1", "u1", 1),
    ("depth_t", "u1", 1),
)


class PackingError(ValueError):
    """Bytes that are not a sound segment."""


def pack_segment(segment: Segment) -> bytes:
    """Return the segment as bytes; `unpack_segment` is the inverse."""
    header = _HEADER.pack(
        _MAGIC,
        _FORMAT,
        *segment.name,
        segment.num_frames,
        segment.frames_per_block,
        segment.num_transitions,
        len(segment.blocks),
    )
    columns = [
        np.ascontiguousarray(getattr(segment, field), dtype).tobytes()
        for field, dtype, _ in _COLUMNS
    ]
    ends = np.ascontiguousarray(segment.block_ends, "<i8").tobytes()
    body = b"".join([header, *columns, ends, segment.blocks.tobytes()])
    return body + _CHECKSUM.pack(zlib.crc32(body))


def unpack_segment(packed: bytes) -> Segment:
    """Return the segment whose arrays are read-only views of `packed`: nothing is copied.

    Raises:
      PackingError: `packed` was cut, changed, or is something else.
    """
    least = _HEADER.size + _CHECKSUM.size
    if len(packed) < least:
        raise PackingError(f"Expect a segment of >= {least} bytes, actually: {len(packed)}")
    (
        magic,
        layout,
        actor,
        incarnation,
        sequence,
        num_frames,
        frames_per_block,
        rows,
        block_bytes,
    ) = _HEADER.unpack_from(packed)
    if magic != _MAGIC or layout != _FORMAT:
        raise PackingError(f"Expect a segment of format {_FORMAT}, actually: {magic!r} {layout}")
    (checksum,) = _CHECKSUM.unpack_from(packed, len(packed) - _CHECKSUM.size)
    if zlib.crc32(memoryview(packed)[: -_CHECKSUM.size]) != checksum:
        raise PackingError(f"Expect a segment with checksum {checksum:#x}: its bytes were changed")
    if frames_per_block < 1:
        raise PackingError(f"Expect `frames_per_block` >= 1, actually: {frames_per_block}")
    offset = _HEADER.size
    arrays: dict[str, NDArray[Any]] = {}
    blocks = num_blocks(num_frames, frames_per_block)
    layout_of_rest = [(f, d, rows * width) for f, d, width in _COLUMNS] + [
        ("block_ends", "<i8", blocks),
        ("blocks", "u1", block_bytes),
    ]
    expected = offset + _CHECKSUM.size
    expected += sum(np.dtype(dtype).itemsize * count for _, dtype, count in layout_of_rest)
    if expected != len(packed):
        raise PackingError(f"Expect a segment of {expected} bytes, actually: {len(packed)}")
    for field, dtype, count in layout_of_rest:
        arrays[field] = np.frombuffer(packed, dtype, count, offset)
        offset += arrays[field].nbytes
    arrays["weights_version"] = arrays["weights_version"].reshape(rows, 2)
    return Segment(
        name=SegmentName(actor, incarnation, sequence),
        num_frames=num_frames,
        frames_per_block=frames_per_block,
        **arrays,
    )


def segment_fingerprint(packed: bytes) -> bytes:
    """Return what tells sound packed segments apart: name, lengths and checksum, 56 bytes."""
    return packed[: _HEADER.size] + packed[-_CHECKSUM.size :]


def check_segment(segment: Segment, stack: int) -> None:
    """Check what a checksum cannot: that the numbers make sense together.

    Args:
      segment: a segment as unpacked.
      stack: k, frames in an observation.

    Raises:
      PackingError: an index outside the frames, a depth outside 1..k, a number that is not finite,
        a count that the blocks cannot hold. What the blocks decompress to is seen when they are
        decoded: doing it here would cost the shard what it costs the learner.
    """

    def expect(rule: str, holds: bool) -> None:
        if not holds:
            raise PackingError(f"Expect {rule} in segment {tuple(segment.name)}")

    expect("at least one transition", segment.num_transitions >= 1)
    expect("at least one frame", segment.num_frames >= 1)
    largest = max(segment.num_frames, segment.frames_per_block, len(segment.blocks))
    expect("counts that fit into int32", largest <= _MOST_INT32)
    # Compared, not subtracted: a difference of int64s may come round to the other sign.
    ends = segment.block_ends
    expect("blocks that grow", bool(ends[0] > 0 and np.all(ends[1:] > ends[:-1])))
    expect("blocks that end with the bytes", int(segment.block_ends[-1]) == len(segment.blocks))
    expect("frames that fit", segment.num_frames <= MOST_EXPANSION * len(segment.blocks))
    for newest, depth in (
        (segment.newest_tm1, segment.depth_tm1),
        (segment.newest_t, segment.depth_t),
    ):
        depths = depth.astype(np.int64)
        expect(f"depths from 1 to {stack}", bool(np.all((depths >= 1) & (depths <= stack))))
        expect("stacks inside the frames", bool(np.all(newest - depths + 1 >= 0)))
        expect("stacks inside the frames", bool(np.all(newest < segment.num_frames)))
    expect("s_t after s_tm1", bool(np.all(segment.newest_t > segment.newest_tm1)))
    oldest_tm1 = segment.newest_tm1 - segment.depth_tm1.astype(np.int64)
    oldest_t = segment.newest_t - segment.depth_t.astype(np.int64)
    expect("no frame of s_t before those of s_tm1", bool(np.all(oldest_t >= oldest_tm1)))
    expect("finite returns", bool(np.all(np.isfinite(segment.r_t))))
    expect(
        "discounts from 0 to 1", bool(np.all((segment.discount_t >= 0) & (segment.discount_t <= 1)))
    )
    expect(
        "finite priorities >= 0",
        bool(np.all(np.isfinite(segment.priority) & (segment.priority >= 0))),
    )
    expect("actions >= 0", bool(np.all(segment.a_tm1 >= 0)))
