"""source_hash: the same code gives the same hash, any other code another."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from fakes import made

from common import source
from common.endings import HostUnfit
from common.source import ROOT, expect_source, own_source, source_hash


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the source that `source_hash` looks at instead."""
    for folder in ("actors", "common", "driver", "learner", "replay"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "launch.py", tmp_path)
    monkeypatch.setattr(source, "ROOT", tmp_path)
    return tmp_path


def test_copy_of_the_checkout_elsewhere_has_the_same_hash(checkout: Path) -> None:
    copied = source_hash()
    code = "from common.source import source_hash; print(source_hash())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == copied
    assert re.fullmatch(r"[0-9a-f]{16}", copied)


def append(path: Path) -> None:
    path.write_text(path.read_text() + "# changed\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "actor changed": lambda root: append(root / "actors" / "worker.py"),
    "learner changed": lambda root: append(root / "learner" / "worker.py"),
    "replay changed": lambda root: append(root / "replay" / "server.py"),
    "common changed": lambda root: append(root / "common" / "types.py"),
    "launch changed": lambda root: append(root / "launch.py"),
    "file added": lambda root: (root / "common" / "new.py").write_text(""),
    "file added in a folder of its own": lambda root: (
        made(root / "common" / "deep") / "new.py"
    ).touch(),
    "file moved to another package": lambda root: (root / "common" / "seeding.py").rename(
        root / "replay" / "seeding.py"
    ),
    "file gone": lambda root: (root / "common" / "seeding.py").unlink(),
    "file renamed": lambda root: (root / "common" / "seeding.py").rename(
        root / "common" / "sowing.py"
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_any_change_of_the_source_changes_the_hash(
    checkout: Path, change: Callable[[Path], object]
) -> None:
    before = source_hash()
    assert source_hash() == before
    change(checkout)
    assert source_hash() != before


def test_what_is_no_source_does_not_count(checkout: Path) -> None:
    before = source_hash()
    (checkout / "notes.txt").write_text("x")
    (checkout / "common" / "__pycache__").mkdir()
    (checkout / "common" / "__pycache__" / "types.cpython-311.pyc").write_bytes(b"x")
    (checkout / "runs").mkdir()
    assert source_hash() == before


@pytest.mark.parametrize("package", source.VERSIONS)
def test_other_version_of_a_main_package_changes_the_hash(
    checkout: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source_hash()
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.0.1" if name == package else real(name)
    )
    assert source_hash() != before


def test_build_of_a_package_does_not_count(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A CPU host runs 2.13.0+cpu beside the GPU host's 2.13.0.
    hashes = []
    for version in ("2.13.0", "2.13.0+cpu"):
        monkeypatch.setattr(metadata, "version", lambda name, version=version: version)
        hashes.append(source_hash())
    assert hashes[0] == hashes[1]


def test_other_minor_version_of_python_changes_the_hash(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source_hash()
    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    assert source_hash() != before


def test_role_beside_the_same_source_may_run() -> None:
    expect_source(own_source(), "actor 3")


DIFFERENCES = {
    "file changed": "common/types.py is not as the driver has it",
    "file gone": "common/seeding.py is missing",
    "file added": "this host has common/new.py, the driver does not",
    "package": "this host has numpy 0.0.1, the driver {numpy}",
    "package gone": "numpy is missing",
    "Python": "this host has Python 3.99, the driver {python}",
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_role_beside_other_source_is_refused_with_host_and_first_difference(
    what: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drivers, real = own_source(), metadata.version
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if what == "file changed":
        append(checkout / "common" / "types.py")
    elif what == "package":
        monkeypatch.setattr(
            metadata, "version", lambda name: "0.0.1" if name == "numpy" else real(name)
        )
    elif what == "package gone":

        def version(name: str) -> str:
            if name == "numpy":
                raise metadata.PackageNotFoundError(name)
            return real(name)

        monkeypatch.setattr(metadata, "version", version)
    elif what == "Python":
        monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    else:
        CHANGES[what](checkout)
    difference = DIFFERENCES[what].format(numpy=real("numpy"), python=python)
    with pytest.raises(HostUnfit) as caught:
        expect_source(drivers, "actor 3")
    assert str(caught.value) == (
        f"actor 3 on {socket.gethostname()}: {difference}; install the same checkout and versions "
        "on every host"
    )
