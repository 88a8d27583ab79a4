"""What a run on one machine listens on, where its sockets lie, and whom it lets in.

The tests share one run, which the last of them ends.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from launching import (
    ON_THE_PATH,
    ROOT,
    STOP_S,
    Launched,
    launch,
    left_in,
    raylets,
    result_of,
    started,
    title_of,
)
from unhurried import GAME

from driver import ray_session

ENDLESS = ("--preset", "cartpole", "--env", GAME, "--total-frames", "100_000_000")
RAY_S_SOCKETS = {"raylet", "plasma_store"}

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


def is_shut(folder: Path) -> bool:
    """Return whether nobody but its owner can enter a folder."""
    return folder.stat().st_mode & 0o077 == 0


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


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doors") / "run"


@pytest.fixture(scope="module")
def running(base: Path, run: Path) -> Iterator[Launched]:
    """Return a run that plays, started from a shell that says nothing of Ray, unlike conftest."""
    shell = {"TMPDIR": str(base), **ON_THE_PATH}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.delenv(name)
        with started(*ENDLESS, "--dashboard", "--run-dir", str(run), environment=shell) as launched:
            patch.undo()
            launched.wait_for("every actor has pushed")
            launched.wait_until(lambda: bool(launched.workers("EvaluatorProcess")), "evaluator")
            yield launched
            if launched.is_running:
                launched.interrupt()


def address_of(running: Launched) -> str:
    """Return where a run's Ray is asked for."""
    (address,) = {f"{ip}:{port}" for name, ip, port in doors(running) if name == "gcs_server"}
    return address.replace("::ffff:", "")


@pytest.mark.ray
def test_a_run_listens_on_loopback_alone_and_lets_in_nobody_without_its_token(
    running: Launched, tmp_path: Path
) -> None:
    found = doors(running)
    assert {"raylet", "gcs_server"} <= {process for process, _, _ in found}
    assert [door for door in found if not is_loopback(door[1])] == []
    modes = auth_modes(running)
    roles = ("Actor", "Evaluator", "Learner", "Replay", "WeightStore")
    assert {"raylet", "gcs_server", *(f"ray::{role}Process" for role in roles)} <= set(modes)
    assert {name: theirs for name, theirs in modes.items() if theirs != {"token"}} == {}
    home = {"HOME": str(tmp_path)}  # no ~/.ray/auth_token
    (raylet,) = raylets(running)
    token = raylet.environ()["RAY_AUTH_TOKEN"]
    assert "refused:" in knock(address_of(running), RAY_AUTH_MODE="disabled", **home)
    # So that the refusal above is the token's doing.
    right = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    assert "let in: 1 nodes" in knock(address_of(running), **right, **home)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ({"RAY_AUTH_TOKEN": "0" * 64}, "it asks for another token than RAY_AUTH_TOKEN, "),
        ({"RAY_AUTH_TOKEN": "", "HOME": "/nonexistent"}, "no authentication token was found"),
        ({"RAY_AUTH_MODE": "disabled"}, "has here (RAY_AUTH_MODE=disabled)"),
    ],
)
def test_a_shell_without_the_token_of_a_ray_is_refused_in_one_line(
    running: Launched, shell: dict[str, str], said: str
) -> None:
    done = launch(*ENDLESS, "--address", address_of(running), environment={**shell, **ON_THE_PATH})
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.ray
def test_sockets_and_logs_lie_in_a_folder_that_others_cannot_enter(
    running: Launched, base: Path
) -> None:
    (folder,) = base.glob("troop-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    sockets = {
        Path(str(connection.laddr))
        for process in running.processes()
        for connection in process.net_connections(kind="unix")
        if str(connection.laddr).startswith("/")
    }
    assert {path.name for path in sockets if path.is_relative_to(folder)} >= RAY_S_SOCKETS
    # Ray's web pages have one more, in a folder that Python makes for it.
    assert [path for path in sockets if not any(map(is_shut, path.parents))] == []
    (raylet,) = raylets(running)
    assert f"--temp_dir={folder}" in title_of(raylet)


def expect_death_of_agent(launched: Launched, run: Path, title: str, name: str) -> None:
    """Kill one of Ray's agents; see the run end and say which."""
    (agent,) = launched.workers(title)
    agent.kill()
    assert launched.wait(60.0).returncode == 1, launched.said
    reason = result_of(run)["end_reason"]
    assert reason.startswith("Ray died: its raylet is gone: "), reason
    assert name in reason


@pytest.mark.ray
def test_the_death_of_ray_s_agent_is_told_by_its_name_and_its_folder_goes_with_the_run(
    running: Launched, run: Path, base: Path
) -> None:
    expect_death_of_agent(running, run, "DashboardAgent", "dashboard_agent")
    running.wait_until_gone(STOP_S)
    assert left_in(base) == []


@pytest.mark.ray
def test_a_killed_run_s_folder_goes_with_the_next_start(base: Path, tmp_path: Path) -> None:
    shell = {"TMPDIR": str(base), **ON_THE_PATH}
    with started(*ENDLESS, "--run-dir", str(tmp_path / "killed"), environment=shell) as launched:
        launched.wait_until(lambda: bool(raylets(launched)), "raylet")
        launched.kill()
        launched.wait(STOP_S)
        (killed,) = left_in(base)
        for process in launched.processes():  # Ray's agents would wait a minute for news
            with contextlib.suppress(psutil.Error):
                process.kill()
    run = tmp_path / "next"
    with started(*ENDLESS, "--run-dir", str(run), environment=shell) as launched:
        launched.wait_for("every actor has pushed")
        assert len(left_in(base)) == 1
        assert killed not in left_in(base)
        expect_death_of_agent(launched, run, "RuntimeEnv", "runtime_env_agent")
    assert left_in(base) == []


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
