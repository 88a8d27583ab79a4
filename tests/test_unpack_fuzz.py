"""Bad bytes on the way from an actor to a batch: refused by name, or the right data; never else.

The checksum finds damage in transit. What a sender with a bug seals with a checksum that fits is
refused at replay's door, if its numbers say so, and else where its blocks are decompressed.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import lz4.block
import numpy as np
import pytest
from fakes import SPEC, held, make_replay, make_segment
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.compression import MOST_EXPANSION, compress_frames, decompress_block
from common.packing import PackingError, check_segment, pack_segment, unpack_segment
from common.types import SampledRows, Segment
from replay.decoding import Decoder
from replay.prioritized import PrioritizedReplay

_CHECKSUM_BYTES = 4
_ROWS = ("newest_tm1", "newest_t", "depth_tm1", "depth_t", "a_tm1", "r_t", "discount_t", "priority")
# What a random byte rarely hits.
_EXTREMES: dict[str, list[Any]] = {
    "i": [0, 1, -1, 2, 7, 2**31 - 1, 2**31 - 2, -(2**31)],
    "u": [0, 1, 4, 5, 254, 255],
    "f": [np.nan, np.inf, -np.inf, -0.0, -1.0, 1.5, 3.4e38, 1e-45],
}
_COUNTS = [0, 1, 2, 3, 5, 9, 1000, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
_ENDS = [0, 1, -1, 2**31, 2**62, 2**63 - 1, -(2**63), -2]

Stacks = tuple[NDArray[Any], NDArray[Any]]


def reseal(packed: bytes) -> bytes:
    """Return the bytes with a checksum that fits them."""
    body = packed[:-_CHECKSUM_BYTES]
    return body + struct.pack("<I", zlib.crc32(body))


def segment_of(transitions: int, per_block: int, sequence: int) -> Segment:
    return make_segment(
        actor=1, sequence=sequence, transitions=transitions, frames_per_block=per_block
    )


segments = st.builds(segment_of, st.integers(1, 12), st.integers(1, 6), st.integers(2, 9))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """What is left of a sound packed segment."""
    sound = pack_segment(draw(segments))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "remove", "splice", "noise"]))
    place = st.integers(0, len(sound) - 1)
    at = draw(place)
    if kind == "flip":
        bad = bytearray(sound)
        for place_, mask in draw(st.lists(st.tuples(place, st.integers(1, 255)), min_size=1)):
            bad[place_] ^= mask
        return bytes(bad)
    if kind == "cut":
        return sound[:at]
    if kind == "insert":
        return sound[:at] + draw(st.binary(min_size=1, max_size=64)) + sound[at:]
    if kind == "remove":
        return sound[:at] + sound[at + draw(st.integers(1, 40)) :]
    if kind == "splice":
        other = pack_segment(draw(segments))
        return sound[:at] + other[min(at, len(other)) :]
    return draw(st.binary(max_size=200))


@st.composite
def senseless(draw: st.DrawFn) -> Segment:
    """A segment some of whose numbers were replaced by extreme ones."""
    segment = draw(segments)
    for _ in range(draw(st.integers(1, 3))):
        field = draw(st.sampled_from([*_ROWS, "block_ends", "num_frames", "frames_per_block"]))
        if field in ("num_frames", "frames_per_block"):
            count: dict[str, Any] = {field: draw(st.sampled_from(_COUNTS))}
            segment = segment._replace(**count)
        else:
            array = getattr(segment, field).copy()
            if not len(array):
                continue
            values = _ENDS if field == "block_ends" else _EXTREMES[array.dtype.kind]
            array[draw(st.integers(0, len(array) - 1))] = draw(st.sampled_from(values))
            segment = segment._replace(**{field: array})
    return segment


@st.composite
def badly_compressed(draw: st.DrawFn) -> Segment:
    """A segment one of whose blocks is garbage or holds another number of frames."""
    segment = draw(segments)
    frame = SPEC.frame_bytes
    bounds = [0, *segment.block_ends.tolist()]
    blocks = [segment.blocks[a:b].tobytes() for a, b in zip(bounds, bounds[1:], strict=False)]
    at = draw(st.integers(0, len(blocks) - 1))
    raw = draw(st.sampled_from([0, 1, frame - 1, frame, 2 * frame, 6 * frame, 7 * frame, 10_000]))
    good = st.just(lz4.block.compress(b"\x05" * raw, store_size=False))
    blocks[at] = draw(st.one_of(good, st.binary(min_size=1, max_size=40)))
    return segment._replace(
        blocks=np.frombuffer(b"".join(blocks), np.uint8),
        block_ends=np.cumsum([len(block) for block in blocks], dtype=np.int64),
    )


def naive_blocks(segment: Segment) -> list[NDArray[Any] | None]:
    """Return the frames of each block, None for one that does not hold what it is said to."""
    blocks: list[NDArray[Any] | None] = []
    start, packed = 0, segment.blocks.tobytes()
    for number, end in enumerate(segment.block_ends.tolist()):
        left = segment.num_frames - number * segment.frames_per_block
        frames = min(left, segment.frames_per_block)
        try:
            raw = lz4.block.decompress(packed[start:end], uncompressed_size=1 << 20)
        except lz4.block.LZ4BlockError:
            raw = b""
        is_whole = len(raw) == frames * SPEC.frame_bytes
        array = np.frombuffer(raw, SPEC.dtype) if is_whole else None
        blocks.append(None if array is None else array.reshape(frames, *SPEC.frame_shape))
        start = end
    return blocks


def naive_row(segment: Segment, blocks: list[NDArray[Any] | None], i: int) -> Stacks | None:
    """Return (s_tm1, s_t) of row i; None where a block is bad that its frames lie in or between."""
    per_block = segment.frames_per_block
    first = int(segment.newest_tm1[i]) - int(segment.depth_tm1[i]) + 1
    needed = range(first // per_block, int(segment.newest_t[i]) // per_block + 1)
    if any(blocks[number] is None for number in needed):
        return None

    def stack(newest: int, depth: int) -> NDArray[Any]:
        observation = np.zeros(SPEC.shape, SPEC.dtype)
        for back in range(depth):
            block = blocks[(newest - back) // per_block]
            assert block is not None
            observation[SPEC.stack - 1 - back] = block[(newest - back) % per_block]
        return observation

    return (
        stack(int(segment.newest_tm1[i]), int(segment.depth_tm1[i])),
        stack(int(segment.newest_t[i]), int(segment.depth_t[i])),
    )


def one_row(reply: SampledRows, i: int) -> SampledRows:
    """Return row i alone, so that a bad row does not hide the others."""
    first_block = int(reply.row_blocks[:i].sum())
    last_block = first_block + int(reply.row_blocks[i])
    start = int(reply.block_bytes[:first_block].sum())
    stop = start + int(reply.block_bytes[first_block:last_block].sum())
    columns = reply._fields[: reply._fields.index("blocks")]
    rows = {name: getattr(reply, name)[i : i + 1] for name in columns}
    return reply._replace(
        **rows,
        blocks=reply.blocks[start:stop],
        block_bytes=reply.block_bytes[first_block:last_block],
        block_frames=reply.block_frames[first_block:last_block],
        row_blocks=reply.row_blocks[i : i + 1],
    )


NEIGHBOUR = make_segment(sequence=1, transitions=3)


def replay_with_neighbour() -> PrioritizedReplay:
    """Return a replay that has to evict for what comes next, and must not do so for nothing."""
    replay = make_replay(capacity=13, max_bytes=4000, alpha=0.0)
    assert replay.add(pack_segment(NEIGHBOUR)) is not None
    return replay


def expect_refused_or_right(packed: bytes) -> str:
    """Push, sample and decode; return how it ended. Anything undocumented fails the test."""
    replay = replay_with_neighbour()
    before = held(replay)
    try:
        added = replay.add(packed)
    except PackingError:
        added = None
        outcome = "refused"
    except ValueError as error:
        assert "Expect a segment of <= 13 transitions" in str(error)
        outcome = "too large"
    else:
        outcome = "accepted" if added is not None else "known"
    replay.check_valid()
    if outcome != "accepted":
        assert held(replay) == before
        return outcome
    segment = unpack_segment(packed)
    check_segment(segment, SPEC.stack)
    blocks, decoder = naive_blocks(segment), Decoder(spec=SPEC, threads=1)
    neighbours, sound = naive_blocks(NEIGHBOUR), NEIGHBOUR
    reply = replay.sample(len(replay.storage))
    assert len(set(reply.ids.tolist())) == len(replay.storage), "each row once"
    for i, number in enumerate(reply.ids.tolist()):
        mine = number >= NEIGHBOUR.num_transitions
        expected = (
            naive_row(segment, blocks, number - NEIGHBOUR.num_transitions)
            if mine
            else naive_row(sound, neighbours, number)
        )
        if expected is None:
            match = rf"Expect an lz4 block of .*, in transition {number} of replay shard 0"
            with pytest.raises(ValueError, match=match):
                decoder.decode(one_row(reply, i))
            outcome = "refused by the decoder"
        else:
            for actual, wanted in zip(decoder.decode(one_row(reply, i)), expected, strict=True):
                np.testing.assert_array_equal(actual[0], wanted)
    return outcome


# --- damage in transit ----------------------------------------------------------------------------


@given(damaged())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_are_refused(packed: bytes) -> None:
    if len(packed) > _CHECKSUM_BYTES and reseal(packed) == packed:
        return  # a splice may be one of the two, and a byte changed twice be as it was
    with pytest.raises(PackingError, match="Expect a segment"):
        unpack_segment(packed)
    replay = replay_with_neighbour()
    before = held(replay)
    with pytest.raises(PackingError, match="Expect a segment"):
        replay.add(packed)
    replay.check_valid()
    assert held(replay) == before


# --- damage that was sealed -----------------------------------------------------------------------


@given(damaged())
@settings(max_examples=300, deadline=None)
def test_sealed_damage_is_refused_or_comes_out_as_it_was_sealed(packed: bytes) -> None:
    expect_refused_or_right(reseal(packed) if len(packed) > _CHECKSUM_BYTES else packed)


@given(segments, st.data())
@settings(max_examples=300, deadline=None)
def test_header_of_any_numbers_is_refused_or_makes_sense(
    segment: Segment, data: st.DataObject
) -> None:
    """Any 4 aligned bytes of it become any number; rows, frames and sizes are among them."""
    packed = bytearray(pack_segment(segment))
    for _ in range(data.draw(st.integers(1, 2))):
        at = 4 * data.draw(st.integers(1, 12))
        number = data.draw(st.one_of(st.sampled_from(_COUNTS), st.integers(0, 2**32 - 1)))
        struct.pack_into("<I", packed, at, number)
    expect_refused_or_right(reseal(bytes(packed)))


@given(senseless())
@settings(max_examples=500, deadline=None)
def test_extreme_numbers_are_refused_or_make_sense(segment: Segment) -> None:
    expect_refused_or_right(pack_segment(segment))


@given(badly_compressed())
@settings(max_examples=300, deadline=None)
def test_block_of_other_frames_is_refused_by_name(segment: Segment) -> None:
    outcome = expect_refused_or_right(pack_segment(segment))
    assert outcome in ("refused", "accepted", "refused by the decoder")


def test_the_ways_to_end_are_all_seen() -> None:
    """The fuzz above reaches past the door, and what lies there."""
    sound = segment_of(9, 4, 7)
    assert expect_refused_or_right(pack_segment(sound)) == "accepted"
    assert expect_refused_or_right(pack_segment(sound)[:-1]) == "refused"
    assert expect_refused_or_right(pack_segment(NEIGHBOUR)) == "known"
    assert expect_refused_or_right(pack_segment(segment_of(14, 4, 7))) == "too large"
    other = sound._replace(num_frames=sound.num_frames + 1)
    assert expect_refused_or_right(pack_segment(other)) == "refused by the decoder"


# --- what the fuzz found --------------------------------------------------------------------------


def ends_that_wrap() -> Segment:
    """The differences of these ends, taken in int64, are all positive: 2**63 - 1, 2**63 - 1, ..."""
    segment = segment_of(9, 4, 7)
    ends = np.array([2**63 - 1, -2, len(segment.blocks)], np.int64)
    with np.errstate(over="ignore"):
        assert np.all(np.diff(ends, prepend=0) > 0)
    return segment._replace(block_ends=ends)


@pytest.mark.parametrize(
    ("segment", "rule"),
    [
        (segment_of(2, 4, 7)._replace(frames_per_block=2**32 - 1), "counts that fit into int32"),
        (segment_of(2, 4, 7)._replace(frames_per_block=2**31), "counts that fit into int32"),
        (
            segment_of(2, 4, 7)._replace(num_frames=2**32 - 1, frames_per_block=2**32 - 1),
            "counts that fit into int32",
        ),
        (
            segment_of(2, 4, 7)._replace(num_frames=2**31 - 1, frames_per_block=2**31 - 1),
            "frames that fit",
        ),
        (ends_that_wrap(), "blocks that grow"),
    ],
)
def test_counts_that_no_blocks_can_have_are_refused_at_the_door(
    segment: Segment, rule: str
) -> None:
    """They used to pass, and then to fail every sample, or an insert that had evicted already."""
    packed = pack_segment(segment)
    with pytest.raises(PackingError, match=rf"Expect {rule} in segment \(1, 0, 7\)"):
        check_segment(unpack_segment(packed), SPEC.stack)
    assert expect_refused_or_right(packed) == "refused"


def test_blocks_beyond_two_gigabytes_are_refused() -> None:
    segment = segment_of(2, 4, 7)
    endless = np.lib.stride_tricks.as_strided(segment.blocks, (2**31,), (0,))
    huge = segment._replace(blocks=endless, block_ends=np.array([2**31]))
    with pytest.raises(PackingError, match="Expect counts that fit into int32"):
        check_segment(huge, SPEC.stack)


def test_nothing_is_allocated_that_a_block_cannot_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    block = memoryview(lz4.block.compress(bytes(6), store_size=False))
    real, asked = lz4.block.decompress, []

    def decompress(data: memoryview, uncompressed_size: int) -> bytes:
        asked.append((uncompressed_size, len(data)))
        return bytes(real(data, uncompressed_size=uncompressed_size))

    monkeypatch.setattr(lz4.block, "decompress", decompress)
    assert decompress_block(block, 6) == bytes(6)
    for num_bytes in (255 * len(block) + 1, 2**31 - 1, 2**31, 2**40):
        match = f"Expect an lz4 block of {num_bytes} bytes, actually: {len(block)} compressed"
        with pytest.raises(ValueError, match=match):
            decompress_block(block, num_bytes)
    assert asked == [(6, len(block))]


@pytest.mark.parametrize("size", [1, 5, 13, 255, 4096, 28_224, 1 << 20, 50_000_000])
def test_most_expansion_is_never_passed(size: int) -> None:
    blocks, _ = compress_frames(np.zeros((1, size), np.uint8), 1)
    assert size <= MOST_EXPANSION * len(blocks)
    if size > 1 << 16:  # and the bound is no larger than it has to be
        assert size > (MOST_EXPANSION - 1) * len(blocks)
    assert decompress_block(blocks.data, size) == bytes(size)


def test_size_beyond_an_int_of_c_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match=f"Expect an lz4 block of {2**31} bytes, actually: "):
        decompress_block(memoryview(bytes(9_000_000)), 2**31)
