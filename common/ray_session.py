"""RAY SHELL: start a Ray of our own, or join a cluster that runs; and leave nothing behind."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from typing import Any

import ray

# Ray's object store carries compressed segments and batches, and weights; they pass through within
# seconds.
_OBJECT_STORE_BYTES = 1 << 30


# Whether what this process forks is a part of Ray.
_is_starting = False


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
    global _is_starting
    _is_starting = True
    try:
        _init(
            address="local",
            include_dashboard=dashboard,
            object_store_memory=object_store_bytes,
        )
    finally:
        _is_starting = False


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
