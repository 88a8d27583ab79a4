"""A temporary folder that its user alone can enter, and that does not outlive its owner."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

_PREFIX = "troop-"
_NAME = re.compile(_PREFIX + r"[a-z0-9_]{8}")  # as tempfile.mkdtemp makes them
# What has to fit: logs, mostly. The object store lies in /dev/shm where there is room for it.
_ROOM_BYTES = 16 * 2**20
_TRIES = 5
_PAUSE_S = 0.2


class NoPlace(Exception):
    """No folder can be made; the text says of each place why."""


class PrivateFolder:
    """A new folder of mode 0700, locked as long as its owner lives.

    The lock tells the next start of the same user which folders of runs that were killed may go.
    """

    def __init__(self, *, longest_bytes: int) -> None:
        """Create it in the first place that is fit; remove what killed runs left there.

        Args:
          longest_bytes: at most so long its path may be.

        Raises:
          NoPlace: no place is fit; the text says of each why.
        """
        reasons = []
        for base in _places():
            try:
                _expect_fit(base, longest_bytes)
                _sweep(base)
                self.path, self._descriptor = _create_locked(base)
                _expect_room(self.path)
            except OSError as error:
                reasons.append(f"{base}: {error.strerror or error}")
            else:
                return
        raise NoPlace(f"no place for temporary files: {'; '.join(reasons)}")

    def remove(self) -> None:
        """Remove it and all in it; what still resists is left to the next start."""
        _remove(self.path)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _places() -> list[Path]:
    """Return where to look for a place, the user's own wish first."""
    wish = os.environ.get("TMPDIR", "")
    places = [wish, "/tmp", "/var/tmp", "/dev/shm"]
    return [Path(place) for place in dict.fromkeys(places) if place]


def _expect_fit(base: Path, longest_bytes: int) -> None:
    """Raise OSError unless a folder in here can be kept from others, by a path short enough."""
    if not base.is_absolute():
        raise OSError("not an absolute path")
    length = len(os.fsencode(base)) + 1 + len(_PREFIX) + 8
    if length > longest_bytes:
        raise OSError(f"{length - longest_bytes} bytes too long for sockets")
    status = base.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise OSError("belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX:
        raise OSError("others can rename what is in it (no sticky bit)")


def _create_locked(base: Path) -> tuple[Path, int]:
    """Return a new folder and the descriptor that holds its lock."""
    for _ in range(_TRIES):
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        if (descriptor := _lock(path)) is not None:
            return path, descriptor
    raise OSError("folders vanish as soon as they are made")


def _lock(path: Path) -> int | None:
    """Return the descriptor that holds a folder's lock; None: somebody else has it, or it is gone.

    No link is followed, and nothing of another user is touched.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever sweeps may have had it between the two, and removed it.
        if os.fstat(descriptor).st_uid == os.geteuid() and os.path.samestat(
            os.fstat(descriptor), os.lstat(path)
        ):
            return descriptor
    except OSError:
        pass  # another holds it, or it is gone
    os.close(descriptor)
    return None


def _expect_room(path: Path) -> None:
    """Raise OSError, and remove the folder, unless there is room for what comes into it."""
    probe = path / "room"
    try:
        with probe.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _ROOM_BYTES)
        probe.unlink()
    except OSError:
        _remove(path)
        raise


def _sweep(base: Path) -> None:
    """Remove the folders of this user's runs that were killed before they could do it."""
    for path in base.glob(f"{_PREFIX}*"):
        if _NAME.fullmatch(path.name) and (descriptor := _lock(path)) is not None:
            _remove(path)
            os.close(descriptor)


def _remove(path: Path) -> None:
    """Remove a folder; processes that are just ending may still write into it."""
    for _ in range(_TRIES):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(_PAUSE_S)
