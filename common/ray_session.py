"""RAY SHELL: start a Ray of our own, or join a cluster that runs; and leave nothing behind."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services

from common.machine import available_cores
from common.private_folder import NoPlace, PrivateFolder
from common.process import Process, adopt_orphans, descendants
from common.ray_logs import errors
from common.ray_start import known_ports, patience, quiet

# Ray's object store carries compressed segments and batches, and weights; they pass through within
# seconds.
_OBJECT_STORE_BYTES = 1 << 30
# Without these processes no run goes on.
_DAEMONS = ("raylet", "gcs_server")
_KILL_S = 10.0
_KNOCK_S = 10.0
_LONGEST_CAUSE = 400  # characters
# Looks for a token and asks a cluster for its number, as every process of Ray does first.
_KNOCK = """
import sys
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient
print(flush=True)
ensure_token_if_auth_enabled(create_token_if_missing=False)
GcsClient(address=sys.argv[1])
"""
# Each process of a run takes some of raylet's.
_LEAST_OPEN_FILES = 1024
# Linux takes so long a path for a socket; this is the longest that Ray makes in its folder.
_SOCKET_BYTES = 107
_RAY = "ray"
_SOCKET = "/ray/session_2026-11-27_04-17-45_425000_4194304/sockets/dash_TaskEventsHead"
# Variables that say which Ray, where and with whom: of another Ray than the run's own.
_OF_ANOTHER_RAY = re.compile(
    "RAY_(ADDRESS|AUTH_TOKEN|CLIENT|CLOUD|GCS_SERVER|JOB|NAMESPACE|NODE|OVERRIDE|REDIS|TLS|USE_TLS"
    "|RUNTIME_ENV_HOOK|TMPDIR|gcs_storage).*"
)

# Whether what this process forks is a part of Ray.
_is_starting = False
_folder: PrivateFolder | None = None
_daemons: dict[Process, str] = {}  # their names
_stopped_s: dict[Process, float] = {}  # since when
_others: set[Process] = set()  # what this process had started before Ray


class _Ended(Exception):
    """A process that Ray's start waits for is gone; the text says which, and why."""


def _leave_group() -> None:
    if _is_starting:
        os.setpgrp()


# Whoever signals the run's process group (a terminal, `timeout`, a batch system) must reach the
# driver alone: Ray ends at once on SIGTERM, and the learner could not save. Ray has no option for
# it; it forks in a way that calls these hooks.
os.register_at_fork(after_in_child=_leave_group)


def problems() -> list[str]:
    """Return what in this shell forbids a Ray of the run's own, a line each."""
    found = []
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode != "token":
        found.append(f"RAY_AUTH_MODE={mode}: must be token, or not set, for a Ray of the run's own")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises the other one itself
    if most != resource.RLIM_INFINITY and most < _LEAST_OPEN_FILES:
        found.append(f"ulimit -n {most}: must be >= {_LEAST_OPEN_FILES} for Ray's open files")
    return found


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def start_local(
    *,
    note: Callable[[str], None] = _to_stderr,
    dashboard: bool = False,
    object_store_bytes: int = _OBJECT_STORE_BYTES,
) -> None:
    """Start a Ray for this run alone; never join one that happens to be there.

    The token is fresh and lives in this process's environment, which Ray's own processes inherit:
    another run, or another user, on the same machine has another one. Its files and sockets lie in
    a folder that only this user can enter. `shut_down` ends it.

    Args:
      note: told of a start that failed and is tried once more.
      dashboard: whether Ray's web pages come with it.
      object_store_bytes: of shared memory.

    Raises:
      ConnectionError: it cannot be started; the text is one line, and nothing of it is left.
    """
    if found := problems():
        raise ConnectionError("; ".join(found))
    _forget_other_rays()
    atexit.register(shut_down)
    is_up = False
    for is_last in (False, True):
        try:
            # Ports that are known beforehand help a busy machine, but somebody else could take them
            # before the agents do, and be sent the token: so only where it did not work without.
            with known_ports() if is_last else contextlib.nullcontext():
                _start(note, dashboard=dashboard, object_store_bytes=object_store_bytes)
            is_up = True
            return
        except NoPlace as error:
            raise ConnectionError(f"Ray did not start: {error}") from error
        except Exception as error:  # ray.init raises anything, bare Exception among it
            cause = f"{_cause(error)} ({_circumstances()})"
            if is_last:
                raise ConnectionError(f"Ray did not start, twice: {cause}") from error
            note(f"Ray did not start, trying once more: {cause}")
        finally:
            if not is_up:
                shut_down()


def shut_down() -> None:
    """Leave Ray; of a Ray of the run's own, also end every process and remove every file."""
    global _folder
    ray.shutdown()
    _daemons.clear()
    _stopped_s.clear()
    if _folder is not None:
        deadline_s = time.monotonic() + _KILL_S
        while (left := _living()) and time.monotonic() < deadline_s:
            for process in left:
                process.kill()
            time.sleep(0.02)
        _folder.remove()
        _folder = None


def dead_daemon(silence_s: float) -> str:
    """Return what became of a process of this run's own Ray that died, "" while all live.

    Ray's own calls may wait for minutes, or for ever, on a raylet that is gone or stopped.

    Args:
      silence_s: one that is stopped for so long is killed, and counts as dead.
    """
    for process, name in _daemons.items():
        state = process.state
        if state in ("", "Z"):
            return f"its {name} is gone{_complaint(name, -1)}"
        if state != "T":
            _stopped_s.pop(process, None)
        elif time.monotonic() - _stopped_s.setdefault(process, time.monotonic()) > silence_s:
            process.kill()
            return f"its {name} was stopped for {silence_s:.0f} s"
    return ""


def _forget_other_rays() -> None:
    """Let nothing that the shell says of another Ray reach this one; give it a token of its own."""
    for name in [name for name in os.environ if _OF_ANOTHER_RAY.fullmatch(name)]:
        del os.environ[name]
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    # What this process has read of them when it imported Ray, it reads again.
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    # Let none of its processes listen where another host could knock: Ray binds all of its ports to
    # every interface on Linux, and to loopback alone where it believes that it cannot have a
    # cluster; this run has none. Ray looks at the variable when it is imported, which for its own
    # processes is yet to come.
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def _start(note: Callable[[str], None], *, dashboard: bool, object_store_bytes: int) -> None:
    """Try once.

    Raises:
      Exception: any; what was started may be left.
    """
    global _is_starting, _folder, _others
    _folder = PrivateFolder(longest_bytes=_SOCKET_BYTES - len(_SOCKET))
    adopt_orphans()
    _others = descendants(os.getpid())
    _is_starting = True
    try:
        with patience(_expect_living_daemons), quiet():
            _init(
                address="local",
                num_cpus=available_cores(),  # Ray itself knows nothing of most quotas
                # Ray makes its folder writable by all, so it must not be the private one itself.
                _temp_dir=str(_folder.path / _RAY),
                _plasma_directory=str(_shared_memory(object_store_bytes, note)),
                object_store_memory=object_store_bytes,
                include_dashboard=dashboard,
            )
    finally:
        _is_starting = False
    _daemons.update(_find_daemons())


def _shared_memory(needed_bytes: int, note: Callable[[str], None]) -> Path:
    """Return where the object store's memory lies; raylet ends where it is told a bad place."""
    shared = Path("/dev/shm")
    free_bytes = 0
    if os.access(shared, os.W_OK | os.X_OK):
        free_bytes = shutil.disk_usage(shared).free
    if free_bytes >= needed_bytes:
        return shared
    assert _folder is not None
    note(
        f"{shared} has {free_bytes >> 20} MiB to write in, {needed_bytes >> 20} are needed: Ray's "
        f"object store lies in {_folder.path} instead, which is slower"
    )
    return _folder.path


def _expect_living_daemons() -> None:
    for process, name in _find_daemons().items():
        if not process.is_alive:
            raise _Ended(f"its {name} ended{_complaint(name, 0)}")


def _find_daemons() -> dict[Process, str]:
    """Return the names of Ray's processes that no run can do without."""
    return {process: process.name for process in _ours() if process.name in _DAEMONS}


def _living() -> list[Process]:
    return [process for process in _ours() if process.is_alive]


def _ours() -> set[Process]:
    """Return every process of this run's own Ray."""
    return descendants(os.getpid()) - _others


def _complaint(name: str, which: int) -> str:
    """Return, after a colon, one of the errors that a process wrote down; "" if it wrote none."""
    found = errors(_folder.path / _RAY, name) if _folder is not None else []
    return f": {found[which]}" if found else ""


def _cause(error: BaseException) -> str:
    """Return what an exception says, in one line."""
    said = " ".join(str(error).split()) or repr(error)
    return said if len(said) <= _LONGEST_CAUSE else f"{said[:_LONGEST_CAUSE]} ..."


def _circumstances() -> str:
    """Return what a Ray that does not start may be short of."""
    files, processes = (
        "unlimited" if most == resource.RLIM_INFINITY else str(most)
        for _, most in map(resource.getrlimit, (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
    )
    found = [f"ulimit -n {files}", f"ulimit -u {processes}"]
    places = ["/dev/shm"] if _folder is None else ["/dev/shm", str(_folder.path)]
    for place in places:
        with contextlib.suppress(OSError):
            found.append(f"{shutil.disk_usage(place).free >> 20} MiB free in {place}")
    found.append(f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores")
    return ", ".join(found)


def join_cluster(address: str) -> None:
    """Join the Ray cluster at `address` ("auto": the one this host belongs to).

    Raises:
      ConnectionError: nobody answers there, or does not let us in; the text is one line.
    """
    try:
        where = (
            services.canonicalize_bootstrap_address_or_die("auto") if address == "auto" else address
        )
        _expect_listener(where)
        _expect_ray(where)
        with quiet():
            _init(address=address)
    except Exception as error:  # as in start_local
        shut_down()
        raise ConnectionError(
            f"--address {address}: no Ray cluster answers there: {_cause(error)}"
        ) from error


def _init(**settings: Any) -> None:
    """Call `ray.init`; leave the answer to SIGTERM as it was: Ray's own exits with 15."""
    before = signal.getsignal(signal.SIGTERM)
    # Raylet tells at length of every process that was killed; the run does so itself, in a line.
    worker: Any = ray._private.worker
    worker.print_to_stdstream = lambda *data, **options: None
    try:
        ray.init(log_to_driver=False, configure_logging=False, namespace="troop", **settings)
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _expect_listener(address: str) -> None:
    """Fail at once where nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("must be auto or HOST:PORT")
    socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _expect_ray(address: str) -> None:
    """Fail soon where Ray itself would go on for minutes, in calls that nothing ends."""
    with subprocess.Popen(
        [sys.executable, "-c", _KNOCK, address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is the driver's
    ) as knock:
        try:
            assert knock.stdout is not None
            knock.stdout.readline()  # importing Ray takes its time on a busy machine
            _, said = knock.communicate(timeout=_KNOCK_S)
        except subprocess.TimeoutExpired:
            raise ConnectionError(
                f"who listens there does not speak as Ray does, in {_KNOCK_S:.0f} s"
            ) from None
        finally:
            knock.kill()
    if "Unauthenticated" in said:
        raise ConnectionError(
            "it asks for another token than RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
            f"~/.ray/auth_token has here (RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE')})"
        )
    if knock.returncode:
        last_line = (said.strip() or f"exit code {knock.returncode}").splitlines()[-1]
        raise ConnectionError(last_line.removeprefix("ray.exceptions."))
