"""A lock that the kernel lets go of when its process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import socket
from pathlib import Path

from common.files import open_in_place
from common.schema import one_line


class LockedError(Exception):
    """Another process holds the lock; the text says which."""


def lock_file(path: Path) -> tuple[int, str]:
    """Take the lock, and write into the file who holds it, with a word that nobody else has.

    A program that this process starts does not inherit it. A file system that has no locks refuses
    nobody.

    Returns:
      A descriptor, which to close is to let go; and what was written.

    Raises:
      LockedError: another process holds it.
      OSError: the file cannot be written.
    """
    fd = open_in_place(path, os.O_RDWR)
    try:
        _take(fd)
        owner = f"{os.getpid()} {socket.gethostname()} {secrets.token_hex(16)}\n"
        # Never empty, so that whoever is refused can read whose it is.
        os.pwrite(fd, owner.encode(), 0)
        os.ftruncate(fd, len(owner.encode()))
        with contextlib.suppress(OSError):
            os.fsync(fd)  # hosts that share the folder know it by these words
    except BaseException:
        os.close(fd)
        raise
    return fd, owner


def _take(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        said = os.pread(fd, 1_000, 0).decode(errors="replace").strip()
        pid, host, *_ = [*one_line(said, 100).split(" "), "?", "?"]
        raise LockedError(f"process {pid} on {host}") from error
    except OSError:
        pass  # a file system without locks: that is no reason not to train on it
