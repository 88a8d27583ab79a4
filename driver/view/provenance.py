"""Where the curves of a run come from, in lines below a plot and on the screen."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from common.schema import one_line
from driver.view.curves import RunCurves

_MOST_CHARACTERS = 2_000


def provenance(run: RunCurves) -> list[str]:
    """Return what it takes to judge or repeat a run, in lines: its command; commit and hardware.

    Whatever run.json does not say is left out.
    """
    about = run.about
    command, commit, machine = (about.get(key) for key in ("command", "git_commit", "machine"))
    lines = [shlex.join(map(str, command))] if isinstance(command, list) else []
    words = []
    if isinstance(commit, str):
        changed = " with uncommitted changes" if about.get("git_changed") else ""
        words.append(f"commit {commit[:12]}{changed}")
    if isinstance(about.get("started"), str):
        words.append(about["started"][:10])
    if isinstance(resumed := about.get("resumed"), list) and resumed:
        words.append(_resumptions(resumed, commit))
    if isinstance(machine, dict):
        words.append(f"{machine.get('cpu')}, {machine.get('cores')} cores")
        words += [str(gpu) for gpu in machine.get("gpus") or ["no GPU"]]
    return [drawable(line) for line in [*lines, *([", ".join(words)] if words else [])]]


def drawable(text: str) -> str:
    """Escape what no font can draw and a terminal would obey: a folder may have any name."""
    return one_line(text, _MOST_CHARACTERS)


def _resumptions(resumed: Sequence[Mapping[str, Any]], commit: object) -> str:
    """Say how often a run was resumed, and how often at which commits other than its first."""
    changed = {start.get("git_commit"): start.get("git_changed") for start in resumed}
    others = [
        f"{_often(times)} at {other[:12]}{' with uncommitted changes' if changed[other] else ''}"
        for other, times in Counter(start.get("git_commit") for start in resumed).items()
        if isinstance(other, str) and other != commit
    ]
    return f"resumed {_often(len(resumed))}" + (f" ({', '.join(others)})" if others else "")


def _often(times: int) -> str:
    return "once" if times == 1 else f"{times} times"
