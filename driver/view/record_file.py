"""A file of records that outlives trouble with its disk: what cannot be written waits."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

# A full disk takes back at most so many records that had found room.
_RECORDS_PER_WRITE = 256
# What a look at a file says whose name, or whose inode on another machine, is gone.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class RecordFile:
    """Appends records to a file; after the first of them no error of the disk reaches the caller.

        file = RecordFile(folder=..., new_name=..., head=..., max_waiting_bytes=2**24)  # OSError?
        file.append(record)
        file.flush()                   # now and then; never raises OSError
        if file.trouble: ...           # why records wait
        file.close()

    Records wait in memory until a flush. One that fails takes back what it wrote of a record, so
    that a reader never finds half of one before whole ones, and the next tries again. Where the
    file was removed, or cut by somebody else, what comes goes to a new one.

    One thread at a time.
    """

    def __init__(
        self,
        *,
        folder: os.PathLike[str],
        new_name: Callable[[], str],
        head: Callable[[], bytes],
        max_waiting_bytes: int,
    ) -> None:
        """Make the file.

        Args:
          folder: where the file is; asked each time, as it may be moved.
          new_name: returns what a new file is to be called.
          head: returns what a new file begins with.
          max_waiting_bytes: beyond so much the oldest of the waiting records are lost.

        Raises:
          OSError: the file cannot be made, or its head not be written; there is none then.
        """
        self._folder = folder
        self._new_name = new_name
        self._head = head
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._trouble = ""
        self._lost_records = 0
        self._is_closed = False
        self._name, self._fd, self._end = self._make()

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
        """How many records will never be written."""
        return self._lost_records

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._is_closed

    def append(self, record: bytes) -> None:
        """Add a record behind all others."""
        assert not self._is_closed, self.path
        self._waiting.append(record)
        self._waiting_bytes += len(record)
        if self._waiting_bytes > self._max_waiting_bytes and not self._trouble:
            self.flush()
        while self._waiting_bytes > self._max_waiting_bytes:
            self._waiting_bytes -= len(self._waiting.popleft())
            self._lost_records += 1

    def flush(self) -> None:
        """Write what waits; where that fails, `trouble` says why, and it waits on."""
        if self._is_closed:
            return
        try:
            if not self._is_there():
                gone = self._fd
                self._name, self._fd, self._end = self._make()
                with suppress(OSError):
                    os.close(gone)
            self._write_waiting()
        except OSError as error:
            self._trouble = f"{self.path}: cannot be written: {error.strerror or error}"
        else:
            self._trouble = ""

    def close(self) -> None:
        """Flush and close; what cannot be written now is lost. Closing twice is allowed."""
        if self._is_closed:
            return
        self.flush()
        self._is_closed = True
        self._lost_records += len(self._waiting)
        self._waiting.clear()
        try:
            os.close(self._fd)
        except OSError as error:  # a network's disk may have kept its refusal until now
            self._trouble = f"{self.path}: cannot be written: {error.strerror or error}"

    def _make(self) -> tuple[str, int, int]:
        name = self._new_name()
        path = Path(self._folder) / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o666)
        try:
            head = self._head()
            _write_at(fd, head, 0)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                path.unlink()
            raise
        return name, fd, len(head)

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
