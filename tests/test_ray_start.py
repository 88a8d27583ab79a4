"""How a run's own Ray comes up, or does not: in shells, folders and machines that are not tidy."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from launching import ROOT, Launched, launch, left_in, raylets, result_of, started

pytestmark = pytest.mark.ray

CARTPOLE = ("--preset", "cartpole", "--actors", "1", "--evaluator.no-enabled")
SHORT = (*CARTPOLE, "--total-frames", "300")
ENDLESS = (*CARTPOLE, "--total-frames", "100_000_000")
# Everything that a shell may say of another Ray, or get wrong about this one.
STRANGE_SHELL = {
    "RAY_ADDRESS": "203.0.113.1:6379",
    "RAY_AUTH_TOKEN": "",
    "RAY_AUTH_TOKEN_PATH": "/nonexistent/token",
    "RAY_GCS_SERVER_PORT": "none",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": "no json",
    "RAY_NAMESPACE": "theirs",
    "RAY_REDIS_ADDRESS": "203.0.113.1:6379",
    "RAY_RUNTIME_ENV_HOOK": "no.such.hook",
    "RAY_TMPDIR": "/nonexistent",
    "RAY_USE_TLS": "1",
    "RAY_gcs_storage": "rocksdb",
    "RAY_raylet_start_wait_time_s": "abc",
    "HOME": "/nonexistent",
}


def expect_one_line(text: str) -> None:
    assert "Traceback" not in text
    assert "\n" not in text.strip()


def test_a_strange_shell_a_tmpdir_too_long_and_uv_run_do_not_matter(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 95)
    long.mkdir()
    run = tmp_path / "folder"
    # Ray looks for a parent that is called `uv run`, and builds its environment anew.
    command = [sys.executable, str(ROOT / "launch.py"), *SHORT, "--run-dir", str(run)]
    (tmp_path / "run").write_text(
        f"import subprocess, sys; sys.exit(subprocess.run({command!r}).returncode)"
    )
    done = subprocess.run(
        ["uv", "run", "launch.py"],
        executable=sys.executable,
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env={**os.environ, **STRANGE_SHELL, "TMPDIR": str(long)},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert result_of(run)["end_reason"] == "done"


def test_the_small_shared_memory_of_a_container_is_enough_and_a_file_is_no_tmpdir(
    tmp_path: Path,
) -> None:
    shrink = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64m none /dev/shm && exec "$@"']
    if shutil.which("unshare") is None or subprocess.run([*shrink, "sh", "true"]).returncode:
        pytest.skip("needs the right to mount")
    (tmp_path / "file").write_text("")
    command = [sys.executable, str(ROOT / "launch.py"), *SHORT, "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(
        [*shrink, "sh", *command],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "TMPDIR": str(tmp_path / "file")},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_too_few_open_files_are_refused_before_anything_starts(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "launch.py"), *SHORT, "--run-dir", str(run)]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -n 64; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("launch.py: ulimit -n 64: must be >= 1024")
    expect_one_line(done.stderr)
    assert not run.exists()


def test_a_raylet_that_ends_before_it_is_up_is_started_once_more_and_nothing_is_left(
    base: Path, tmp_path: Path
) -> None:
    killed = set()

    def kill_raylets(launched: Launched) -> None:
        while launched.is_running:
            for raylet in raylets(launched):
                with contextlib.suppress(psutil.Error):
                    raylet.kill()
                    killed.add(raylet.pid)

    run = tmp_path / "run"
    with started(*ENDLESS, "--run-dir", str(run), environment={"TMPDIR": str(base)}) as launched:
        killer = threading.Thread(target=kill_raylets, args=[launched])
        killer.start()
        done = launched.wait()
        killer.join()
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(killed) == 2
    assert done.stdout.count("Ray did not start, trying once more: its raylet is gone") == 1
    assert "the run ended: Ray did not start, twice: its raylet is gone" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr == ""
    assert left_in(base) == []


@pytest.mark.slow
def test_a_raylet_that_takes_longer_than_ray_would_wait_is_waited_for(tmp_path: Path) -> None:
    with started(*SHORT, "--run-dir", str(tmp_path / "run")) as launched:
        launched.wait_until(lambda: bool(raylets(launched)), "raylet")
        (raylet,) = raylets(launched)
        raylet.suspend()
        time.sleep(40.0)
        raylet.resume()
        done = launched.wait()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trying once more" not in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
def test_another_user_s_ray_folder_and_a_limit_of_processes(base: Path) -> None:
    theirs = Path("/tmp/ray")
    is_new = not theirs.exists()
    theirs.mkdir(exist_ok=True)
    mode = theirs.stat().st_mode
    os.chown(base, 65534, 65534)
    # It may read what the root user alone may: these tests' Python may lie in such a place.
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    environment = {**os.environ, "HOME": str(base), "TMPDIR": str(base)}

    def run(limit: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-B", str(ROOT / "launch.py"), *arguments]
        return subprocess.run(
            [*become, "bash", "-c", f'ulimit -u {limit}; exec "$@"', "bash", *command],
            capture_output=True,
            text=True,
            timeout=240,
            env=environment,
            cwd=ROOT,
        )

    try:
        theirs.chmod(0o755)
        done = run("unlimited", *SHORT, "--run-dir", str(base / "run"))
        assert done.returncode == 0, done.stdout + done.stderr
        done = run("60", *SHORT, "--run-dir", str(base / "limited"))
        assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
        assert done.stderr == "launch.py: ulimit -u 60: must be >= 1024 for Ray's threads\n"
        assert not (base / "limited").exists()
        assert left_in(base) == []
    finally:
        theirs.chmod(mode)
        if is_new:
            with contextlib.suppress(OSError):
                theirs.rmdir()


def test_an_address_where_somebody_else_listens_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = launch(*SHORT, "--address", address)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"--address {address}: no Ray cluster answers there: " in done.stderr
    assert "does not speak as Ray does" in done.stderr
    expect_one_line(done.stderr)
