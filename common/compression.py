"""lz4 blocks of consecutive frames.

They are compressed once, on the actor, and decompressed once, on the learner's host.
"""

from __future__ import annotations

from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

# An lz4 block grows at most so many times: a byte adds 255 to the length of a match, and nothing
# adds more (lz4_Block_format.md, "Data structure").
MOST_EXPANSION = 255


def num_blocks(num_frames: int, frames_per_block: int) -> int:
    """Return how many blocks hold `num_frames` frames."""
    return -(-num_frames // frames_per_block)


def compress_frames(
    frames: NDArray[Any], frames_per_block: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Compress frames into lz4 blocks.

    Neighbouring frames of a game are alike, so a block of several is much smaller than its frames
    one by one; but a sample has to decompress whole blocks. docs/decisions.md has the measured
    table.

    Args:
      frames: dtype[F, *frame_shape], F >= 1.
      frames_per_block: frames in every block but the last.

    Returns:
      blocks: uint8[...], the blocks back to back.
      block_ends: int64[num_blocks], end offset of each block.
    """
    assert len(frames) >= 1, "Expect at least one frame"
    raw = np.ascontiguousarray(frames).data.cast("B")
    block_bytes = frames_per_block * (raw.nbytes // len(frames))
    parts = [
        lz4.block.compress(raw[start : start + block_bytes], store_size=False)
        for start in range(0, raw.nbytes, block_bytes)
    ]
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return np.frombuffer(b"".join(parts), np.uint8), ends


def decompress_block(block: memoryview, num_bytes: int) -> bytes:
    """Return the `num_bytes` bytes of one block's frames.

    It allocates them before it looks at the block, so a size that no such block can have is refused
    first.

    Raises:
      ValueError: the block is corrupt or of another size.
    """
    if num_bytes > MOST_EXPANSION * len(block):
        raise ValueError(
            f"Expect an lz4 block of {num_bytes} bytes, actually: {len(block)} compressed, at most "
            f"{MOST_EXPANSION} times as many"
        )
    try:
        frames: bytes = lz4.block.decompress(block, uncompressed_size=num_bytes)
    except (lz4.block.LZ4BlockError, OverflowError) as error:  # its sizes are C's int
        raise ValueError(f"Expect an lz4 block of {num_bytes} bytes, actually: {error}") from error
    if len(frames) != num_bytes:
        raise ValueError(f"Expect an lz4 block of {num_bytes} bytes, actually: {len(frames)}")
    return frames
