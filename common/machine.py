"""What this machine lets a run have: processor cores, memory, GPUs."""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

_ROOT = Path("/")
# Files of control groups that bound memory: of Linux's second version of them, then of the first.
# Above `memory.high` a process is held up until it gives memory back, so that is a bound, too.
_MEMORY_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")


def machine(root: Path = _ROOT) -> dict[str, Any]:
    """Return processor, cores, memory in bytes, and NVIDIA's GPUs.

    Args:
      root: folder that holds `proc`, and what is mounted.
    """
    model = re.search(r"^model name\s*:\s*(.*)$", _text(root / "proc/cpuinfo"), re.MULTILINE)
    return {
        "platform": platform.platform(),
        # Not Linux: the platform's own word.
        "cpu": model[1].strip() if model else platform.processor(),
        "cores": available_cores(root),
        "memory_bytes": total_memory_bytes(root),
        "gpus": _gpus(root),
    }


def available_cores(root: Path = _ROOT) -> int:
    """Return how many cores this process may keep busy, one at least.

    Those of its affinity, or the quota of its control groups where that is less; of a quota the
    whole cores, since nothing is left then of the last one for whoever else the run consists of.

    Args:
      root: as for `machine`.
    """
    cores = [len(os.sched_getaffinity(0))]
    for group in _control_groups("cpu", root):
        first = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        for quota_and_period in (_numbers(group / "cpu.max"), first):
            if len(quota_and_period) == 2:  # else there is none
                cores.append(quota_and_period[0] // quota_and_period[1])
    return max(1, min(cores))


def total_memory_bytes(root: Path = _ROOT) -> int:
    """Return the machine's memory, or what control groups or `ulimit` leave where that is less.

    Args:
      root: as for `machine`.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        if (limit := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY:
            limits.append(limit)
    for group in _control_groups("memory", root):
        for name in _MEMORY_LIMITS:
            limits += _numbers(group / name)
    return min(limits)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, the innermost first: each may bound it.

    Groups lie in each other; what bounds one bounds all that lie in it. A container may see its own
    as the outermost.
    """
    # By controller, "" for the second version, which has one tree for all.
    paths = {
        name: path
        for names, path in re.findall(r"^\d+:(.*?):(/.*)$", _text(root / "proc/self/cgroup"), re.M)
        for name in names.split(",")
    }
    mounts = re.findall(
        r"^\S+ \S+ \S+ (\S+) (\S+) .*?- (cgroup2?) \S* (\S+)$",
        _text(root / "proc/self/mountinfo"),
        re.MULTILINE,
    )
    for top, at, kind, options in mounts:
        name = "" if kind == "cgroup2" else controller
        if name not in paths or (name and name not in options.split(",")):
            continue
        path, top = PurePosixPath(paths[name]), PurePosixPath(_unescaped(top))
        is_seen = path.is_relative_to(top) and ".." not in path.parts
        inside = path.relative_to(top) if is_seen else PurePosixPath()
        for part in (inside, *inside.parents):
            yield root / _unescaped(at).lstrip("/") / part


def _unescaped(path: str) -> str:
    r"""Return a path as it is, of one as the kernel lists it: a space is "\040" there."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _numbers(file: Path) -> list[int]:
    """Return the numbers that a file holds; [] where not all are > 0 ("max", -1: no limit)."""
    text = _text(file)
    return [int(word) for word in text.split()] if re.fullmatch(r"([1-9][0-9]*\s*)+", text) else []


def _gpus(root: Path) -> list[str]:
    files = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    models = [re.search(r"^Model:\s*(.*)$", _text(file), re.MULTILINE) for file in files]
    return [model[1].strip() for model in models if model]


def _text(file: Path) -> str:
    """Return what a file of the kernel's says, "" where it cannot be read."""
    try:
        return os.fsdecode(file.read_bytes())
    except OSError:
        return ""
