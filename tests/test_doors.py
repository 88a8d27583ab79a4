"""What a run on one machine listens on, and whom it lets in."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from launching import ROOT, STOP_S, Launched, started

from driver import ray_session

pytestmark = pytest.mark.ray

ENDLESS = ("--preset", "cartpole", "--total-frames", "100_000_000", "--dashboard")

# Knocks at the run's Ray as any other process of this machine could.
KNOCK = """
import sys
import ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
except BaseException as error:
    print("refused:", type(error).__name__, str(error).strip().splitlines()[0])
else:
    print("let in:", len(ray.nodes()), "nodes")
"""


def doors(launched: Launched) -> list[tuple[str, str, int]]:
    """Return (process, address, port) of everything that the run's processes listen on."""
    found = set()
    for process in launched.processes():
        for connection in process.net_connections(kind="inet"):
            if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE):
                found.add((process.name(), connection.laddr.ip, connection.laddr.port))
    return sorted(found)


def auth_modes(launched: Launched) -> dict[str, set[str | None]]:
    """Return the RAY_AUTH_MODEs of the processes that a run started, by process name.

    The kernel shows what a process was started with. That says nothing of the driver, which decides
    for itself later and hands it on to all others; nor of Ray's agents and dashboard, which write
    their title over it.
    """
    found: dict[str, set[str | None]] = {}
    for process in launched.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            environment = process.environ()
            if process.pid != launched.pid and environment:
                name = process.name().partition(".")[0]  # without what it does now
                found.setdefault(name, set()).add(environment.get("RAY_AUTH_MODE"))
    return found


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches an address."""
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def knock(address: str, **environment: str) -> str:
    """Try to join the Ray at `address`; return what came of it."""
    without = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    without["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # else Ray asks at the outer address
    done = subprocess.run(
        [sys.executable, "-c", KNOCK, address],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env=without | environment,
    )
    return done.stdout + done.stderr


def test_a_run_listens_on_loopback_alone_and_lets_in_nobody_without_its_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):  # as in a user's shell, unlike conftest.py
        monkeypatch.delenv(name)
    run = tmp_path / "run"
    with started(*ENDLESS, "--run-dir", str(run)) as launched:
        launched.wait_for("every actor has pushed")
        found = doors(launched)
        assert {"raylet", "gcs_server"} <= {process for process, _, _ in found}
        assert [door for door in found if not is_loopback(door[1])] == []
        launched.wait_until(lambda: bool(launched.workers("EvaluatorProcess")), "evaluator")
        modes = auth_modes(launched)
        roles = ("Actor", "Evaluator", "Learner", "Replay", "WeightStore")
        assert {"raylet", "gcs_server", *(f"ray::{role}Process" for role in roles)} <= set(modes)
        assert {name: theirs for name, theirs in modes.items() if theirs != {"token"}} == {}
        (gcs,) = [f"{ip}:{port}" for process, ip, port in found if process == "gcs_server"]
        gcs = gcs.replace("::ffff:", "")
        home = {"HOME": str(tmp_path)}  # no ~/.ray/auth_token
        token = next(
            process.environ()["RAY_AUTH_TOKEN"]
            for process in launched.processes()
            if process.name() == "raylet"
        )
        assert "refused:" in knock(gcs, RAY_AUTH_MODE="disabled", **home)
        # So that the refusal above is the token's doing.
        right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        assert "let in: 1 nodes" in knock(gcs, **right, **home)
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said


@pytest.mark.parametrize("mode", ["disabled", "k8s", "", None])
def test_a_ray_of_the_run_s_own_is_not_started_where_the_shell_asks_for_no_token(
    mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, object]] = []
    monkeypatch.setattr(ray_session, "_init", lambda **settings: begun.append(settings))
    if mode is None:
        monkeypatch.delenv("RAY_AUTH_MODE")
    else:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ConnectionError, match=f"RAY_AUTH_MODE={mode}: must be token, or not set"):
        ray_session.start_local()
    assert begun == []
