"""RAY SHELL: start a Ray of our own, or join a cluster that runs; and leave nothing behind."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants

# Ray's object store carries compressed segments and batches, and weights; they pass through within
# seconds.
_OBJECT_STORE_BYTES = 1 << 30


# Whether what this process forks is a part of Ray.
_is_starting = False
_daemons: dict[int, str] = {}  # names by pid
_stopped_s: dict[int, float] = {}  # since when, by pid


def _leave_group() -> None:
    if _is_starting:
        os.setpgrp()


# Whoever signals the run's process group (a terminal, `timeout`, a batch system) must reach the
# driver alone: Ray ends at once on SIGTERM, and the learner could not save. Ray has no option for
# it; it forks in a way that calls these hooks.
os.register_at_fork(after_in_child=_leave_group)


def start_local(*, dashboard: bool = False, object_store_bytes: int = _OBJECT_STORE_BYTES) -> None:
    """Start a Ray for this run alone; never join one that happens to be there.

    The token is fresh and lives in this process's environment, which Ray's own processes inherit:
    another run, or another user, on the same machine has another one.

    Raises:
      ConnectionError: the shell has switched authentication off.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode != "token":
        raise ConnectionError(
            f"RAY_AUTH_MODE={mode}: must be token, or not set, for a Ray of the run's own"
        )
    # Ray reads the token once per process: a second start has to use the first one's.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    _stay_on_loopback()
    global _is_starting, _daemons
    _is_starting = True
    try:
        _init(
            address="local",
            include_dashboard=dashboard,
            object_store_memory=object_store_bytes,
        )
    finally:
        _is_starting = False
    _daemons = _find_daemons()


def _stay_on_loopback() -> None:
    """Let no process of the coming Ray listen where another host could knock.

    Ray binds all of its ports to every interface on Linux, and to loopback alone where it believes
    that it cannot have a cluster; this run has none. Ray looks at the variable when it is imported,
    which for its own processes is yet to come.
    """
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False


def dead_daemon(silence_s: float) -> str:
    """Return what became of a process of this run's own Ray that died, "" while all live.

    Ray's own calls may wait for minutes, or for ever, on a raylet that is gone or stopped.

    Args:
      silence_s: one that is stopped for so long is killed, and counts as dead.
    """
    for pid, name in _daemons.items():
        try:
            state = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            state = "Z"
        if state == "Z":
            return f"its {name} is gone"
        if state != "T":
            _stopped_s.pop(pid, None)
        elif time.monotonic() - _stopped_s.setdefault(pid, time.monotonic()) > silence_s:
            os.kill(pid, signal.SIGKILL)
            return f"its {name} was stopped for {silence_s:.0f} s"
    return ""


def _find_daemons() -> dict[int, str]:
    """Return the names of Ray's processes that no run can do without, by pid.

    None where the kernel does not tell a process its children.
    """
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            for pid in (task / "children").read_text().split():
                name = (Path("/proc") / pid / "comm").read_text().strip()
                if name in ("raylet", "gcs_server"):
                    found[int(pid)] = name
    return found


def join_cluster(address: str) -> None:
    """Join the Ray cluster at `address` ("auto": the one this host belongs to).

    Raises:
      ConnectionError: nobody answers there; the text is one line.
    """
    try:
        if address != "auto":
            _expect_listener(address)
        _init(address=address)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConnectionError(
            f"--address {address}: no Ray cluster answers there: {first_line}"
        ) from error


def _init(**settings: Any) -> None:
    """Call `ray.init`; leave the answer to SIGTERM as it was: Ray's own exits with 15."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(log_to_driver=False, configure_logging=False, namespace="troop", **settings)
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _expect_listener(address: str) -> None:
    """Fail at once where Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("must be auto or HOST:PORT")
    socket.create_connection((host, int(port)), timeout=5.0).close()
