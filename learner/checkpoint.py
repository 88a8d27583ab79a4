"""Checkpoints: written whole or not at all, read without running anybody's code."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

_NAME = re.compile(r"checkpoint_(\d{10,})\.pt")
_BEST = "best.pt"
# What torch.load(weights_only=True) takes back, besides tensors. Exact types: numpy's float64 is a
# float, too.
_PLAIN_TYPES = (bool, int, float, str, type(None))


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not a whole one."""


class SoundCheckpoint(NamedTuple):
    """The newest checkpoint that can be read.

    Fields:
      path: where it is.
      payload: what it holds, as `load` returns it.
      skipped: one line for each newer one, newest first: why it could not be read.
    """

    path: Path
    payload: dict[str, Any]
    skipped: list[str]


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` so that a reader finds the old file or the new one, also after a power cut.

    Args:
      path: where to; its folder must exist.
      payload: nested dicts, lists and tuples of tensors, numbers, text, booleans and None.

    Raises:
      TypeError: it holds something that `load` would refuse; nothing was written.
      OSError: it could not be written; the old file is still there, and nothing else.
    """
    _expect_plain(payload, "payload")
    # In memory first: torch's own writer, when a disk refuses it, raises a RuntimeError about its
    # archive's position.
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    # In the same folder, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    # The rename itself is on the disk only once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> dict[str, Any]:
    """Return what `save` wrote, tensors on the CPU.

    Raises:
      CheckpointError: the file is missing, unreadable, truncated, damaged or something else; one
        line says which.
    """
    if not path.is_file():
        raise CheckpointError(f"Expect a checkpoint at {path}, actually: no such file")
    # Torch's own reader tells a truncated file from a foreign one by guessing; the archive's
    # directory knows.
    if not _is_archive(path):
        raise CheckpointError(
            f"Expect a checkpoint at {path}, actually: truncated, or no checkpoint at all"
        )
    try:
        _expect_undamaged(path)
        payload = torch.load(path, weights_only=True, map_location="cpu")
    # Damage in the archive's directory, or inside the pickle, may end in any of these.
    except (
        *(OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile),
        *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
        *(ArithmeticError, struct.error, zlib.error),
    ) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise CheckpointError(
            f"Expect a checkpoint at {path}, actually unreadable: {reason}"
        ) from error
    if not isinstance(payload, dict):
        raise CheckpointError(
            f"Expect a checkpoint at {path}, actually: a {type(payload).__name__}"
        )
    return payload


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True  # with a damaged end


def _expect_undamaged(path: Path) -> None:
    """Compare the archive's checksums, which torch does not; half as long as its own reading."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"damaged in {damaged}")
        for member in archive.infolist():
            # Torch writes none. Of a member that one flipped bit makes a folder it reads nothing,
            # and hands out memory as it finds it.
            if member.external_attr:
                raise zipfile.BadZipFile(f"damaged in the attributes of {member.filename}")


def _expect_plain(value: object, where: str) -> None:
    if type(value) is dict:
        for key, item in value.items():
            _expect_plain(key, f"a key of {where}")
            _expect_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        assert isinstance(value, list | tuple)
        for index, item in enumerate(value):
            _expect_plain(item, f"{where}[{index}]")
    elif type(value) not in _PLAIN_TYPES and type(value) is not torch.Tensor:
        raise TypeError(
            f"Expect `{where}` to be a tensor, number, text, None, dict, list or tuple, "
            f"actually: {type(value).__module__}.{type(value).__name__}"
        )


def _delete(paths: list[Path]) -> None:
    """Delete files; those that cannot be are tried again with the next checkpoint."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


class CheckpointFolder:
    """The last few checkpoints of a run, and the best one. One writer; readers at any time."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Open the folder; it is made with the first checkpoint.

        Args:
          folder: where the checkpoints are.
          keep: newest checkpoints that survive a save, >= 1; `best` is never deleted.
        """
        if keep < 1:
            raise ValueError(f"Expect `keep` >= 1, actually: {keep}")
        self._folder = folder
        self._keep = keep

    @property
    def best(self) -> Path:
        """Path of the best checkpoint, whether there is one or not."""
        return self._folder / _BEST

    def save(self, payload: dict[str, Any], learner_step: int) -> Path:
        """Write a checkpoint, delete old ones, and return its path.

        Raises:
          OSError: it could not be written; those written before are still there.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        # Of a writer that was killed; first of all, since the disk may need the room.
        _delete(list(self._folder.glob(".checkpoint_*.tmp")))
        path = self._folder / f"checkpoint_{learner_step:010d}.pt"
        save(path, payload)
        # A resumed run may have gone back behind others.
        _delete([old for old in self._paths()[: -self._keep] if old != path])
        return path

    def newest(self) -> Path | None:
        """Return the checkpoint with the most learner steps, None before the first."""
        paths = self._paths()
        return paths[-1] if paths else None

    def newest_sound(self) -> SoundCheckpoint | None:
        """Return the newest checkpoint that `load` takes, None where there are none at all.

        Raises:
          CheckpointError: there are some, and all are damaged; one line about the newest.
        """
        errors: list[CheckpointError] = []
        for path in reversed(self._paths()):
            try:
                payload = load(path)
            except CheckpointError as error:
                errors.append(error)
            else:
                return SoundCheckpoint(path, payload, [str(error) for error in errors])
        if errors:
            raise errors[0]
        return None

    def named(self, name: str) -> Path:
        """Return the checkpoint that a user means by `last`, `best` or a path.

        Raises:
          CheckpointError: there is no last one yet.
        """
        if name == "best":
            return self.best
        if name != "last":
            return Path(name)
        newest = self.newest()
        if newest is None:
            raise CheckpointError(f"{self._folder}: has no checkpoint yet")
        return newest

    def _paths(self) -> list[Path]:
        """Return the checkpoints by learner step."""
        if not self._folder.is_dir():
            return []
        found = [
            (match, path)
            for path in self._folder.iterdir()
            if (match := _NAME.fullmatch(path.name))
        ]
        return [path for match, path in sorted(found, key=lambda item: int(item[0][1]))]
