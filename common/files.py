"""The door through which files come in and go out: whatever lies in a run's folder is a stranger's.

Reading takes regular files alone, follows no link, and knows how much it may get before it reads.
Writing follows no link either, and uses names that nobody can guess.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

# Deeper than anything that we write.
_MOST_DEPTH = 32
_TEMPORARY = ".troop-"
# What a file system says that cannot put a folder's names on the disk by themselves.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)


class UnreadableFile(ValueError):
    """A file that is not what it has to be; one line names it and says why."""


def open_regular(path: Path, most_bytes: int) -> BinaryIO:
    """Open a file to read it.

    Args:
      path: of a regular file; a link in the last place is refused. Whoever was given a path by the
        user, who may well name a link, resolves it first.
      most_bytes: it may have.

    Raises:
      UnreadableFile: it is no regular file, or too large.
      OSError: it cannot be opened.
    """
    try:
        # Without O_NONBLOCK a FIFO would wait for somebody who writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        # A link, or a socket: nothing that a later try would find otherwise.
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UnreadableFile(f"{path}: cannot be read: is no regular file") from error
        raise
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableFile(f"{path}: cannot be read: is no regular file")
        if found.st_size > most_bytes:
            raise UnreadableFile(
                f"{path}: cannot be read: has {found.st_size:,} bytes, more than {most_bytes:,}"
            )
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """Return a file's content.

    Raises:
      UnreadableFile: it is no regular file, or too large.
      OSError: it is not there, or the disk does not give it.
    """
    with open_regular(path, most_bytes) as file:
        # What it had when it was measured: one that grows meanwhile is not read for ever, and
        # Python sets aside as much as it is asked for, however little there is.
        return file.read(os.fstat(file.fileno()).st_size)


def read_text(path: Path, most_bytes: int) -> str:
    """Return a UTF-8 file's content.

    Raises:
      UnreadableFile: it cannot be read, for whatever reason.
    """
    try:
        return read_bytes(path, most_bytes).decode()
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{path}: cannot be read: {error}") from error


def read_json(path: Path, most_bytes: int) -> Any:
    """Return what a JSON file holds; raise as `read_text`, and where it is no JSON, or too deep."""
    try:
        content = json.loads(read_text(path, most_bytes))
    except RecursionError as error:
        raise UnreadableFile(f"{path}: cannot be read: is nested too deeply") from error
    except UnreadableFile:
        raise
    except ValueError as error:  # also of a number with thousands of digits
        raise UnreadableFile(f"{path}: cannot be read: {error}") from error
    if is_deep(content):
        raise UnreadableFile(f"{path}: cannot be read: is nested too deeply")
    return content


def follow(path: Path) -> Path:
    """Return where a path of the user's own leads: links of theirs are followed.

    Raises:
      UnreadableFile: they lead in a circle, or `~name` to nobody.
    """
    try:
        return path.expanduser().resolve()
    except (RuntimeError, OSError) as error:
        raise UnreadableFile(f"{path}: cannot be read: leads nowhere") from error


def is_deep(content: Any) -> bool:
    """Return whether lists and dictionaries lie in each other deeper than in any of our files."""
    level = [content]
    for _ in range(_MOST_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def write_whole(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file so that a reader finds the old one or the new one, also after a power cut.

    A link in its place is replaced, not followed.

    Args:
      path: of the file; its folder must exist.
      parts: the content, piece by piece.

    Raises:
      OSError: it could not be written; the old file is still there, and nothing else.
    """
    # In the same folder, since a rename is atomic only within one file system.
    temporary = unguessable(path)
    try:
        with open_new(temporary) as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave an empty file
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)  # the rename itself is on the disk only once the folder is


def unguessable(path: Path) -> Path:
    """Return a name beside `path`, of its kind, for what becomes that file once it is whole."""
    return path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}{path.suffix}")


def open_new(path: Path) -> BinaryIO:
    """Make a file and open it to write; raise as `open_new_fd`."""
    return os.fdopen(open_new_fd(path), "wb")


def open_new_fd(path: Path) -> int:
    """Make a file and return a descriptor to write it by.

    Raises:
      OSError: it cannot be made; FileExistsError where anything has its name already.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666)


def open_in_place(path: Path, flags: int) -> int:
    """Return a descriptor of a file that is changed in place, made if need be.

    Raises:
      OSError: it cannot be opened; or it is a link, has another name elsewhere, or is no regular
        file, so that somebody else's file would be changed.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return fd
    os.close(fd)
    raise OSError(errno.EMLINK, "Is no regular file with this one name", str(path))


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk, where its file system knows of such a thing.

    Raises:
      OSError: the disk refuses.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Delete a file; one that is gone is no trouble, nor is a folder, which stays.

    Raises:
      OSError: the disk refuses.
    """
    with suppress(FileNotFoundError, IsADirectoryError):
        path.unlink()


def is_leftover(name: str) -> bool:
    """Return whether a file of this name may be what a killed writer of `write_whole` left."""
    return name.startswith(_TEMPORARY)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers of `write_whole` left in a folder that nobody else writes to."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        with suppress(OSError):
            path.unlink()


def find_link(folder: Path) -> Path | None:
    """Return a link inside a folder, or a file that has a name elsewhere, too; None without any.

    Raises:
      OSError: a folder cannot be looked into.
    """

    def fail(error: OSError) -> None:
        raise error

    for where, folders, files in os.walk(folder, onerror=fail):
        for name in sorted([*folders, *files]):
            path = Path(where, name)
            try:
                found = path.lstat()
            except FileNotFoundError:  # a run that goes on deletes old files
                continue
            is_second_name = stat.S_ISREG(found.st_mode) and found.st_nlink > 1
            if stat.S_ISLNK(found.st_mode) or is_second_name:
                return path
    return None
