"""Checkpoints: written whole or not at all, read without running anybody's code."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from common.files import follow, open_regular, remove_leftovers, write_whole
from common.schema import Count, fit, one_line, shown

_NAME = re.compile(r"checkpoint_(\d{10,})\.pt")
_BEST = "best.pt"
# More than any network of ours with its optimiser.
_MOST_BYTES = 1 << 35
# Damage in the archive's directory, or inside the pickle, may end in any of these.
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile),
    *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, struct.error, zlib.error),
)
# What torch.load(weights_only=True) takes back, besides tensors. Exact types: numpy's float64 is a
# float, too.
_PLAIN_TYPES = (bool, int, float, str, type(None))


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not a whole one."""


class SoundCheckpoint(NamedTuple):
    """The newest checkpoint that can be used.

    Fields:
      path: where it is.
      payload: what it holds, as `load` returns it.
      skipped: one line for each that was passed over: why.
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
    write_whole(path, [buffer.getbuffer()])


def load(path: Path) -> dict[str, Any]:
    """Return what `save` wrote, tensors on the CPU.

    Raises:
      CheckpointError: the file is missing, unreadable, truncated, damaged or something else; one
        line says which.
    """
    try:
        with open_regular(path, _MOST_BYTES) as file:
            # Torch's own reader tells a truncated file from a foreign one by guessing; the
            # archive's directory knows.
            if not _is_archive(file):
                raise CheckpointError(
                    f"Expect a checkpoint at {path}, actually: truncated, or no checkpoint at all"
                )
            _expect_no_bomb(file)
            _expect_undamaged(file)
            file.seek(0)
            payload = torch.load(file, weights_only=True, map_location="cpu")
            _expect_plain(payload, "payload")
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"Expect a checkpoint at {path}, actually: no such file") from error
    except _UNREADABLE as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__
        raise CheckpointError(
            f"Expect a checkpoint at {path}, actually unreadable: {one_line(reason, 300)}"
        ) from error
    if not isinstance(payload, dict):
        raise CheckpointError(
            f"Expect a checkpoint at {path}, actually: a {type(payload).__name__}"
        )
    return payload


def _is_archive(file: BinaryIO) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:
        return True  # with a damaged end


def _expect_no_bomb(file: BinaryIO) -> None:
    """Refuse what would become larger than the file: torch compresses nothing."""
    with zipfile.ZipFile(file) as archive:
        held_bytes = sum(member.file_size for member in archive.infolist())
    if held_bytes > os.fstat(file.fileno()).st_size:
        raise zipfile.BadZipFile("it holds more than its own size")


def _expect_undamaged(file: BinaryIO) -> None:
    """Compare the archive's checksums, which torch does not; half as long as its own reading."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"damaged in {damaged}")
        for member in members:
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
    elif type(value) is torch.Tensor:
        # A tensor may speak of more than there is, which whoever computes with it would allocate.
        if value.layout is not torch.strided or value.device.type == "meta":
            raise TypeError(
                f"Expect `{shown(where)}` dense, actually: {value.layout}, {value.device}"
            )
        if value.nbytes > value.untyped_storage().nbytes():
            raise TypeError(f"Expect `{shown(where)}` with {value.nbytes} bytes of its own")
    elif type(value) not in _PLAIN_TYPES:
        raise TypeError(
            f"Expect `{where}` to be a tensor, number, text, None, dict, list or tuple, "
            f"actually: {type(value).__module__}.{type(value).__name__}"
        )


def _delete(paths: list[Path]) -> None:
    """Delete files; those that cannot be are tried again with the next checkpoint."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


class _Order(NamedTuple):
    """Which of two checkpoints is the newer one.

    Fields:
      is_readable: whether its directory can be read; who knows how old it is otherwise?
      incarnation: of the learner that wrote it.
      save: how many that one had written, this one included; 0 in older files, which do not say.
      learner_step: of its name, last of all: a learner that came back may have gone back.
    """

    is_readable: bool
    incarnation: int
    save: int
    learner_step: int


class CheckpointFolder:
    """The last few checkpoints of a run, and the best one. One writer; readers at any time.

    What is newest is what lies on the disk, whoever has heard of it.
    """

    def __init__(self, folder: os.PathLike[str], keep: int) -> None:
        """Open the folder; it is made with the first checkpoint.

        Args:
          folder: where the checkpoints are; asked each time, as it may be moved.
          keep: newest checkpoints that survive a save, >= 1; `best` is never deleted.
        """
        if keep < 1:
            raise ValueError(f"Expect `keep` >= 1, actually: {keep}")
        self._where = folder
        self._keep = keep
        self._orders: dict[tuple[str, int], _Order] = {}  # by name and time of writing in ns
        self._saves = 0

    @property
    def _folder(self) -> Path:
        return Path(self._where)

    @property
    def best(self) -> Path:
        """Path of the best checkpoint, whether there is one or not."""
        return self._folder / _BEST

    def save(self, payload: dict[str, Any], learner_step: int) -> Path:
        """Write a checkpoint, delete old ones, and return its path.

        Its `counters`, if it has such, get the number of the save: that tells the newest.

        Raises:
          OSError: it could not be written; those written before are still there.
        """
        folder = self._folder
        folder.mkdir(exist_ok=True)
        # Of a writer that was killed; first of all, since the disk may need the room.
        remove_leftovers(folder)
        path = folder / f"checkpoint_{learner_step:010d}.pt"
        self._saves += 1
        if "counters" in payload:
            payload = payload | {"counters": payload["counters"] | {"save": self._saves}}
        save(path, payload)
        _delete([old for old in self._paths()[: -self._keep] if old != path])
        return path

    def newest(self) -> Path | None:
        """Return the newest checkpoint, None before the first."""
        paths = self._paths()
        return paths[-1] if paths else None

    def newest_sound(
        self, expect: Callable[[Path, dict[str, Any]], dict[str, Any]]
    ) -> SoundCheckpoint | None:
        """Return the newest checkpoint that can be used, None where there are none at all.

        Args:
          expect: returns the payload that was read from a path, and raises CheckpointError where it
            is not what it has to be.

        Raises:
          CheckpointError: there are some, and none can be used; one line about the newest.
        """
        errors: list[CheckpointError] = []
        sound: SoundCheckpoint | None = None
        for path in reversed(self._paths()):
            if sound is not None and self._order_of(path).is_readable:
                continue  # an older one
            try:
                payload = expect(path, load(path))
            except CheckpointError as error:
                errors.append(error)
            else:
                sound = SoundCheckpoint(path, payload, [])
        if sound is None and errors:
            raise errors[0]
        return sound and sound._replace(skipped=[str(error) for error in errors])

    def named(self, name: str) -> Path:
        """Return the checkpoint that a user means by `last`, `best` or a path.

        Raises:
          CheckpointError: there is no last one yet.
          UnreadableFile: the path leads nowhere.
        """
        if name == "best":
            return self.best
        if name != "last":
            return follow(Path(name))
        newest = self.newest()
        if newest is None:
            raise CheckpointError(f"{self._folder}: has no checkpoint yet")
        return newest

    def _paths(self) -> list[Path]:
        """Return the checkpoints, oldest first; in front of all those that cannot be read."""
        folder = self._folder
        if not folder.is_dir():
            return []
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=self._order_of)

    def _order_of(self, path: Path) -> _Order:
        try:
            key = (path.name, path.lstat().st_mtime_ns)
        except FileNotFoundError:  # its writer has deleted it
            return _Order(False, 0, 0, 0)
        if key not in self._orders:
            self._orders[key] = _read_order(path)
        return self._orders[key]


def _read_order(path: Path) -> _Order:
    """Read what a file says of its age; no tensor is read for it."""
    step = int(path.stem.rpartition("_")[2])
    try:
        with open_regular(path, _MOST_BYTES) as file:
            _expect_no_bomb(file)
            name = f"/proc/self/fd/{file.fileno()}"
            payload = torch.load(name, weights_only=True, map_location="cpu", mmap=True)
        counters = payload.get("counters", {})
        incarnation, save = (fit(counters.get(key, 0), Count) for key in ("incarnation", "save"))
    except _UNREADABLE:
        return _Order(False, 0, 0, step)
    return _Order(True, incarnation, save, step)
