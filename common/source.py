"""Which code runs: every role refuses to work beside a driver of different code or versions."""

from __future__ import annotations

import hashlib
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

VERSIONS = ("torch", "ray", "gymnasium", "ale-py", "numpy", "lz4", "tensorboard")
"""Packages whose versions decide what a run does."""


def source_hash() -> str:
    """Return a hash of Troop's source, Python's minor version and the main packages' versions."""
    digest = hashlib.sha256()
    for folder in ("actors", "common", "driver", "learner", "replay"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    digest.update((ROOT / "launch.py").read_bytes())
    # Without the build's name: a CPU host runs 2.13.0+cpu beside the GPU host's 2.13.0.
    versions = [metadata.version(name).partition("+")[0] for name in VERSIONS]
    digest.update(f"{sys.version_info[:2]} {versions}".encode())
    return digest.hexdigest()[:16]


def expect_source(expected: str, role: str) -> None:
    """Raise RuntimeError unless this process runs the driver's code."""
    actual = source_hash()
    if actual != expected:
        raise RuntimeError(
            f"{role}: runs other code or versions than the driver (source hash {actual}, the "
            f"driver's is {expected}); install the same checkout on every host"
        )
