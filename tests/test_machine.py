"""What a run may take of a machine: from trees of files like the kernel's, and from real groups."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import ROOT

from common import machine as machine_module
from common.machine import available_cores, machine, total_memory_bytes

CORES = 16
WHOLE_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

# As /proc/self/mountinfo has them: of systemd, of Docker's and Slurm's first version, of a hybrid.
SECOND = "30 23 0:26 {top} {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
CPU = "33 30 0:29 {top} {at} rw,nosuid shared:7 - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "34 30 0:30 {top} {at} rw,nosuid shared:8 - cgroup cgroup rw,memory\n"
OTHERS = (
    "23 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
    "24 23 0:5 / /dev rw,nosuid shared:2 - devtmpfs devtmpfs rw,size=4k\n"
    "38 30 0:34 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
)


class Tree:
    """A folder that looks like the root of a machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        """Write a file with its folders."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def mounts(self, *lines: str) -> None:
        """Say what is mounted."""
        self.write("proc/self/mountinfo", OTHERS + "".join(lines))

    @property
    def cores(self) -> int:
        """What the run would take of it."""
        return available_cores(self.root)

    @property
    def memory_bytes(self) -> int:
        """What the run would take of it."""
        return total_memory_bytes(self.root)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)))
    return Tree(tmp_path)


def test_machine_without_control_groups_is_used_whole(tree: Tree) -> None:
    assert (tree.cores, tree.memory_bytes) == (CORES, WHOLE_BYTES)
    tree.write("proc/self/cgroup", "0::/\n")
    tree.mounts()
    assert (tree.cores, tree.memory_bytes) == (CORES, WHOLE_BYTES)
    tree.mounts(SECOND.format(top="/", at="/sys/fs/cgroup"))  # and no file in it
    assert (tree.cores, tree.memory_bytes) == (CORES, WHOLE_BYTES)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("100000 100000\n", 1),
        ("300000 100000\n", 3),
        ("1600000 100000\n", 16),
        ("9900000 100000\n", 16),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("1000 1000000\n", 1),
        ("60000 20000\n", 3),
        ("max 100000\n", 16),
        ("max\n", 16),
        ("", 16),
        ("100000\n", 16),
        ("many 100000\n", 16),
        ("100000 0\n", 16),
        ("-1 100000\n", 16),
        ("100000 100000 100000\n", 16),
    ],
)
def test_cores_are_the_whole_ones_of_the_quota(tree: Tree, quota: str, cores: int) -> None:
    tree.write("proc/self/cgroup", "0::/job\n")
    tree.mounts(SECOND.format(top="/", at="/sys/fs/cgroup"))
    tree.write("sys/fs/cgroup/job/cpu.max", quota)
    assert tree.cores == cores


def test_least_limit_of_nested_groups_counts_wherever_it_stands(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n")
    tree.mounts(SECOND.format(top="/", at="/sys/fs/cgroup"))
    step = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0"
    tree.write(f"{step}/user/task_0/memory.max", "max\n")
    tree.write(f"{step}/user/task_0/cpu.max", "1200000 100000\n")
    assert (tree.cores, tree.memory_bytes) == (12, WHOLE_BYTES)
    tree.write(f"{step}/cpu.max", "400000 100000\n")
    tree.write(f"{step}/memory.max", "7000000\n")
    assert (tree.cores, tree.memory_bytes) == (4, 7_000_000)
    tree.write("sys/fs/cgroup/system.slice/memory.max", "5000000\n")
    tree.write("sys/fs/cgroup/system.slice/cpu.max", "200000 100000\n")
    assert (tree.cores, tree.memory_bytes) == (2, 5_000_000)
    tree.write(f"{step}/user/memory.high", "3000000\n")
    assert tree.memory_bytes == 3_000_000
    tree.write("sys/fs/cgroup/system.slice/another/memory.max", "1000\n")  # not ours
    tree.write("sys/fs/memory.max", "1000\n")  # above the mount
    assert tree.memory_bytes == 3_000_000


def test_first_version_has_a_tree_for_each_controller(tree: Tree) -> None:
    tree.write(
        "proc/self/cgroup",
        "5:cpu,cpuacct:/slurm/job_1/step_0\n4:memory:/slurm/job_1\n3:name=systemd:/\n0::/\n",
    )
    tree.mounts(
        CPU.format(top="/", at="/sys/fs/cgroup/cpu,cpuacct"),
        MEMORY.format(top="/", at="/sys/fs/cgroup/memory"),
        SECOND.format(top="/", at="/sys/fs/cgroup/unified"),
    )
    cpu = "sys/fs/cgroup/cpu,cpuacct/slurm"
    tree.write(f"{cpu}/job_1/step_0/cpu.cfs_quota_us", "-1\n")
    tree.write(f"{cpu}/job_1/step_0/cpu.cfs_period_us", "100000\n")
    assert tree.cores == CORES
    tree.write(f"{cpu}/cpu.cfs_quota_us", "350000\n")
    tree.write(f"{cpu}/cpu.cfs_period_us", "50000\n")
    assert tree.cores == 7
    memory = "sys/fs/cgroup/memory/slurm"
    tree.write(f"{memory}/job_1/memory.limit_in_bytes", "9223372036854771712\n")
    assert tree.memory_bytes == WHOLE_BYTES
    tree.write(f"{memory}/memory.limit_in_bytes", "1000000\n")
    assert tree.memory_bytes == 1_000_000


@pytest.mark.parametrize(
    ("path", "top"),
    [
        ("/docker/0abc", "/docker/0abc"),  # a container that sees its own group as the root
        ("/", "/"),  # one with a namespace for them
        ("/docker/0abc/inner", "/docker/0abc"),
        ("/../../outside", "/"),  # a process from outside of the namespace
        ("/kubepods/pod1/0abc", "/"),  # told by its host's name
        ("/a", "/b"),
    ],
)
def test_containers_own_limit_is_found_at_the_mount(tree: Tree, path: str, top: str) -> None:
    tree.write("proc/self/cgroup", f"4:memory:{path}\n2:cpu:{path}\n0::{path}\n")
    tree.mounts(
        MEMORY.format(top=top, at="/sys/fs/cgroup/memory"),
        SECOND.format(top=top, at="/sys/fs/cgroup"),
    )
    tree.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n")
    tree.write("sys/fs/cgroup/cpu.max", "200000 100000\n")
    tree.write("sys/outside/cpu.max", "100000 100000\n")
    assert (tree.cores, tree.memory_bytes) == (2, 2_000_000)


def test_paths_with_spaces_and_colons_are_read_as_they_are(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "0::/my job/a:b\n")
    tree.mounts(SECOND.format(top="/", at="/mnt/my\\040groups"))
    tree.write("mnt/my groups/my job/a:b/cpu.max", "100000 100000\n")
    assert tree.cores == 1


@pytest.mark.parametrize("text", ["", "\n\n", "0:\n", "nonsense\n", "\udcff\udcfe:::\n"])
def test_files_that_make_no_sense_limit_nothing(tree: Tree, text: str) -> None:
    for name in ("cgroup", "mountinfo"):
        tree.write(f"proc/self/{name}", "")
        (tree.root / "proc/self" / name).write_bytes(os.fsencode(text))
    assert (tree.cores, tree.memory_bytes) == (CORES, WHOLE_BYTES)


def test_machine_names_the_gpus_of_nvidias_driver(tree: Tree) -> None:
    assert machine(tree.root)["gpus"] == []
    for bus, model in (("0000:17:00.0", "NVIDIA A"), ("0000:65:00.0", "NVIDIA B")):
        tree.write(
            f"proc/driver/nvidia/gpus/{bus}/information", f"Model: \t\t {model}\nIRQ:   \t\t 5\n"
        )
    tree.write("proc/driver/nvidia/gpus/0000:99:00.0/information", "IRQ: 5\n")
    assert machine(tree.root)["gpus"] == ["NVIDIA A", "NVIDIA B"]


def test_machine_names_its_processor(tree: Tree) -> None:
    tree.write(
        "proc/cpuinfo", "processor\t: 0\nmodel name\t: A Processor: 3 GHz\nmodel name\t: B\n"
    )
    assert machine(tree.root)["cpu"] == "A Processor: 3 GHz"
    assert machine()["cores"] == available_cores()
    assert machine()["memory_bytes"] == total_memory_bytes()


# --- the real thing ------------------------------------------------------------------------------

_SHOW = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from common.machine import *; "


def shown(before: str, limits: str = "true") -> list[int]:
    """Return cores and memory that a process of its own sees, after doing `before` in Python."""
    code = f"{before}; {_SHOW}print(available_cores(), total_memory_bytes())"
    done = subprocess.run(
        ["sh", "-c", f'{limits} && exec "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


def test_memory_is_what_ulimit_leaves() -> None:
    assert shown("pass", "ulimit -v 2000000")[1] == 2_000_000 * 1024
    assert shown("pass", "ulimit -d 1000000")[1] == 1_000_000 * 1024


LIMITS = {
    "cpu": {"cpu.max": "100000 100000", "cpu.cfs_quota_us": "100000"},
    "memory": {"memory.max": str(1 << 30), "memory.limit_in_bytes": str(1 << 30)},
}


def outermost(controller: str) -> Path:
    """Return the root of the tree that bounds `controller` on this machine."""
    for group in reversed([*machine_module._control_groups(controller, Path("/"))]):
        second = group / "cgroup.controllers"
        if second.exists() and controller in second.read_text().split():
            return group
        if not second.exists() and any((group / name).exists() for name in LIMITS[controller]):
            return group
    raise OSError(f"no control groups for {controller}")


@pytest.fixture
def groups() -> Iterator[list[Path]]:
    """Make groups of one core and 1 GiB, with another inside; skip where that is not allowed."""
    made: list[Path] = []
    try:
        for controller, limits in LIMITS.items():
            top = outermost(controller)
            made.append(top / f"troop-test-{controller}-{secrets.token_hex(4)}")
            made[-1].mkdir()
            if (top / "cgroup.subtree_control").exists():
                (top / "cgroup.subtree_control").write_text(f"+{controller}")
            (made[-1] / "inner").mkdir()
            for name, limit in limits.items():
                if (made[-1] / name).exists():
                    (made[-1] / name).write_text(limit)
        yield made
    except OSError as error:
        pytest.skip(f"needs the right to make a control group: {error}")
    finally:
        for group in made:
            for folder in (group / "inner", group):
                if folder.exists():
                    folder.rmdir()


def test_process_in_nested_groups_of_one_core_and_a_gigabyte_takes_no_more(
    groups: list[Path],
) -> None:
    join = "; ".join(
        f"open({str(group / 'inner' / 'cgroup.procs')!r}, 'w').write('0')" for group in groups
    )
    assert shown(join) == [1, 1 << 30]
