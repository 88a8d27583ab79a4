"""What tests share: one Ray per session, shut off from any other and from the user's settings."""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from disks import SmallDisk

# Ray reads these when it is imported, the authentication mode for good; pytest imports this file
# before any test. The token lives in this session's environment, which Ray's processes inherit:
# ~/.ray/auth_token is neither read nor written.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# A reference that slips into a plain pickle keeps its object alive for ever: refuse instead.
os.environ["RAY_allow_out_of_band_object_ref_serialization"] = "0"  # noqa: SIM112
# A cluster this shell happens to point at is none of the tests' business.
os.environ.pop("RAY_ADDRESS", None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Say which tests one of the two workers of a run has to take, and which come first.

    Those that start Ray, one after the other: beside each other they would run late. Of the rest
    all of a file, which often share a run. Ray's take longest, so they begin first.
    """
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
    for item in items:
        starts_ray = item.get_closest_marker("ray") is not None
        item.add_marker(pytest.mark.xdist_group("ray" if starts_ray else item.path.stem))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run without these groups: pytest-xdist writes them behind the names of tests."""
    if hasattr(session.config, "workerinput"):
        lost = [item.nodeid for item in session.items if "@" not in item.nodeid]
        if lost:
            raise pytest.UsageError(f"pytest-xdist made no groups: {lost[0]} is in none")


@pytest.fixture(scope="session", autouse=True)
def one_thread_of_torch() -> None:
    """Two threads that share a core with somebody else wait for each other most of the time."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Start a Ray of two CPUs and a 300 MiB object store, once (5 s); shut it down at the end.

    It is shared: a test ends the actors it starts, and asks nothing of the cluster's whole state.
    """
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=300 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A place for temporary files whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short serial run that ended well; tests copy it before they change it."""
    import torch

    from launch import main

    path = tmp_path_factory.mktemp("trained") / "run"
    flags = ("--preset", "cartpole", "--serial", "--evaluator.no-enabled", "--seed", "7")
    assert main([*flags, "--total-frames", "1100", "--run-dir", str(path)]) == 0
    torch.use_deterministic_algorithms(False)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mount a disk of 256 KiB; skip where that is not allowed."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs `mount`")
    if done.returncode:
        pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
    yield SmallDisk(path)
    subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that runs a command which must be refused, and returns its one line."""
    from launch import main

    def refusal(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert end.value.code == 2, said
        assert said.out == ""
        assert said.err.count("\n") == 1, said.err
        return said.err.removeprefix("launch.py: ").strip()

    return refusal


@pytest.fixture
def torch_is_left_as_it_was() -> Iterator[None]:
    """Undo what a serial run in this process does: it makes torch deterministic, of few threads."""
    import torch

    threads, is_deterministic = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    yield
    torch.use_deterministic_algorithms(is_deterministic)
    torch.set_num_threads(threads)
