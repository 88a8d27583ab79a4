"""A file of records that outlives trouble with its disk: what cannot be written waits."""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Self

# What a user who watches a run is promised to wait at most.
MAX_FLUSH_S = 10.0
# Of records that wait for a disk that takes none; a row of scalars has 1 to 2 kB.
_MAX_WAITING_BYTES = 16 * 2**20
# A full disk takes back at most so many records that had found room.
_RECORDS_PER_WRITE = 256
# What a look at a file says whose name, or whose inode on another machine, is gone.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class RecordFile(ABC):
    """Appends records to a file; after the first of them no error of the disk reaches the caller.

        file = ...(folder=..., flush_s=5.0)  # OSError?
        file.append(record)
        if file.trouble: ...                 # why records wait
        file.close()

    Records wait in memory until a flush; a thread of the file's own flushes every `flush_s`. A
    flush that fails takes back what it wrote of a record, so that a reader never finds half of one
    before whole ones, and the next tries again. Where the file was removed, or cut by somebody
    else, what comes goes to the file that a subclass opens then.

    Any number of threads may call it.
    """

    def __init__(
        self,
        *,
        folder: os.PathLike[str],
        flush_s: float,
        max_waiting_bytes: int = _MAX_WAITING_BYTES,
    ) -> None:
        """Open the file and write its head.

        Args:
          folder: where the file is; asked each time, as it may be moved.
          flush_s: a record is in the file after at most so many seconds.
          max_waiting_bytes: beyond so much the oldest of the waiting records are lost.

        Raises:
          OSError: the file cannot be opened, or its head not be written; a new one is gone again.
        """
        if not 0 < flush_s <= MAX_FLUSH_S:
            raise ValueError(f"Expect 0 < `flush_s` <= {MAX_FLUSH_S:g}, actually: {flush_s}")
        self._folder = folder
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._trouble = ""
        self._lost_records = 0
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._name, self._fd, self._end = self._open()
        self._flusher = threading.Thread(
            target=self._keep_flushing, args=(flush_s,), name="record-flusher", daemon=True
        )
        self._flusher.start()

    @abstractmethod
    def _open_file(self, folder: Path) -> tuple[str, int]:
        """Return the name and a descriptor of the file to append to, which holds whole records."""

    @abstractmethod
    def _head(self) -> bytes:
        """Return what is written first each time that the file is opened."""

    @property
    def path(self) -> Path:
        """The file; the newest, where a first one was removed."""
        return Path(self._folder) / self._name

    @property
    def trouble(self) -> str:
        """One line about what kept the latest flush from writing; "" if nothing did."""
        return self._trouble

    @property
    def lost_records(self) -> int:
        """How many records will never be in a file: too many waited, or still did at the end."""
        return self._lost_records

    def append(self, record: bytes) -> None:
        """Add a record behind all others."""
        with self._lock:
            if self._closing.is_set():
                raise ValueError(f"Expect an open file, actually closed: {self.path}")
            self._waiting.append(record)
            self._waiting_bytes += len(record)
            if self._waiting_bytes > self._max_waiting_bytes and not self._trouble:
                self.flush()
            while self._waiting_bytes > self._max_waiting_bytes:
                self._waiting_bytes -= len(self._waiting.popleft())
                self._lost_records += 1

    def flush(self) -> None:
        """Write what waits; where that fails, `trouble` says why, and it waits on."""
        with self._lock:
            if self._fd < 0:
                return
            try:
                if not self._is_there():
                    gone = self._fd
                    self._name, self._fd, self._end = self._open()
                    with suppress(OSError):
                        os.close(gone)
                self._write_waiting()
            except OSError as error:
                self._trouble = self._cannot_be_written(error)
            else:
                self._trouble = ""

    def close(self) -> None:
        """Flush and close; what cannot be written now is lost. Closing twice is allowed."""
        self._closing.set()
        self._flusher.join()
        with self._lock:
            if self._fd < 0:
                return
            self.flush()
            self._lost_records += len(self._waiting)
            self._waiting.clear()
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as error:  # a network's disk may have kept its refusal until now
                self._trouble = self._cannot_be_written(error)

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def _keep_flushing(self, flush_s: float) -> None:
        while not self._closing.wait(flush_s):
            self.flush()

    def _cannot_be_written(self, error: OSError) -> str:
        return f"{self.path}: cannot be written: {error.strerror or error}"

    def _open(self) -> tuple[str, int, int]:
        """Return the file's name and descriptor, and where its records end."""
        folder = Path(self._folder)
        name, fd = self._open_file(folder)
        old_end = os.fstat(fd).st_size
        try:
            head = self._head()
            _write_at(fd, head, old_end)
        except BaseException:
            with suppress(OSError):
                if old_end:
                    os.ftruncate(fd, old_end)
                else:
                    (folder / name).unlink()
            os.close(fd)
            raise
        return name, fd, old_end + len(head)

    def _is_there(self) -> bool:
        """Return whether the name still leads to the open file, with all that was written."""
        try:
            mine, named = os.fstat(self._fd), self.path.stat()
        except OSError as error:
            if error.errno in _GONE:
                return False
            raise
        return os.path.samestat(mine, named) and mine.st_size >= self._end

    def _write_waiting(self) -> None:
        if os.fstat(self._fd).st_size > self._end:
            os.ftruncate(self._fd, self._end)  # of a write that failed and could not be taken back
        while self._waiting:
            records = list(islice(self._waiting, _RECORDS_PER_WRITE))
            data = b"".join(records)
            try:
                _write_at(self._fd, data, self._end)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._fd, self._end)
                raise
            self._end += len(data)
            self._waiting_bytes -= len(data)
            for _ in records:
                self._waiting.popleft()


def _write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data`: a disk that fills up takes a part first, and refuses the rest."""
    left = memoryview(data)
    while left:
        written = os.pwrite(fd, left, offset)
        left, offset = left[written:], offset + written
