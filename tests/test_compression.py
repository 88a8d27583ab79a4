from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.compression import compress_frames, decompress_block, num_blocks


def decompress_all(
    blocks: NDArray, block_ends: NDArray, num_frames: int, frames_per_block: int, frame_bytes: int
) -> bytes:
    raw = b""
    start = 0
    for block, end in enumerate(block_ends.tolist()):
        frames = min(frames_per_block, num_frames - block * frames_per_block)
        raw += decompress_block(blocks.data[start:end], frames * frame_bytes)
        start = end
    return raw


def test_number_of_blocks_rounds_up() -> None:
    assert num_blocks(8, 4) == 8 / 4
    assert num_blocks(9, 4) == 8 / 4 + 1
    assert num_blocks(1, 4) == 1
    assert num_blocks(5, 1) == 5


def test_last_block_holds_what_is_left() -> None:
    frames = np.arange(10 * 6, dtype=np.uint8).reshape(10, 2, 3)
    blocks, ends = compress_frames(frames, 4)
    assert blocks.dtype == np.uint8
    assert ends.dtype == np.int64
    assert len(ends) == 3
    assert ends[-1] == len(blocks)
    last = decompress_block(blocks.data[int(ends[1]) :], (10 - 2 * 4) * 6)
    assert last == frames[8:].tobytes()


def test_each_block_decodes_without_the_others() -> None:
    frames = np.arange(12 * 6, dtype=np.uint8).reshape(12, 2, 3)
    blocks, ends = compress_frames(frames, 4)
    alone = bytes(blocks[ends[0] : ends[1]])
    assert decompress_block(memoryview(alone), 4 * 6) == frames[4:8].tobytes()


@given(
    num_frames=st.integers(1, 30),
    frames_per_block=st.integers(1, 12),
    dtype=st.sampled_from(["uint8", "float32"]),
    values=st.integers(1, 256),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=100, deadline=None)
def test_round_trip_is_exact(
    num_frames: int, frames_per_block: int, dtype: str, values: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, values, (num_frames, 5, 7)).astype(dtype)
    blocks, ends = compress_frames(frames, frames_per_block)
    assert len(ends) == num_blocks(num_frames, frames_per_block)
    size = frames[0].nbytes
    raw = decompress_all(blocks, ends, num_frames, frames_per_block, size)
    assert raw == frames.tobytes()


def test_frames_that_are_a_view_with_gaps_are_compressed_as_they_look() -> None:
    frames = np.arange(12 * 6, dtype=np.uint8).reshape(12, 2, 3)[::2]
    blocks, ends = compress_frames(frames, 4)
    assert decompress_all(blocks, ends, 6, 4, 6) == frames.tobytes()


def test_alike_frames_share_a_block_cheaply() -> None:
    frames = np.tile(np.random.default_rng(0).integers(0, 256, (1, 40, 40), np.uint8), (8, 1, 1))
    together, _ = compress_frames(frames, 8)
    apart, _ = compress_frames(frames, 1)
    assert len(together) < len(apart) / 4


def test_no_frames_are_refused() -> None:
    with pytest.raises(AssertionError, match="Expect at least one frame"):
        compress_frames(np.zeros((0, 2, 3), np.uint8), 4)


@pytest.mark.parametrize("wrong", [23, 25])
def test_block_of_another_size_is_refused(wrong: int) -> None:
    blocks, _ = compress_frames(np.ones((4, 2, 3), np.uint8), 4)
    with pytest.raises(ValueError, match=f"Expect an lz4 block of {wrong} bytes, actually: "):
        decompress_block(blocks.data, wrong)


def test_corrupt_block_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect an lz4 block of 24 bytes, actually: "):
        decompress_block(memoryview(b"\xff" * 9), 24)
