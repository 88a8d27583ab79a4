"""Standard output and error, whatever the shell made of them: closed, full, gone, ASCII alone."""

from __future__ import annotations

import errno
import io
import os
import select
import shutil
import sys
from contextlib import suppress
from typing import Any, TextIO

# Nobody is there any more: a `head` that has seen enough, a terminal that hung up.
_NOBODY = (errno.EPIPE, errno.EIO)
# In 0 columns Rich prints nothing at all; in 2, Tyro wraps its help for ever.
_LEAST_COLUMNS = 20


class StandardStream(io.TextIOWrapper):
    """Text for a descriptor: from the first failure to write it goes nowhere, without a word.

    A disk that does not take it is worth one line on stderr. Characters that the encoding does not
    know are escaped.
    """

    def __init__(self, descriptor: int, before: TextIO | None) -> None:
        """Take the place of Python's own stream; `before` is None where that was closed."""
        self._raw = _Descriptor(descriptor, "wb", closefd=False)
        super().__init__(
            io.BufferedWriter(self._raw),
            encoding=getattr(before, "encoding", "utf-8"),
            errors="backslashreplace",
            # `python -u` has no buffer below the text.
            line_buffering=any(
                getattr(before, how, False) for how in ("line_buffering", "write_through")
            ),
        )

    @property
    def lost(self) -> OSError | None:
        """Why it goes nowhere, if it does."""
        return self._raw.lost


class _Descriptor(io.FileIO):
    lost: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write some of `data`, or all of it nowhere."""
        try:
            while (written := super().write(data)) is None:  # full, and set not to wait for room
                select.select([], [self], [])
        except OSError as error:
            self.lost = error
            with suppress(OSError):
                point_at_null(self.fileno())
                if error.errno not in _NOBODY:
                    said = f"launch.py: standard output: cannot be written: {error.strerror}\n"
                    os.write(2, said.encode())
            return memoryview(data).nbytes
        return written


def point_at_null(descriptor: int) -> None:
    """Let what anybody writes there go nowhere: C libraries and children, too."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    os.set_inheritable(descriptor, True)


def take_standard_streams() -> None:
    """Make `print` safe for the life of this process. Call it before anything opens a file.

    What the shell has closed (`>&-`) becomes /dev/null: else the next file that is opened would get
    its number, and with it whatever is printed there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            point_at_null(descriptor)
    columns = shutil.get_terminal_size().columns
    if columns < _LEAST_COLUMNS or "COLUMNS" in os.environ:
        os.environ["COLUMNS"] = str(max(columns, _LEAST_COLUMNS))
    sys.stdout = StandardStream(1, sys.stdout)
    sys.stderr = StandardStream(2, sys.stderr)
