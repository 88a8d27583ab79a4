"""A lock that the kernel lets go of when its process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from common.files import open_in_place
from common.schema import one_line


class LockedError(Exception):
    """Another process holds the lock; the text says which."""


def lock_file(path: Path) -> int:
    """Take the lock, and write into the file who holds it.

    A program that this process starts does not inherit it. A file system that has no locks refuses
    nobody.

    Returns:
      A descriptor; to close it is to let go.

    Raises:
      LockedError: another process holds it.
      OSError: the file cannot be written.
    """
    fd = open_in_place(path, os.O_RDWR)
    try:
        _take(fd)
        owner = f"{os.getpid()} {socket.gethostname()}\n".encode()
        # Never empty, so that whoever is refused can read whose it is.
        os.pwrite(fd, owner, 0)
        os.ftruncate(fd, len(owner))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _take(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        said = os.pread(fd, 1_000, 0).decode(errors="replace").strip()
        pid, _, host = one_line(said, 100).partition(" ")
        raise LockedError(f"process {pid} on {host}") from error
    except OSError:
        pass  # a file system without locks: that is no reason not to train on it
