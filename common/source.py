"""Which code runs: every role refuses to work beside a driver of different code or versions."""

from __future__ import annotations

import hashlib
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from common.endings import HostUnfit

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

VERSIONS = ("torch", "ray", "gymnasium", "ale-py", "numpy", "lz4", "tensorboard")
"""Packages whose versions decide what a run does."""

Source = Mapping[str, str]
"""The version of Python and of each main package by its name, the hash of each file by its path."""


def own_source() -> Source:
    """Return what code this process runs: Troop's files, Python's minor version, main packages."""
    found = {}
    for name in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            # Without the build's name: a CPU host runs 2.13.0+cpu beside the GPU host's 2.13.0.
            found[name] = metadata.version(name).partition("+")[0]
    found["Python"] = f"{sys.version_info[0]}.{sys.version_info[1]}"
    files = [ROOT / "launch.py"]
    for folder in ("actors", "common", "driver", "learner", "replay"):
        files += sorted((ROOT / folder).rglob("*.py"))
    for file in files:
        found[str(file.relative_to(ROOT))] = _hash(file.read_bytes())
    return found


def source_hash() -> str:
    """Return a hash of all that `own_source` tells."""
    return _hash(repr(sorted(own_source().items())).encode())


def expect_source(expected: Source, role: str) -> None:
    """Check that this process runs the driver's code.

    Raises:
      HostUnfit: it does not; one line names the host and the first difference.
    """
    ours = own_source()
    for name in [*expected, *ours]:
        if difference := _difference(name, ours.get(name), expected.get(name)):
            raise HostUnfit(
                f"{role} on {socket.gethostname()}: {difference}; install the same checkout and "
                "versions on every host"
            )


def _difference(name: str, ours: str | None, drivers: str | None) -> str:
    if ours == drivers:
        return ""
    if ours is None:
        return f"{name} is missing"
    if drivers is None:
        return f"this host has {name}, the driver does not"
    if name.endswith(".py"):
        return f"{name} is not as the driver has it"
    return f"this host has {name} {ours}, the driver {drivers}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
