"""The manifest of a snapshot: all of a shard's state but the segments, and where those lie.

Layout, little endian: a header (see `_HEADER`), JSON, the arrays of `_ARRAYS` one after the other,
and a CRC-32 of all that. No pickle, and a changed byte is an error.
"""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from common.reports import ShardHistory
from common.schema import SHARE, Count, fit, from_zero
from common.types import ObservationSpec, SegmentName
from replay.state import ShardState, SnapshotError

_MAGIC = b"TRSS"
_FORMAT = 1
_HEADER = struct.Struct("<4sIQ")  # magic, format, bytes of JSON
_CHECKSUM = struct.Struct("<I")
_ARRAYS = (("masses", "<f8"), ("names", "<i8"), ("first_ids", "<i8"), ("sizes", "<i8"))

# Names turned into an array at once: half a millisecond under the interpreter lock.
_NAMES_AT_ONCE = 4096


class _Observation(TypedDict):
    frame_shape: tuple[Count, ...]
    dtype: str
    stack: Count


class _Plain(TypedDict):
    """The JSON part; see replay.state.ShardState."""

    shard: Count
    shards: Count
    observation: _Observation
    incarnation: Count
    alpha: Annotated[float, SHARE]
    inserted: Annotated[int, from_zero(2**40)]
    rng: dict[str, Any]
    counters: dict[str, Count]
    lengths: list[Count]
    runs: list[list[Count]]


class Chunk(NamedTuple):
    """A file of packed segments back to back; never changed once it is written.

    Fields:
      number: names it; never used again in its folder.
      num_bytes: its size.
      checksum: CRC-32 of the whole file.
    """

    number: int
    num_bytes: int
    checksum: int


class Run(NamedTuple):
    """Consecutive segments in a chunk.

    Fields:
      chunk: where they lie.
      offset: of the first one, in bytes.
      num_segments: how many.
    """

    chunk: Chunk
    offset: int
    num_segments: int


class Manifest(NamedTuple):
    """A snapshot without the segments' bytes.

    Fields:
      state: the shard's, with no `segments`.
      sizes: int64[S], bytes of each packed segment.
      runs: where the S segments lie, in their order.
    """

    state: ShardState
    sizes: NDArray[np.int64]
    runs: tuple[Run, ...]


def pack_manifest(manifest: Manifest) -> Iterator[bytes | memoryview]:
    """Yield the manifest's bytes in parts; `unpack_manifest` is the inverse of all together."""
    state = manifest.state
    arrays = {
        "masses": state.masses,
        "names": _name_array(state.names),
        "first_ids": state.first_ids,
        "sizes": manifest.sizes,
    }
    plain = {
        "shard": state.shard,
        "shards": state.shards,
        "observation": state.observation._asdict(),
        "incarnation": state.incarnation,
        "alpha": state.alpha,
        "inserted": state.inserted,
        "rng": state.rng,
        "counters": state.history._asdict(),
        "lengths": [len(arrays[name]) for name, _ in _ARRAYS],
        "runs": [[*run.chunk, run.offset, run.num_segments] for run in manifest.runs],
    }
    text = json.dumps(plain).encode()
    parts: list[bytes | memoryview] = [_HEADER.pack(_MAGIC, _FORMAT, len(text)), text]
    for name, dtype in _ARRAYS:
        parts.append(np.ascontiguousarray(arrays[name], dtype).view(np.uint8).data)
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
        yield part
    yield _CHECKSUM.pack(checksum)


def unpack_manifest(packed: bytes) -> Manifest:
    """Return the manifest.

    Raises:
      SnapshotError: `packed` was cut, changed, or is something else.
    """
    least = _HEADER.size + _CHECKSUM.size
    if len(packed) < least:
        raise SnapshotError(f"Expect a manifest of >= {least} bytes, actually: {len(packed)}")
    magic, layout, json_bytes = _HEADER.unpack_from(packed)
    if magic != _MAGIC or layout != _FORMAT:
        raise SnapshotError(f"Expect a manifest of format {_FORMAT}, actually: {magic!r} {layout}")
    (checksum,) = _CHECKSUM.unpack_from(packed, len(packed) - _CHECKSUM.size)
    if zlib.crc32(memoryview(packed)[: -_CHECKSUM.size]) != checksum:
        raise SnapshotError(f"Expect a manifest with checksum {checksum:#x}: its bytes changed")
    try:
        return _unpack(packed, json_bytes)
    # Not what we write: numbers of thousands of digits, lists in lists in lists.
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise SnapshotError(f"Expect a sound manifest, actually: {error}") from error


def _unpack(packed: bytes, json_bytes: int) -> Manifest:
    offset = _HEADER.size + json_bytes
    plain = fit(json.loads(packed[_HEADER.size : offset]), _Plain)
    arrays: dict[str, NDArray[Any]] = {}
    for (name, dtype), length in zip(_ARRAYS, plain["lengths"], strict=True):
        # Aligned copies that do not hold on to `packed`.
        arrays[name] = np.frombuffer(packed, dtype, length, offset).copy()
        offset += arrays[name].nbytes
    if offset + _CHECKSUM.size != len(packed):
        raise ValueError(f"{len(packed)} bytes where {offset + _CHECKSUM.size} are described")
    runs = tuple(
        Run(Chunk(number, num_bytes, checksum), start, num_segments)
        for number, num_bytes, checksum, start, num_segments in plain["runs"]
    )
    segments = len(arrays["sizes"])
    if len(arrays["first_ids"]) != segments or sum(r.num_segments for r in runs) != segments:
        raise ValueError(f"ids or places of other than {segments} segments")
    state = ShardState(
        shard=plain["shard"],
        shards=plain["shards"],
        observation=ObservationSpec(**plain["observation"]),
        incarnation=plain["incarnation"],
        alpha=plain["alpha"],
        inserted=plain["inserted"],
        segments=(),
        first_ids=arrays["first_ids"],
        masses=arrays["masses"],
        names=tuple(SegmentName(*name) for name in arrays["names"].reshape(-1, 3).tolist()),
        rng=plain["rng"],
        history=ShardHistory(**plain["counters"]),
    )
    return Manifest(state, arrays["sizes"], runs)


def _name_array(names: tuple[SegmentName, ...]) -> NDArray[np.int64]:
    """Return int64[3 * names], piece by piece, so that other threads get their turn."""
    pieces = [
        np.fromiter(itertools.chain.from_iterable(names[i : i + _NAMES_AT_ONCE]), np.int64)
        for i in range(0, len(names), _NAMES_AT_ONCE)
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
