"""RAY SHELL: start a Ray of our own, or join a cluster that runs; and leave nothing behind."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private import node, ray_constants, services

from common.machine import available_cores
from common.process import Process, adopt_orphans, descendants
from driver.private_folder import PrivateFolder

# Ray's object store carries compressed segments and batches, and weights; they pass through within
# seconds.
_OBJECT_STORE_BYTES = 1 << 30
# Without these processes no run goes on.
_DAEMONS = ("raylet", "gcs_server")
# How long they may take to come up: beside 40 busy processes on two cores it was a minute.
_PATIENCE_S = 180.0
_STEP_S = "2"  # as driver/ray_environment.py has it for the other wait
_KILL_S = 10.0
_KNOCK_S = 10
_LONGEST_CAUSE = 400  # characters
# Each process of a run takes some of raylet's.
_LEAST_OPEN_FILES = 1024
# Each thread counts; where one cannot be made, Ray's own start hangs for ever in some places.
_LEAST_THREADS = 1024
# Linux takes so long a path for a socket; this is the longest that Ray makes in its folder.
_SOCKET_BYTES = 107
_SOCKET = "/session_2026-11-27_04-17-45_425000_4194304/sockets/dash_TaskEventsHead"
# Variables that say which Ray, where and with whom: of another Ray than the run's own.
_OF_ANOTHER_RAY = re.compile(
    "RAY_(ADDRESS|AUTH_TOKEN|CLIENT|CLOUD|GCS_SERVER|JOB|NAMESPACE|NODE|OVERRIDE|REDIS|TLS|USE_TLS"
    "|RUNTIME_ENV_HOOK|TMPDIR|gcs_storage).*"
)
# An error in the logs of Ray or of its gRPC: what follows the place in the source. Those of
# logging.cc are stack traces.
_ERROR = re.compile(
    r"^(?:\[[^]]* [EC] \d+ \d+\] .*?|E\d{4} .*?)(?!logging)\b\w+\.cc:\d+[]:]\s*(\S.*?)\s*$", re.M
)
# Looks for a token and asks a cluster for its number, as every process of Ray does first.
_KNOCK = f"""
import signal, sys
from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._raylet import GcsClient
signal.alarm({_KNOCK_S})  # not before: importing Ray takes its time on a busy machine
ensure_token_if_auth_enabled(create_token_if_missing=False)
GcsClient(address=sys.argv[1])
"""


class _OwnRay:
    """A Ray for this run alone: its folder and its processes."""

    def __init__(self) -> None:
        """Make the folder; start nothing yet.

        Raises:
          OSError: there is no place for it.
        """
        self.is_starting = False  # so what this process forks is a part of it
        # Ray makes its folder writable by all, so it lies in one that is not.
        self.folder = PrivateFolder("ray", longest_bytes=_SOCKET_BYTES - len(_SOCKET))
        adopt_orphans()
        self._others = descendants()
        self._daemons: dict[Process, str] = {}  # their names
        self._stopped_s: dict[Process, float] = {}  # since when
        self._patient_until_s = time.monotonic() + _PATIENCE_S

    def start(self, *, dashboard: bool) -> None:
        """Start it.

        Raises:
          Exception: any; what was started may be left.
        """
        self.is_starting = True
        os.environ["RAY_gcs_server_port_wait_time_s"] = _STEP_S  # noqa: SIM112
        try:
            _init(
                address="local",
                num_cpus=available_cores(),  # Ray itself knows nothing of most quotas
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=dashboard,
                _temp_dir=str(self.folder.path),
            )
        finally:
            self.is_starting = False
        self._find_daemons()

    def dead_daemon(self, silence_s: float) -> str:
        """Return what became of a daemon that died; one stopped for so long is killed."""
        now_s = time.monotonic()
        for process, name in self._daemons.items():
            state = process.state
            if state in ("", "Z"):
                return f"its {name} is gone{self._complaint(name)}"
            if state != "T":
                self._stopped_s.pop(process, None)
            elif now_s - self._stopped_s.setdefault(process, now_s) > silence_s:
                process.kill()
                return f"its {name} was stopped for {silence_s:.0f} s"
        return ""

    def end(self) -> None:
        """End every process and remove every file."""
        deadline_s = time.monotonic() + _KILL_S
        while (left := self._living()) and time.monotonic() < deadline_s:
            for process in left:
                process.kill()
            time.sleep(0.02)
        self.folder.remove()

    def may_come_up(self) -> bool:
        """Return whether what Ray waits for may still come.

        Raises:
          ConnectionError: it cannot, for a daemon is gone.
        """
        self._find_daemons()
        if gone := self.dead_daemon(_PATIENCE_S):
            raise ConnectionError(gone)
        return time.monotonic() < self._patient_until_s

    def _find_daemons(self) -> None:
        names = {process: process.name for process in descendants() - self._others}
        self._daemons |= {process: name for process, name in names.items() if name in _DAEMONS}

    def _living(self) -> list[Process]:
        return [process for process in descendants() - self._others if process.is_alive]

    def _complaint(self, name: str) -> str:
        """Return, after a colon, the last error that a daemon wrote down; "" if it wrote none."""
        try:
            log = self.folder.path / "session_latest" / "logs" / f"{name}.err"
            found = _ERROR.findall(log.read_text(errors="replace"))
        except OSError:
            return ""
        return f": {found[-1].rpartition('Check failed: ')[2]}" if found else ""


_own: _OwnRay | None = None


def _leave_group() -> None:
    if _own is not None and _own.is_starting:
        os.setpgrp()
        # A Ctrl-C that came before this line was the driver's, which ends all that it started.
        answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGINT, answer)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


# Whoever signals the run's process group (a terminal, `timeout`, a batch system) must reach the
# driver alone: Ray ends at once on SIGTERM, and the learner could not save. Ray has no option for
# it; it forks in a way that calls these hooks.
os.register_at_fork(after_in_child=_leave_group)


def _uninterrupted(start: Callable[..., Any]) -> Callable[..., Any]:
    """Return what starts a process; a Ctrl-C meanwhile counts afterwards.

    In the child it would be an exception before that has left the driver's group: a traceback.
    """

    def start_it(*arguments: Any, **options: Any) -> Any:
        if _own is None or not _own.is_starting:
            return start(*arguments, **options)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return start(*arguments, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    return start_it


def _patient(wait: Callable[..., Any]) -> Callable[..., Any]:
    """Return what waits again, after each RuntimeError, for an own Ray that may still come up."""

    def wait_on(*arguments: Any, **options: Any) -> Any:
        while True:
            try:
                return wait(*arguments, **options)
            except RuntimeError:
                if _own is None or not _own.is_starting or not _own.may_come_up():
                    raise

    return wait_on


# Ray waits 30 s for each of its daemons, whether it lives or not, and has no option for it.
_services: Any = services
_services.get_node = _patient(services.get_node)
_node: Any = node
_node.wait_for_persisted_port = _patient(node.wait_for_persisted_port)
_services.start_ray_process = _uninterrupted(services.start_ray_process)


def _of_use(start: Callable[..., Any]) -> Callable[..., Any]:
    """Return what starts a process of Ray's, except for an own Ray, in which nobody needs it."""

    def start_if_needed(started: Any, *arguments: Any, **options: Any) -> Any:
        if _own is None or not _own.is_starting or options.get("include_dashboard"):
            return start(started, *arguments, **options)
        if "include_dashboard" in options:
            started._webui_url = ""  # of web pages that are not there
        return None

    return start_if_needed


# What adds hosts, what sends workers' logs to the driver, and what serves web pages: a third of the
# time that Ray needs to start. It has an option for none of them.
_node.Node.start_monitor = _of_use(_node.Node.start_monitor)
_node.Node.start_log_monitor = _of_use(_node.Node.start_log_monitor)
_node.Node.start_api_server = _of_use(_node.Node.start_api_server)


def problems() -> list[str]:
    """Return what in this shell forbids a Ray of the run's own, a line each."""
    found = []
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode != "token":
        found.append(f"RAY_AUTH_MODE={mode}: must be token, or not set, for a Ray of the run's own")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises the other one itself
    if most != resource.RLIM_INFINITY and most < _LEAST_OPEN_FILES:
        found.append(f"ulimit -n {most}: must be >= {_LEAST_OPEN_FILES} for Ray's open files")
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.geteuid() != 0 and most != resource.RLIM_INFINITY and most < _LEAST_THREADS:
        found.append(f"ulimit -u {most}: must be >= {_LEAST_THREADS} for Ray's threads")
    return found


def start_local(*, note: Callable[[str], None] = print, dashboard: bool = False) -> None:
    """Start a Ray for this run alone; never join one that happens to be there.

    The token is fresh and lives in this process's environment, which Ray's own processes inherit:
    another run, or another user, on the same machine has another one. Its files and sockets lie in
    a folder that only this user can enter. `shut_down` ends it.

    Args:
      note: told of a start that failed and is tried once more.
      dashboard: whether Ray's web pages come with it.

    Raises:
      ConnectionError: it cannot be started; the text is one line, and nothing of it is left.
    """
    global _own
    if found := problems():
        raise ConnectionError("; ".join(found))
    _forget_other_rays()
    atexit.register(shut_down)
    for is_last in (False, True):
        try:
            _own = _OwnRay()
            _own.start(dashboard=dashboard)
            return
        except Exception as error:  # ray.init raises anything, bare Exception among it
            cause = f"{_in_a_line(error)} (it may be short of something: {_circumstances()})"
            shut_down()
            if is_last:
                raise ConnectionError(f"Ray did not start, twice: {cause}") from error
            note(f"Ray did not start, trying once more: {cause}")


def shut_down() -> None:
    """Leave Ray; of a Ray of the run's own, also end every process and remove every file."""
    global _own
    ray.shutdown()
    if _own is not None:
        _own.end()
        _own = None


def dead_daemon(silence_s: float) -> str:
    """Return what became of a process of this run's own Ray that died, "" while all live.

    Ray's own calls may wait for minutes, or for ever, on a raylet that is gone or stopped.

    Args:
      silence_s: one that is stopped for so long is killed, and counts as dead.
    """
    return "" if _own is None else _own.dead_daemon(silence_s)


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


def _in_a_line(error: Exception) -> str:
    return textwrap.shorten(str(error).strip() or repr(error), _LONGEST_CAUSE, placeholder=" ...")


def _circumstances() -> str:
    """Return how much there is of what a Ray that does not start is usually short of."""
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    found = [f"ulimit -u {'unlimited' if processes == resource.RLIM_INFINITY else processes}"]
    for place in ["/dev/shm"] if _own is None else ["/dev/shm", str(_own.folder.path.parent)]:
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
        _init(address=address)
    except Exception as error:  # as in start_local
        shut_down()
        raise ConnectionError(
            f"--address {address}: no Ray cluster answers there: {_in_a_line(error)}"
        ) from error


def _expect_listener(address: str) -> None:
    """Fail at once where nobody listens."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("must be auto or HOST:PORT")
    socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def _expect_ray(address: str) -> None:
    """Fail soon where Ray itself would go on for minutes, in calls that nothing ends."""
    knock = subprocess.run(
        [sys.executable, "-c", _KNOCK, address],
        capture_output=True,
        text=True,
        start_new_session=True,  # Ctrl-C is the driver's
    )
    if knock.returncode == -signal.SIGALRM:
        raise ConnectionError(f"who listens there does not speak as Ray does, in {_KNOCK_S} s")
    if "Unauthenticated" in knock.stderr:
        raise ConnectionError(
            "it asks for another token than RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
            f"~/.ray/auth_token has here (RAY_AUTH_MODE={os.environ.get('RAY_AUTH_MODE')})"
        )
    if knock.returncode:
        last_line = (knock.stderr.strip() or f"exit code {knock.returncode}").splitlines()[-1]
        raise ConnectionError(last_line.removeprefix("ray.exceptions."))


def _init(**settings: Any) -> None:
    """Call `ray.init`: silently, since its exception tells all, and in a line.

    The answer to SIGTERM is left as it was: Ray's own exits with 15.
    """
    logger, before = logging.getLogger("ray"), signal.getsignal(signal.SIGTERM)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    # Raylet tells at length of every process that was killed; the run does so itself, in a line.
    worker: Any = ray._private.worker
    worker.print_to_stdstream = lambda *data, **options: None
    try:
        ray.init(log_to_driver=False, configure_logging=False, namespace="troop", **settings)
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        logger.setLevel(level)
        signal.signal(signal.SIGTERM, before)
