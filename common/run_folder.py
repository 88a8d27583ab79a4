"""The folder of one run: what is in it, and how it is made and recognised."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import subprocess
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from common.config import Config
from common.config_file import save_file
from common.source import ROOT, VERSIONS, source_hash

_LOCK = ".lock"
_NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")
# Of the second and of the first version of Linux's control groups.
_CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class RunFolderError(ValueError):
    """A folder that cannot be used as asked; the text is one line for the user."""


class RunFolder:
    """Paths inside a run's folder.

    `config.yaml`, `run.json`, `incarnations.json`, TensorBoard events, `checkpoints/`, `videos/`,
    `plots/`, `log.txt`, `result.json`; and `.lock`, which the process that trains holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._unlock: weakref.finalize[..., RunFolder] | None = None

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def snapshots(self, shard: int) -> Path:
        """Folder of a replay shard's snapshots."""
        return self.checkpoints / f"replay_{shard}"

    @property
    def log(self) -> Path:
        """What the console said."""
        return self.path / "log.txt"

    @classmethod
    def for_new_run(cls, path: Path) -> RunFolder:
        """Return the folder for a new run, without making it.

        Raises:
          RunFolderError: something is there already, or it cannot be made.
        """
        try:
            return cls._for_new_run(path)
        except OSError as error:  # a name too long, a folder that may not be looked into
            raise RunFolderError(f"--run-dir {path}: cannot be used: {error.strerror}") from error

    @classmethod
    def _for_new_run(cls, path: Path) -> RunFolder:
        if os.path.lexists(path):
            if not path.is_dir():
                raise RunFolderError(
                    f"--run-dir {path}: is not a folder; must be a new or empty folder"
                )
            if (path / "run.json").exists():
                raise RunFolderError(
                    f"--run-dir {path}: holds a run; go on with --resume {path}, or name another"
                )
            # Of a start that failed.
            if any(entry.name not in (_LOCK, "log.txt") for entry in path.iterdir()):
                raise RunFolderError(
                    f"--run-dir {path}: holds files but is not a run; must be a new or empty folder"
                )
        parent = path
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise RunFolderError(f"--run-dir {path}: {parent} must be a folder that can be written")
        return cls(path)

    @classmethod
    def of_run(cls, path: Path) -> RunFolder:
        """Return the folder of a run that exists.

        Raises:
          RunFolderError: there is none.
        """
        try:
            is_run = all((path / name).is_file() for name in ("run.json", "config.yaml"))
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
        if not is_run:
            raise RunFolderError(f"{path}: is not a run folder (no run.json and config.yaml in it)")
        return cls(path)

    def create(self, config: Config, game: str, command: list[str]) -> None:
        """Make the folder and say what the run is; `run.json`, which makes it a run, comes last.

        A run that is resumed keeps what was said of its start; this start joins the list `resumed`.

        Raises:
          RunFolderError: another process trains in it.
          OSError: it cannot be made or written.
        """
        start = {"command": command, **facts()}
        if before := self.read_json("run.json"):
            about = before | {"resumed": [*before.get("resumed", []), start]}
        else:
            about = {"game": game, **start}
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        for folder in (self.checkpoints, self.path / "videos", self.path / "plots"):
            folder.mkdir(parents=True, exist_ok=True)
        save_file(config, self.config_file)
        self.write_json("run.json", about)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all.

        Raises:
          OSError: it cannot be written; an older one is still there.
        """
        temporary = self.path / f".{name}.tmp"
        try:
            with temporary.open("w") as file:
                file.write(json.dumps(content, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave an empty file
            os.replace(temporary, self.path / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def read_json(self, name: str) -> dict[str, Any]:
        """Return what `write_json` wrote; {} where it is missing or damaged."""
        try:
            content = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_incarnations(self, incarnations: Mapping[str, int]) -> None:
        """Keep which number each process's next incarnation gets, by "role/index".

        Raises:
          OSError: it cannot be written.
        """
        self.write_json("incarnations.json", dict(incarnations))

    def read_incarnations(self) -> dict[str, int]:
        """Return what `write_incarnations` kept.

        Raises:
          RunFolderError: the file is missing or damaged: numbers would be given twice.
        """
        path = self.path / "incarnations.json"
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path}: cannot be read: {error}") from error
        if not isinstance(found, dict) or not all(
            type(number) is int and number >= 0 for number in found.values()
        ):
            raise RunFolderError(f"{path}: cannot be read: does not hold whole numbers by name")
        return found

    def __reduce__(self) -> tuple[type[RunFolder], tuple[Path]]:
        """Travel to other processes as a path; the lock stays here."""
        return RunFolder, (self.path.resolve(),)

    def lock(self) -> None:
        """Keep other processes from training in this folder while this object lives.

        The kernel lets go of the lock when the process ends, however it ends; a program that the
        process starts does not inherit it. Holding it already is fine. A file system that has no
        locks refuses nobody.

        Raises:
          RunFolderError: another process holds it, or it cannot be written.
        """
        if self._unlock is not None and self._unlock.alive:
            return
        try:
            fd = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._cannot_be_written(error) from error
        try:
            _lock_file(fd)
            owner = f"{os.getpid()} {socket.gethostname()}\n".encode()
            # Never empty, so that whoever is refused can read whose it is.
            os.pwrite(fd, owner, 0)
            os.ftruncate(fd, len(owner))
        except BlockingIOError as error:
            pid, _, host = os.pread(fd, 1_000, 0).decode(errors="replace").strip().partition(" ")
            os.close(fd)
            raise RunFolderError(f"{self.path}: is in use by process {pid} on {host}") from error
        except OSError as error:
            os.close(fd)
            raise self._cannot_be_written(error) from error
        self._unlock = weakref.finalize(self, os.close, fd)

    def unlock(self) -> None:
        """Let others train in this folder. Without a lock nothing happens."""
        if self._unlock is not None:
            self._unlock()

    def expect_unused(self) -> None:
        """Check that `lock` would go well now.

        Raises:
          RunFolderError: as `lock`.
        """
        self.lock()
        self.unlock()

    def _cannot_be_written(self, error: OSError) -> RunFolderError:
        return RunFolderError(f"{self.path}: cannot be written: {error.strerror or error}")


def _lock_file(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass  # a file system without locks: that is no reason not to train on it


def facts() -> dict[str, Any]:
    """Return what a reader needs to judge or repeat the run: time, code, versions, hardware."""
    changes = _git("status", "--porcelain")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": None if changes is None else bool(changes),
        "source_hash": source_hash(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Return processor, cores, memory in bytes, and NVIDIA's GPUs."""
    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # not Linux: the platform's own word stands
    return {
        "platform": platform.platform(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": total_memory_bytes(),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    models = []
    try:
        for file in sorted(_NVIDIA_GPUS.glob("*/information")):
            lines = file.read_text().splitlines()
            models += [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")]
    except OSError:
        pass  # a name in run.json is not worth a run
    return models


def total_memory_bytes() -> int:
    """Return the machine's memory, or the container's where that has less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _CONTAINER_LIMITS:
        try:
            limit = file.read_text().strip()
        except OSError:
            continue
        if limit.isdigit():  # and not "max"
            limits.append(int(limit))
    return min(limits)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
