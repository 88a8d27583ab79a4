"""Checkpoints: written whole or not at all, read without running anybody's code."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"checkpoint_(\d{10,})\.pt")
_BEST = "best.pt"
# What torch.load(weights_only=True) takes back, besides tensors. Exact types: numpy's float64 is a
# float, too.
_PLAIN_TYPES = (bool, int, float, str, type(None))


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not a whole one."""


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` so that a reader finds the old file or the new one, also after a power cut.

    Args:
      path: where to; its folder must exist.
      payload: nested dicts, lists and tuples of tensors, numbers, text, booleans and None.

    Raises:
      TypeError: it holds something that `load` would refuse; nothing was written.
    """
    _expect_plain(payload, "payload")
    # In the same folder, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(payload, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
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
      CheckpointError: the file is missing, unreadable, truncated or something else; one line says
        which.
    """
    if not path.is_file():
        raise CheckpointError(f"Expect a checkpoint at {path}, actually: no such file")
    # Torch's own reader tells a truncated file from a foreign one by guessing; the archive's
    # directory knows.
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"Expect a checkpoint at {path}, actually: truncated, or no checkpoint at all"
        )
    try:
        payload = torch.load(path, weights_only=True, map_location="cpu")
    # Damage inside the pickle may end in any of these.
    except (
        *(OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile),
        *(LookupError, ValueError, TypeError, AttributeError, AssertionError),
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
        """Write a checkpoint, delete old ones, and return its path."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"checkpoint_{learner_step:010d}.pt"
        save(path, payload)
        for old in self._paths()[: -self._keep]:
            if old != path:  # a resumed run may have gone back behind others
                old.unlink(missing_ok=True)
        for leftover in self._folder.glob(".checkpoint_*.tmp"):
            leftover.unlink(missing_ok=True)  # of a writer that was killed
        return path

    def newest(self) -> Path | None:
        """Return the checkpoint with the most learner steps, None before the first."""
        paths = self._paths()
        return paths[-1] if paths else None

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
