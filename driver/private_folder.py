"""A temporary folder that its user alone can enter, and that does not outlive its owner."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

_PREFIX = "troop-"
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
# What has to fit: logs, mostly. The object store lies in /dev/shm where there is room for it.
_ROOM_BYTES = 16 << 20


class PrivateFolder:
    """A new folder in a new one of mode 0700, which is locked as long as its owner lives.

    The lock tells the next start of the same user which of them killed runs have left.

    Attributes:
      path: the inner one.
    """

    def __init__(self, name: str, *, longest_bytes: int) -> None:
        """Make both in the first place that is fit; remove what killed runs left there.

        Args:
          name: of the inner one, the same for all that may be removed: what holds anything else is
            somebody's own, whatever it is called.
          longest_bytes: at most so long the inner one's path may be.

        Raises:
          OSError: no place is fit; the text says of each why.
        """
        reasons = []
        for base in dict.fromkeys([os.environ.get("TMPDIR") or "/tmp", *_PLACES]):
            try:
                _expect_fit(base, longest_bytes - len(f"/{_PREFIX}12345678/{name}"))
                _sweep(Path(base), name)
                self._outer, self._lock = _create_locked(Path(base), name)
                self.path = self._outer / name
            except OSError as error:
                reasons.append(f"{base}: {error.strerror or error}")
            else:
                return
        raise OSError(f"no place for temporary files: {'; '.join(reasons)}")

    def remove(self) -> None:
        """Remove both, and all in them; what resists is left to the next start."""
        shutil.rmtree(self._outer, ignore_errors=True)
        os.close(self._lock)


def _expect_fit(base: str, longest_bytes: int) -> None:
    """Raise OSError unless a folder in here can be kept from others, by a path short enough."""
    if not os.path.isabs(base):
        raise OSError("not an absolute path")
    if (excess_bytes := len(os.fsencode(base)) - longest_bytes) > 0:
        raise OSError(f"{excess_bytes} bytes too long for sockets")
    status = os.stat(base)
    if status.st_uid not in (0, os.geteuid()):
        raise OSError("belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise OSError("others can rename what is in it (no sticky bit)")
    if shutil.disk_usage(base).free < _ROOM_BYTES:
        raise OSError(f"less than {_ROOM_BYTES >> 20} MiB free")


def _create_locked(base: Path, name: str) -> tuple[Path, int]:
    """Return a new folder that holds one of a name, and the descriptor that holds its lock.

    It has the lock before it has the name that `_sweep` looks for.
    """
    new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=base))
    descriptor = os.open(new, os.O_DIRECTORY)
    try:
        (new / name).mkdir()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return new.rename(base / new.name[1:]), descriptor
    except OSError:  # a file system without locks, for one
        os.close(descriptor)
        shutil.rmtree(new)
        raise


def _sweep(base: Path, name: str) -> None:
    """Remove the folders of this user's runs that were killed before they could do it."""
    for path in base.glob(f"{_PREFIX}????????"):  # as tempfile.mkdtemp makes them
        with contextlib.suppress(OSError):  # gone meanwhile, a file or a link, another user's
            descriptor = os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its owner may live
                    if os.listdir(descriptor) == [name]:
                        shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)
