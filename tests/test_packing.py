from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from fakes import SPEC, make_segment
from hypothesis import given, settings
from hypothesis import strategies as st

from common.compression import compress_frames
from common.packing import PackingError, check_segment, pack_segment, unpack_segment
from common.types import Segment, SegmentName

# As common.packing says: magic, format, actor, incarnation, sequence, F, frames per block, T, bytes
# of blocks.
_HEADER = struct.Struct("<4sIqqqIIIQ")


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    """Any sound segment."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = draw(st.integers(1, 12))
    per_block = draw(st.integers(1, 5))
    depth_tm1 = rng.integers(1, SPEC.stack + 1, rows)
    newest_tm1 = depth_tm1 - 1 + rng.integers(0, 5, rows)
    gap = rng.integers(1, 4, rows)
    depth_t = np.minimum(depth_tm1 + gap, SPEC.stack)
    num_frames = int((newest_tm1 + gap).max()) + 1 + draw(st.integers(0, 3))
    frames = rng.integers(0, 256, (num_frames, *SPEC.frame_shape), np.uint8)
    blocks, block_ends = compress_frames(frames, per_block)
    big = st.integers(0, 2**62)
    return Segment(
        name=SegmentName(draw(st.integers(0, 2**31)), draw(st.integers(0, 2**31)), draw(big)),
        blocks=blocks,
        block_ends=block_ends,
        num_frames=num_frames,
        frames_per_block=per_block,
        newest_tm1=newest_tm1.astype(np.int32),
        newest_t=(newest_tm1 + gap).astype(np.int32),
        depth_tm1=depth_tm1.astype(np.uint8),
        depth_t=depth_t.astype(np.uint8),
        a_tm1=rng.integers(0, 18, rows).astype(np.int32),
        r_t=rng.normal(size=rows).astype(np.float32),
        discount_t=rng.random(rows).astype(np.float32),
        priority=rng.random(rows).astype(np.float32),
        weights_version=rng.integers(0, 2**62, (rows, 2)),
    )


def assert_equal(actual: Segment, expected: Segment) -> None:
    for field in Segment._fields:
        one, other = getattr(actual, field), getattr(expected, field)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype, field
            np.testing.assert_array_equal(one, other, err_msg=field)
        else:
            assert one == other, field


def reseal(packed: bytes) -> bytes:
    """Return the bytes with a checksum that fits them, as a sender with a bug would."""
    return packed[:-4] + struct.pack("<I", zlib.crc32(packed[:-4]))


def with_header(packed: bytes, **changes: int) -> bytes:
    fields = ("magic", "format", "actor", "incarnation", "sequence", "frames", "per_block", "rows")
    values = dict(zip((*fields, "block_bytes"), _HEADER.unpack_from(packed), strict=True))
    return reseal(_HEADER.pack(*(values | changes).values()) + packed[_HEADER.size :])


@given(segments())
@settings(max_examples=100, deadline=None)
def test_round_trip_keeps_every_field_and_type(segment: Segment) -> None:
    unpacked = unpack_segment(pack_segment(segment))
    assert_equal(unpacked, segment)
    check_segment(unpacked, SPEC.stack)
    assert pack_segment(unpacked) == pack_segment(segment)


def test_unpacking_copies_nothing_and_cannot_be_written() -> None:
    packed = pack_segment(make_segment())
    whole = np.frombuffer(packed, np.uint8)
    for value in unpack_segment(packed):
        if isinstance(value, np.ndarray):
            assert np.shares_memory(value, whole)
            assert not value.flags.writeable


def test_trap_any_changed_byte_is_an_error_and_never_garbage() -> None:
    sound = pack_segment(make_segment(transitions=2))
    for position in range(len(sound)):
        changed = bytearray(sound)
        changed[position] ^= 0x10
        match = "its bytes were changed" if position >= 8 else "Expect a segment of format 1"
        with pytest.raises(PackingError, match=match):
            unpack_segment(bytes(changed))


def test_every_cut_and_any_surplus_is_an_error() -> None:
    sound = pack_segment(make_segment(transitions=2))
    for length in range(len(sound)):
        with pytest.raises(PackingError, match="Expect a segment"):
            unpack_segment(sound[:length])
    for surplus in (b"\0", sound):
        with pytest.raises(PackingError, match="Expect a segment"):
            unpack_segment(sound + surplus)


def test_too_few_bytes_are_an_error() -> None:
    with pytest.raises(PackingError, match=r"Expect a segment of >= 56 bytes, actually: 3"):
        unpack_segment(b"TRS")


def test_something_else_is_an_error() -> None:
    with pytest.raises(PackingError, match=r"Expect a segment of format 1, actually: b'PK"):
        unpack_segment(b"PK\x03\x04" + bytes(100))


def test_another_format_is_an_error() -> None:
    packed = with_header(pack_segment(make_segment()), format=2)
    with pytest.raises(PackingError, match=r"Expect a segment of format 1, actually: b'TRSG' 2"):
        unpack_segment(packed)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 6},
        {"rows": 2**32 - 1},
        {"frames": 2**32 - 1},
        {"block_bytes": 2**63},
        {"frames": 99},
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_the_length_are_an_error(changes: dict[str, int]) -> None:
    packed = with_header(pack_segment(make_segment(transitions=5)), **changes)
    with pytest.raises(PackingError, match=r"Expect a segment of \d+ bytes, actually: "):
        unpack_segment(packed)


def test_no_frames_in_a_block_are_an_error() -> None:
    packed = with_header(pack_segment(make_segment()), per_block=0)
    with pytest.raises(PackingError, match="Expect `frames_per_block` >= 1, actually: 0"):
        unpack_segment(packed)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_sender_with_a_bug_gets_a_packing_error_or_makes_sense(data: st.DataObject) -> None:
    """The checksum fits here, so that only the numbers themselves can give it away."""
    packed = bytearray(pack_segment(make_segment(transitions=3)))
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 5))] ^= data.draw(st.integers(1, 255))
    try:
        segment = unpack_segment(reseal(bytes(packed)))
        check_segment(segment, SPEC.stack)
    except PackingError:
        return
    oldest_tm1 = segment.newest_tm1 - segment.depth_tm1.astype(int) + 1
    oldest_t = segment.newest_t - segment.depth_t.astype(int) + 1
    assert np.all((oldest_tm1 >= 0) & (oldest_t >= oldest_tm1))
    assert np.all(segment.newest_t < segment.num_frames)
    assert np.all(np.isfinite(segment.r_t) & np.isfinite(segment.priority))


def test_sound_segment_passes_the_check() -> None:
    check_segment(make_segment(), SPEC.stack)


def changed(field: str, index: int, value: float) -> Segment:
    segment = make_segment(transitions=5, frames_per_block=2)
    array = getattr(segment, field).copy()
    array[index] = value
    return segment._replace(**{field: array})


@pytest.mark.parametrize(
    ("segment", "rule"),
    [
        (changed("block_ends", 1, 0), "blocks that grow"),
        (changed("block_ends", 0, 0), "blocks that grow"),
        (changed("block_ends", -1, 10_000), "blocks that end with the bytes"),
        (changed("depth_tm1", 0, 0), "depths from 1 to 4"),
        (changed("depth_t", 4, 5), "depths from 1 to 4"),
        (changed("depth_tm1", 0, 2), "stacks inside the frames"),
        (changed("newest_tm1", 0, -1), "stacks inside the frames"),
        (changed("newest_t", 4, 6), "stacks inside the frames"),
        (changed("newest_t", 4, 4), "s_t after s_tm1"),
        (changed("depth_tm1", 4, 1), "no frame of s_t before those of s_tm1"),
        (changed("r_t", 2, np.nan), "finite returns"),
        (changed("r_t", 2, np.inf), "finite returns"),
        (changed("discount_t", 2, 1.5), "discounts from 0 to 1"),
        (changed("discount_t", 2, -0.1), "discounts from 0 to 1"),
        (changed("discount_t", 2, np.nan), "discounts from 0 to 1"),
        (changed("priority", 2, np.nan), "finite priorities >= 0"),
        (changed("priority", 2, np.inf), "finite priorities >= 0"),
        (changed("priority", 2, -1.0), "finite priorities >= 0"),
        (changed("a_tm1", 2, -1), "actions >= 0"),
    ],
)
def test_numbers_that_make_no_sense_together_are_an_error(segment: Segment, rule: str) -> None:
    with pytest.raises(PackingError, match=rf"Expect {rule} in segment \(0, 0, 0\)"):
        check_segment(segment, SPEC.stack)


def test_segment_without_frames_or_transitions_is_an_error() -> None:
    segment = make_segment(transitions=1)
    rows = {
        field: getattr(segment, field)[:0]
        for field in Segment._fields
        if isinstance(getattr(segment, field), np.ndarray) and "block" not in field
    }
    with pytest.raises(PackingError, match="Expect at least one transition"):
        check_segment(segment._replace(**rows), SPEC.stack)
    nothing = segment._replace(
        num_frames=0, blocks=segment.blocks[:0], block_ends=segment.block_ends[:0]
    )
    with pytest.raises(PackingError, match="Expect at least one frame"):
        check_segment(nothing, SPEC.stack)
