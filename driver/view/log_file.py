"""The log of a run: entries with their time, appended whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from common.files import open_in_place


class LogFile:
    """Appends entries; those that the disk refuses are counted, and the count is in the file later.

    One thread at a time.
    """

    def __init__(self, place: os.PathLike[str]) -> None:
        """Prepare; `place` says where the file is, and is asked each time."""
        self._place = place
        self._missing = 0

    def append(self, text: str) -> str:
        """Append an entry.

        Returns:
          One line for the user where this is the first entry that cannot be written, else "".
        """
        path = Path(self._place)
        stamp = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        before = f"{stamp} (could not be written before this: {self._missing})\n"
        try:
            line = f"{before * bool(self._missing)}{stamp} {text}\n"
            _append(path, line.encode(errors="backslashreplace"))
        except OSError as error:
            self._missing += 1
            if self._missing > 1:
                return ""
            return (
                f"{path}: cannot be written ({error.strerror or error}); until it can, what "
                "is said here is not logged"
            )
        self._missing = 0
        return ""


def _append(path: Path, data: bytes) -> None:
    """Append all of `data`, or nothing of it where the disk refuses a part."""
    with os.fdopen(open_in_place(path, os.O_WRONLY | os.O_APPEND), "ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
