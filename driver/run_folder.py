"""The folder of one run: what is in it, and how it is made and recognised."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import string
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypedDict

from common.config import Config
from common.config_file import save_file
from common.endings import HostUnfit
from common.files import (
    UnreadableFile,
    find_link,
    is_leftover,
    read_json,
    read_text,
    remove,
    remove_leftovers,
    write_whole,
)
from common.schema import INCARNATION, Bounds, Count, Misfit, fit, shown
from driver.about import About, HostFacts, facts
from driver.lock_file import LockedError, lock_file

_LOCK = ".lock"
# What a start that failed before it was a run leaves.
_BEFORE_A_RUN = frozenset({_LOCK, "log.txt", "result.json"})
_FOLDERS = ("checkpoints", "videos", "plots")
_MAKE_A_RUN = ("run.json", "config.yaml", "incarnations.json", *_FOLDERS)
SCALARS = ("scalars.jsonl", "events.out.tfevents.*")
"""What sinks write: the names of driver.view.json_lines and driver.view.events."""
# `run.json` gets 2 kB with each start.
_MOST_JSON_BYTES = 1 << 24
_MOST_LOCK_BYTES = 1 << 10
_SECONDS = Bounds(0.0, 1e12, "finite and >= 0", "finite and >= 0")
# What Ray calls the folder of one session.
_RAY_SESSION = re.compile(r"session_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d+_\d+")
_WORKER = re.compile(r"[a-z_]{1,20}/\d{1,9}")


class RunFolderError(ValueError):
    """A folder that cannot be used as asked; the text is one line for the user."""


class Result(TypedDict, total=False):
    """`result.json`: what came of the run so far; `end_reason` is "running" until it ends."""

    frames: Count
    agent_steps: Count
    episodes: Count
    seconds: Annotated[float, _SECONDS]
    learner_steps: Count
    last_train_return: float | None
    last_eval_score: float | None
    end_reason: str


class RunFolder:
    """A run's folder, and the paths in it.

    `config.yaml`, `run.json`, `incarnations.json`, TensorBoard events, perhaps `scalars.jsonl`,
    `checkpoints/`, `videos/`, `plots/`, `log.txt`, `result.json`; and `.lock`, which the process
    that trains holds.

    Once it is opened the folder is known by itself and not by its name, so that whoever renames it
    in the middle of a run makes no second one. It travels to other processes as what it is, too.
    """

    def __init__(self, path: Path) -> None:
        self._named = path
        self._fd = -1
        self._mark = ""  # what its lock says, by which other hosts know it
        self._unlock: weakref.finalize[..., RunFolder] | None = None
        self._last_seen = path

    @property
    def path(self) -> Path:
        """Where the folder is now; while it is not open, the path that was given."""
        if self._fd < 0 or _is_same(self._named, self._fd):
            return self._named
        return Path(os.readlink(f"/proc/self/fd/{self._fd}"))

    def move_noticed(self) -> str:
        """Return one line for the user if the folder was moved or removed since the last look."""
        path, before = self.path, self._last_seen
        self._last_seen = path
        if path == before:
            return ""
        if os.fstat(self._fd).st_nlink == 0:
            return f"the run folder {before} was removed: nothing more can be saved"
        return f"the run folder {before} was moved; saving goes on in {path}"

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
        return Path(self.snapshots_place(shard))

    def snapshots_place(self, shard: int) -> Place:
        """Return the folder of a shard's snapshots, for whoever writes them; see `place`."""
        return self.place("checkpoints", f"replay_{shard}")

    @property
    def log(self) -> Path:
        """What the console said."""
        return self.path / "log.txt"

    def place(self, *parts: str) -> Place:
        """Return a path below the folder that stays right when the folder is moved."""
        return Place(self, *parts)

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
                way = f"go on with --resume {for_shell(path)}"
                if not any(path.glob("checkpoints/checkpoint_*.pt")):
                    way = "it saved no checkpoint to resume from, so remove it"
                raise RunFolderError(f"--run-dir {path}: holds a run; {way}, or name another")
            if not cls(path)._may_become_a_run():
                raise RunFolderError(
                    f"--run-dir {path}: holds files but is not a run; must be a new or empty folder"
                )
        if _is_ray_s(path):
            raise RunFolderError(
                f"--run-dir {path}: lies in a folder that Ray removes with its session; must be "
                f"one that lasts, like {lasting_runs() / path.name}"
            )
        parent = path
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise RunFolderError(f"--run-dir {path}: {parent} must be a folder that can be written")
        return cls(path)

    def _may_become_a_run(self) -> bool:
        """Return whether there is nothing in the folder, or what a start that failed left."""
        names = {entry.name for entry in self.path.iterdir() if not is_leftover(entry.name)}
        try:
            result = self.read_json("result.json", Result)
        except UnreadableFile:
            return False
        return names <= _BEFORE_A_RUN and (
            not result or result.keys() >= Result.__annotations__.keys()
        )

    @classmethod
    def of_run(cls, path: Path) -> RunFolder:
        """Return the folder of a run that exists.

        Raises:
          RunFolderError: there is none, or a link lies in it: whoever follows it reads or writes
            somebody else's file.
        """
        try:
            is_run = all((path / name).is_file() for name in ("run.json", "config.yaml"))
            link = find_link(path) if is_run else None
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
        if not is_run:
            raise RunFolderError(f"{path}: is not a run folder (no run.json and config.yaml in it)")
        if link is not None:
            raise RunFolderError(f"{link}: is a link; a run folder with links in it is not used")
        return cls(path)

    def open(self, result: Mapping[str, Any]) -> None:
        """Make the folder if need be, hold it, and keep other processes from training in it.

        Args:
          result: what is known of the run before it starts.

        Raises:
          RunFolderError: another process trains in it, or it cannot be made or written.
          OSError: the result cannot be written.
        """
        try:
            self._named.mkdir(parents=True, exist_ok=True)
            self._hold(self._named)
        except OSError as error:
            raise self._cannot_be_written(error) from error
        self.lock()
        remove_leftovers(self.path)
        self.write_json("result.json", result)

    def begin(self, config: Config, game: str, command: list[str]) -> None:
        """Say what the run is; `run.json`, which makes the folder a run, comes last.

        A run that is resumed keeps what was said of its start; this start joins the list `resumed`.

        Args:
          config: the resolved settings.
          game: short name of the environment.
          command: what the user typed.

        Raises:
          OSError: it cannot be written; a new folder is empty again, so that it can be tried again.
          UnreadableFile: the run's `run.json` is not what it has to be.
        """
        start = {"command": command, **facts()}
        before = self.read_json("run.json", About)
        if before:
            about = before | {"resumed": [*before.get("resumed", []), start]}
        else:
            about = {"game": game, **start}
        try:
            for name in _FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
            save_file(config, self.config_file)
            self.write_json("run.json", about)
        except OSError:
            if not before:
                self.retract()
            raise

    def note_hosts(self, hosts: list[HostFacts]) -> None:
        """Say in `run.json` on which of a cluster's hosts this start of the run has processes.

        Raises:
          OSError: it cannot be written.
          UnreadableFile: it is not what it has to be.
        """
        about = self.read_json("run.json", About)
        start = [about, *about.get("resumed", [])][-1]
        start["hosts"] = hosts
        self.write_json("run.json", about)

    def retract(self) -> None:
        """Make a folder in which nothing was saved yet no run again; its log and result stay."""
        scalars = (path for pattern in SCALARS for path in self.path.glob(pattern))
        for path in (*map(self.path.joinpath, _MAKE_A_RUN), *scalars):
            with suppress(OSError):  # what stays is refused by name, once somebody starts here
                path.rmdir() if path.is_dir() else remove(path)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file whole or not at all.

        Raises:
          OSError: it cannot be written; an older one is still there.
        """
        write_whole(self.path / name, [(json.dumps(content, indent=2) + "\n").encode()])

    def read_json(self, name: str, kind: Any) -> dict[str, Any]:
        """Return what `write_json` wrote, {} where there is no such file.

        Args:
          name: of the file.
          kind: what it has to hold; see common.schema.

        Raises:
          UnreadableFile: it is no such thing; one line says where.
        """
        path = self.path / name
        if not os.path.lexists(path):
            return {}
        try:
            content: dict[str, Any] = fit(read_json(path, _MOST_JSON_BYTES), kind)
        except Misfit as misfit:
            raise UnreadableFile(f"{path}: cannot be read: {misfit}") from misfit
        return content

    def write_incarnations(self, incarnations: Mapping[str, int]) -> None:
        """Keep which number each process's next incarnation gets, by "role/index".

        Raises:
          OSError: it cannot be written.
        """
        self.write_json("incarnations.json", dict(incarnations))

    def read_incarnations(self) -> dict[str, int]:
        """Return what `write_incarnations` kept.

        Raises:
          UnreadableFile: the file is missing or damaged: numbers would be given twice.
        """
        found = self.read_json("incarnations.json", dict[str, Annotated[int, INCARNATION]])
        path = self.path / "incarnations.json"
        if not found:
            raise UnreadableFile(f"{path}: cannot be read: it is not there, or says nothing")
        if strange := [name for name in found if not _WORKER.fullmatch(name)]:
            raise UnreadableFile(
                f"{path}: cannot be read: {shown(strange[0])}: must be a role and an index"
            )
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to other processes; the lock stays here."""
        path = self.path.resolve()
        if self._fd < 0:
            return RunFolder, (path,)
        status = os.fstat(self._fd)
        held = Path(f"/proc/{os.getpid()}/fd/{self._fd}")
        return _arrive, (path, held, (status.st_dev, status.st_ino), self._mark)

    def lock(self) -> None:
        """Keep other processes from training in this folder while this object lives.

        Holding it already is fine. A file system that has no locks refuses nobody.

        Raises:
          RunFolderError: another process holds it, or it cannot be written.
        """
        if self._unlock is not None and self._unlock.alive:
            return
        try:
            fd, self._mark = lock_file(self.path / _LOCK)
        except LockedError as error:
            raise RunFolderError(f"{self.path}: is in use by {error}") from error
        except OSError as error:
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

    def _hold(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)

    def _cannot_be_written(self, error: OSError) -> RunFolderError:
        return RunFolderError(f"{self.path}: cannot be written: {error.strerror or error}")


class Place(os.PathLike[str]):
    """A path below a run's folder, wherever that is by now; `Path(place)` is where it is."""

    def __init__(self, folder: RunFolder, *parts: str) -> None:
        self._folder = folder
        self._parts = parts

    def __fspath__(self) -> str:
        """Return the path as it is now."""
        return str(self._folder.path.joinpath(*self._parts))


def lasting_runs() -> Path:
    """Return the folder that new runs go to: `runs` here, or at home where here does not last.

    A job of Ray's (`ray job submit --working-dir`) begins in a copy that Ray removes.
    """
    return Path.home() / "runs" if _is_ray_s(Path("runs")) else Path("runs")


def _is_ray_s(path: Path) -> bool:
    with suppress(OSError):  # a working directory that was removed
        return any(map(_RAY_SESSION.fullmatch, Path(os.path.realpath(path)).parts))
    return False


def for_shell(path: Path) -> str:
    """Return a path as it can be pasted behind a flag, in one line whatever its name is."""
    text = f"./{path}" if str(path).startswith("-") else str(path)
    if text.isprintable():
        return shlex.quote(text)
    # Line ends, bytes that are no text: as bash, zsh and ksh take them.
    plain = string.ascii_letters + string.digits + "/._-"
    spelt = (chr(b) if chr(b) in plain else f"\\x{b:02x}" for b in os.fsencode(text))
    return f"$'{''.join(spelt)}'"


def _arrive(path: Path, held: Path, identity: tuple[int, int], mark: str) -> RunFolder:
    """Return in another process the folder that one holds: by its hold if that is within reach.

    On another host it is found by its name, and known by what its lock says.

    Raises:
      HostUnfit: it is not there.
    """
    folder = RunFolder(path)
    for place in (held, path):
        with suppress(OSError):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) == identity:
                folder._hold(place)
                return folder
    with suppress(OSError, UnreadableFile):
        if mark and read_text(path / _LOCK, _MOST_LOCK_BYTES) == mark:
            folder._hold(path)
            return folder
    raise HostUnfit(
        f"the run folder {for_shell(path)}, in which learner and replay save, is not on their "
        f"host, {socket.gethostname()}; start the command there, or name a folder that both hosts "
        "share"
    )


def _is_same(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False
