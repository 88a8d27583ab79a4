"""Snapshots of one replay shard on disk: written whole or not at all, and only what is new."""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.files import (
    UnreadableFile,
    open_new,
    read_bytes,
    remove,
    remove_leftovers,
    sync_folder,
    write_whole,
)
from common.packing import segment_fingerprint
from common.schema import one_line
from replay.manifest import Chunk, Manifest, Run, pack_manifest, unpack_manifest
from replay.state import ShardState, SnapshotError

_MANIFEST = re.compile(r"snapshot_(\d{10,})\.manifest")
_CHUNK = re.compile(r"chunk_(\d{10,})\.segments")
# Of a hundred million transitions.
_MOST_MANIFEST_BYTES = 1 << 31

# Most runs of segments a snapshot starts from, and how many neighbours are rolled into one beyond
# that: what is small is rewritten once in a while, and the number of files stays bounded.
_MOST_RUNS = 64
_ROLLED_RUNS = 17

# A chunk stays on the disk until its last segment is evicted, so none is much larger than this, or
# than a sixteenth of all.
_CHUNK_BYTES = 32 << 20
_CHUNKS_OF_ALL = 16

# Bytes written at once. Joining them holds the interpreter lock (0.1 ms); checksum and write, which
# take longer, do not.
_BATCH_BYTES = 1 << 20

# Names a segment for ever: the id of its first transition and its fingerprint. A position alone
# does not: after a crash another segment may stand there.
_Key = tuple[int, bytes]


class FoundSnapshot(NamedTuple):
    """The newest snapshot that is whole.

    Fields:
      number: higher than those of the snapshots before it.
      state: the shard's.
      damaged: newer snapshots that had to be passed over, each with the reason, in one line.
    """

    number: int
    state: ShardState
    damaged: tuple[str, ...]


class _Piece(NamedTuple):
    """Segments `first` up to `stop` of a state: where they lie, or None if they have to be written.

    Fields:
      num_bytes: of these segments.
    """

    first: int
    stop: int
    num_bytes: int
    run: Run | None


class SnapshotFolder:
    """The last few snapshots of one shard.

    The loop it lives in:

        found = folder.read_newest()
        if found is not None:
            shard.restore(found.state)
        while ...:
            state = shard.capture()  # the shard's own thread
            folder.write(state)      # any thread

    Segments never change, so a snapshot is a manifest (replay.manifest) that says where they lie in
    chunks: files of packed segments, each written once and shared by the snapshots that follow. A
    write adds what no chunk holds yet. A manifest appears by renaming once all it names is on the
    disk, and only then is deleted what the last `keep` snapshots do not need. So a kill or a power
    cut at any moment leaves the snapshot before; what it left half-done, the next write removes.

    Snapshots share chunks: `keep` guards against a write that goes wrong, not against a disk that
    changes old bytes. Such a change is noticed, as checksums cover every byte.

    One process, one call at a time; the folder belongs to one shard.
    """

    def __init__(self, folder: os.PathLike[str], keep: int) -> None:
        """Open the folder; it is made with the first snapshot.

        Args:
          folder: where the snapshots are; asked each time, as it may be moved.
          keep: newest snapshots that survive a write, >= 1.
        """
        if keep < 1:
            raise ValueError(f"Expect `keep` >= 1, actually: {keep}")
        self._where = folder
        self._keep = keep
        self._places: dict[_Key, tuple[Chunk, int]] = {}  # chunk and offset of what was saved last
        self._chunks_of: dict[int, frozenset[int]] = {}  # of each whole snapshot
        self._damaged: set[int] = set()
        self._last_snapshot = 0
        self._last_chunk = 0

    def write(self, state: ShardState) -> int:
        """Write a snapshot, delete old ones, and return its number.

        Raises:
          OSError: the disk is full, gone or read-only. What was begun is removed if possible, the
            earlier snapshots are as they were, and the next call tries again. Should only deleting
            old files fail, the new snapshot is there.
        """
        self._prepare()
        keys = list(
            zip(state.first_ids.tolist(), map(segment_fingerprint, state.segments), strict=True)
        )
        sizes = np.fromiter(map(len, state.segments), np.int64, len(state.segments))
        pieces = _rolled(self._pieces(keys, sizes.tolist()))
        most = max(_CHUNK_BYTES, int(sizes.sum()) // _CHUNKS_OF_ALL)
        number = self._last_snapshot + 1
        begun: list[Path] = []
        try:
            runs: list[Run] = []
            for piece in pieces:
                if piece.run is not None:
                    runs.append(piece.run)
                    continue
                segments = state.segments[piece.first : piece.stop]
                runs += self._write_chunks(segments, most, begun)
            manifest = Manifest(state, sizes, tuple(runs))
            self._write_manifest(manifest, number, begun)
        except BaseException:
            self._damaged.add(number)  # should its manifest resist
            for path in reversed(begun):  # the manifest before what it names
                with contextlib.suppress(OSError):
                    remove(path)
            raise
        self._adopt(number, keys, manifest)
        self._remove_outdated()
        return number

    def read_newest(self) -> FoundSnapshot | None:
        """Return the newest snapshot that is whole, None where there is no snapshot at all.

        Raises:
          SnapshotError: there are snapshots, but all are damaged.
        """
        damaged: list[str] = []
        for number in sorted(self._numbers(_MANIFEST), reverse=True):
            path = self._manifest_path(number)
            try:
                manifest = unpack_manifest(read_bytes(path, _MOST_MANIFEST_BYTES))
                segments = tuple(self._read_segments(manifest))
            except (SnapshotError, UnreadableFile, OSError) as error:
                damaged.append(f"{path}: {one_line(str(error), 300)}")
                self._damaged.add(number)
                self._chunks_of.pop(number, None)
                continue
            state = manifest.state._replace(segments=segments)
            keys = zip(state.first_ids.tolist(), map(segment_fingerprint, segments), strict=True)
            self._adopt(number, list(keys), manifest)
            return FoundSnapshot(number, state, tuple(damaged))
        if damaged:
            raise SnapshotError(f"Expect a whole snapshot, actually damaged: {'; '.join(damaged)}")
        return None

    # --- what is there ---

    @property
    def _folder(self) -> Path:
        return Path(self._where)

    def _numbers(self, pattern: re.Pattern[str]) -> list[int]:
        """Return the numbers of the files so named; none if there is no folder."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [int(match[1]) for name in names if (match := pattern.fullmatch(name))]

    def _manifest_path(self, number: int) -> Path:
        return self._folder / f"snapshot_{number:010d}.manifest"

    def _chunk_path(self, number: int) -> Path:
        return self._folder / f"chunk_{number:010d}.segments"

    def _read_segments(self, manifest: Manifest) -> Iterator[bytes]:
        """Yield the segments that a manifest names; raise SnapshotError where they are damaged."""
        sizes = iter(manifest.sizes.tolist())
        for run in manifest.runs:
            path = self._chunk_path(run.chunk.number)
            content = memoryview(read_bytes(path, run.chunk.num_bytes))
            if len(content) != run.chunk.num_bytes:
                raise SnapshotError(
                    f"Expect {path.name} of {run.chunk.num_bytes} bytes, actually: {len(content)}"
                )
            if zlib.crc32(content) != run.chunk.checksum:
                raise SnapshotError(
                    f"Expect {path.name} with checksum {run.chunk.checksum:#x}: its bytes changed"
                )
            offset = run.offset
            for _ in range(run.num_segments):
                end = offset + next(sizes)
                yield bytes(content[offset:end])
                offset = end

    # --- writing ---

    def _prepare(self) -> None:
        """Make the folder and remove what a killed writer left: it may be what fills the disk."""
        for folder in (self._folder.parent, self._folder):
            if not folder.is_dir():
                folder.mkdir()
                sync_folder(folder.parent)
        manifests, chunks = self._numbers(_MANIFEST), self._numbers(_CHUNK)
        for number in manifests:
            if number not in self._chunks_of and number not in self._damaged:
                try:
                    path = self._manifest_path(number)
                    manifest = unpack_manifest(read_bytes(path, _MOST_MANIFEST_BYTES))
                except (SnapshotError, UnreadableFile):
                    self._damaged.add(number)
                else:
                    self._chunks_of[number] = _chunk_numbers(manifest)
        self._chunks_of = {n: used for n, used in self._chunks_of.items() if n in manifests}
        needed = frozenset().union(*self._chunks_of.values())
        self._last_snapshot = max([self._last_snapshot, *manifests])
        self._last_chunk = max([self._last_chunk, *chunks, *needed])
        remove_leftovers(self._folder)
        for chunk in set(chunks) - needed:
            remove(self._chunk_path(chunk))

    def _pieces(self, keys: Sequence[_Key], sizes: Sequence[int]) -> list[_Piece]:
        """Cut a state's segments into runs that lie on the disk and runs that do not."""
        chunks = {chunk for chunk, _ in self._places.values()}
        there = {chunk for chunk in chunks if self._is_there(chunk)}
        pieces: list[_Piece] = []
        last: tuple[Chunk, int] | None = None  # where the run at hand goes on
        for index, (key, size) in enumerate(zip(keys, sizes, strict=True)):
            place = self._places.get(key)
            if place is not None and place[0] not in there:
                place = None
            if pieces and place == last:
                piece = pieces[-1]
                run = piece.run and piece.run._replace(num_segments=piece.run.num_segments + 1)
                pieces[-1] = _Piece(piece.first, index + 1, piece.num_bytes + size, run)
            else:
                run = None if place is None else Run(*place, num_segments=1)
                pieces.append(_Piece(index, index + 1, size, run))
            last = None if place is None else (place[0], place[1] + size)
        return pieces

    def _is_there(self, chunk: Chunk) -> bool:
        try:
            return self._chunk_path(chunk.number).stat().st_size == chunk.num_bytes
        except FileNotFoundError:
            return False

    def _write_chunks(
        self, segments: Sequence[bytes], most: int, begun: list[Path]
    ) -> Iterator[Run]:
        """Write segments into new chunks of about `most` bytes and yield where they lie."""
        for group in _groups(segments, most):
            self._last_chunk += 1
            path = self._chunk_path(self._last_chunk)
            begun.append(path)
            num_bytes, checksum = _write_chunk(path, map(b"".join, _groups(group, _BATCH_BYTES)))
            yield Run(Chunk(self._last_chunk, num_bytes, checksum), 0, len(group))

    def _write_manifest(self, manifest: Manifest, number: int, begun: list[Path]) -> None:
        """Make the snapshot appear."""
        path = self._manifest_path(number)
        begun.append(path)
        parts = list(pack_manifest(manifest))
        sync_folder(self._folder)  # the chunks are in it before the manifest is
        write_whole(path, parts)

    def _adopt(self, number: int, keys: Sequence[_Key], manifest: Manifest) -> None:
        """Go on from this snapshot."""
        self._damaged.discard(number)
        self._last_snapshot = max(self._last_snapshot, number)
        self._chunks_of[number] = _chunk_numbers(manifest)
        self._places = {}
        sizes, first = manifest.sizes.tolist(), 0
        for run in manifest.runs:
            offset, stop = run.offset, first + run.num_segments
            for key, size in zip(keys[first:stop], sizes[first:stop], strict=True):
                self._places[key] = (run.chunk, offset)
                offset += size
            first = stop

    def _remove_outdated(self) -> None:
        """Delete what the kept snapshots do not need."""
        kept = sorted(self._chunks_of)[-self._keep :]
        self._chunks_of = {number: self._chunks_of[number] for number in kept}
        for number in set(self._numbers(_MANIFEST)) - set(kept):
            remove(self._manifest_path(number))
        sync_folder(self._folder)  # no manifest comes back after what it names is gone
        needed = frozenset().union(*self._chunks_of.values())
        for chunk in set(self._numbers(_CHUNK)) - needed:
            remove(self._chunk_path(chunk))


def _chunk_numbers(manifest: Manifest) -> frozenset[int]:
    return frozenset(run.chunk.number for run in manifest.runs)


def _rolled(pieces: list[_Piece]) -> list[_Piece]:
    """Return the pieces, the cheapest neighbours to be written anew as one if there are too many.

    The cheapest are the youngest ones as a rule, so that each byte is rewritten seldom.
    """
    pieces = list(pieces)
    while len(pieces) > _MOST_RUNS:
        sizes: NDArray[np.int64] = np.array([piece.num_bytes for piece in pieces], np.int64)
        sums = np.convolve(sizes, np.ones(_ROLLED_RUNS, np.int64), "valid")
        first = int(np.argmin(sums))
        window = slice(first, first + _ROLLED_RUNS)
        pieces[window] = [
            _Piece(pieces[first].first, pieces[window][-1].stop, int(sums[first]), None)
        ]
    return pieces


def _groups(segments: Sequence[bytes], num_bytes: int) -> Iterator[Sequence[bytes]]:
    """Yield consecutive segments, in groups that end as soon as they have so many bytes."""
    first = size = 0
    for index, segment in enumerate(segments):
        size += len(segment)
        if size >= num_bytes:
            yield segments[first : index + 1]
            first, size = index + 1, 0
    if first < len(segments):
        yield segments[first:]


def _write_chunk(path: Path, parts: Iterable[bytes]) -> tuple[int, int]:
    """Write a file down to the disk and return (bytes, CRC-32)."""
    num_bytes = checksum = 0
    with open_new(path) as file:
        for part in parts:
            checksum = zlib.crc32(part, checksum)
            num_bytes += file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return num_bytes, checksum
