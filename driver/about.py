"""What `run.json` says of a run: what was typed, when, with which code, on what."""

from __future__ import annotations

import platform
import subprocess
import time
from importlib import metadata
from typing import Any, TypedDict

from common.machine import machine
from common.source import ROOT, VERSIONS, source_hash


class HostFacts(TypedDict, total=False):
    """What `run.json` says of one of a cluster's hosts."""

    name: str
    address: str
    resources: dict[str, float]


class Start(TypedDict, total=False):
    """What `run.json` says of one start of the run."""

    game: str
    command: list[str]
    started: str
    git_commit: str | None
    git_changed: bool | None
    source_hash: str
    python: str
    versions: dict[str, str]
    machine: dict[str, str | int | list[str]]
    hosts: list[HostFacts]


class About(Start, total=False):
    """`run.json`: its first start, and those that resumed it."""

    resumed: list[Start]


def facts() -> dict[str, Any]:
    """Return what a reader needs to judge or repeat the run: time, code, versions, hardware."""
    changes = _git("status", "--porcelain")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed": None if changes is None else bool(changes),
        "source_hash": source_hash(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "machine": machine(),
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
