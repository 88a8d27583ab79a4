"""Disks that refuse: a small one that can be filled, and a limit that needs no rights."""

from __future__ import annotations

import errno
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SmallDisk:
    """A file system of 256 KiB, which a test fills or makes read-only.

    Attributes:
      path: where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Leave no room for anything."""
        with (self.path / "ballast").open("ab", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError as error:
                    assert error.errno == errno.ENOSPC, error

    def free(self) -> None:
        """Undo `fill`."""
        (self.path / "ballast").unlink()

    def set_read_only(self, *, read_only: bool) -> None:
        """Refuse every change, or no longer."""
        mode = "ro" if read_only else "rw"
        command = ["mount", "-o", f"remount,{mode}", str(self.path)]
        subprocess.run(command, check=True, capture_output=True)


@contextmanager
def files_no_longer_than(size_bytes: int) -> Iterator[None]:
    """Refuse to this process, by the kernel, what would make a file longer; as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
