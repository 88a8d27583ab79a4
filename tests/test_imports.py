"""Who may import whom: package arrows, ray, torch; and other imports are declared dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The floor plan: what each room may import, besides itself. The most specific name counts.
FLOOR_PLAN = {
    "common": set(),
    "replay": {"common"},
    "actors": {"common", "replay"},
    "learner": {"common", "replay"},
    "driver.view": {"common", "driver.about", "driver.run_folder"},
    "driver": {"common", "replay", "actors", "learner"},
    "launch": {"common", "driver", "benchmarks"},
}
PACKAGES = tuple(name for name in FLOOR_PLAN if (ROOT / name).is_dir())
OURS = {*PACKAGES, "launch", "benchmarks"}
RUFF = PYPROJECT["tool"]["ruff"]["lint"]
# Who may import ray or torch stands in pyproject.toml alone. "learner/*" stands for a folder.
EXEMPT = {path for path, rules in RUFF["per-file-ignores"].items() if "TID251" in rules}
# Of the driver, these alone need torch without a word of it: what they import has it.
TORCH_BY_OTHERS = {
    "driver/best_weights.py",
    "driver/ray_run.py",
    "driver/serial_replay.py",
    "driver/serial_run.py",
    "driver/train.py",
}


def is_exempt(path: str) -> bool:
    """Return whether a file, or the folder it lies in, may import one of the two."""
    return path in EXEMPT or path.partition("/")[0] + "/*" in EXEMPT


def is_shell(source: str) -> bool:
    """Return whether a file's first line says that it imports ray."""
    return source.startswith('"""RAY SHELL')


def uses_torch(path: str, source: str) -> bool:
    """Return whether a file may import torch: a Ray shell of replay or the driver need not."""
    return is_exempt(path) and not (is_shell(source) and path.startswith(("replay/", "driver/")))


def product_files() -> list[Path]:
    """Return every Python file that is shipped."""
    return sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")) + sorted(
        ROOT.glob("*.py")
    )


def imported_modules(source: str) -> set[str]:
    """Return what a file imports anywhere in it, functions and `if TYPE_CHECKING` included.

    `from a import b` yields "a" and "a.b", since b may be a module.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            found |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            name = ast.unparse(node.func)
            target = node.args[0]
            if name.rpartition(".")[2] in ("import_module", "__import__") and isinstance(
                target, ast.Constant
            ):
                found.add(str(target.value))
    return found


def is_within(module: str, places: set[str]) -> bool:
    """Return whether a module is one of `places`, or in one."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def violations(path: str, source: str) -> list[str]:
    """Return what a file at `path` (relative to the repository) imports against the rules."""
    found = []
    ours = path.removesuffix(".py").replace("/", ".")
    room = max((name for name in FLOOR_PLAN if is_within(ours, {name})), key=len)
    modules = imported_modules(source)
    tops = {module.partition(".")[0] for module in modules}
    if "" in tops:
        found.append("relative import")
    if "ray" in tops and not (is_exempt(path) and is_shell(source)):
        found.append("ray outside the Ray shells")
    if "torch" in tops and not uses_torch(path, source):
        found.append("torch where it is not allowed")
    # `from driver import view` yields "driver", which tells nothing that "driver.view" does not.
    packages = {module for module in modules if (ROOT / module.replace(".", "/")).is_dir()}
    for module in sorted(modules - packages):
        if module.partition(".")[0] in OURS and not is_within(module, FLOOR_PLAN[room] | {room}):
            found.append(f"{room} imports {module}")
    return found


@pytest.mark.parametrize("path", [str(p.relative_to(ROOT)) for p in product_files()])
def test_file_imports_only_what_it_may(path: str) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


SHELL = '"""RAY SHELL: a process."""\n'
KNOWN_BAD = [
    ("common/types.py", "from replay.storage import SegmentStorage", "common imports replay"),
    ("common/types.py", "from driver import plan", "common imports driver"),
    ("common/types.py", "import launch", "common imports launch"),
    ("actors/policy.py", "import learner.learner", "actors imports learner"),
    ("actors/worker.py", "from learner.weight_store import WeightStore", "actors imports learner"),
    ("actors/worker.py", "from driver.run_folder import RunFolder", "actors imports driver"),
    ("learner/learner.py", "from actors import policy", "learner imports actors"),
    ("learner/learner.py", "import benchmarks.replay", "learner imports benchmarks"),
    ("replay/server.py", "import actors.worker", "replay imports actors"),
    ("replay/server.py", "from learner.prefetch import Prefetcher", "replay imports learner"),
    ("driver/ray_run.py", "import launch", "driver imports launch"),
    ("driver/view/console.py", "from driver.plan import Plan", "driver.view imports driver.plan"),
    ("driver/view/console.py", "from actors import policy", "driver.view imports actors"),
    ("launch.py", "from learner import worker", "launch imports learner"),
    ("replay/storage.py", "from . import sum_tree", "relative"),
    ("replay/storage.py", "import ray", "ray outside"),
    ("replay/storage.py", SHELL + "import ray", "ray outside"),
    ("replay/server.py", "import ray", "ray outside"),
    ("learner/learner.py", "import ray.util", "ray outside"),
    ("learner/learner.py", "def f():\n    from ray import get", "ray outside"),
    ("actors/n_step.py", "import importlib\nimportlib.import_module('ray')", "ray outside"),
    ("replay/server.py", SHELL + "import torch", "torch where"),
    ("common/config.py", "from torch import nn", "torch where"),
    ("common/metrics.py", "if True:\n    import torch.cuda", "torch where"),
]


@pytest.mark.parametrize(("path", "source", "expected"), KNOWN_BAD)
def test_known_bad_import_is_rejected(path: str, source: str, expected: str) -> None:
    assert any(expected in violation for violation in violations(path, source))


KNOWN_GOOD = [
    ("actors/worker.py", SHELL + "import ray\nimport torch\nfrom replay.client import RayHandle"),
    ("learner/learner.py", "import torch\nfrom common.types import Batch"),
    ("replay/server.py", SHELL + "import ray\nfrom replay.shard import ReplayShard"),
    ("driver/ray_run.py", SHELL + "import ray\nimport actors.worker, learner.worker"),
    ("driver/view/curves.py", "from driver.run_folder import RunFolder"),
    ("launch.py", "from driver import train\nfrom common.presets import PRESETS"),
    ("common/config.py", "import rayon, torchlight  # only the first word counts, whole"),
]


@pytest.mark.parametrize(("path", "source"), KNOWN_GOOD)
def test_known_good_import_is_accepted(path: str, source: str) -> None:
    assert violations(path, source) == []


def imported_tests(source: str) -> set[str]:
    """Return the test modules that a test imports: what two share has a file of its own."""
    return {
        module
        for module in imported_modules(source)
        if "." not in module and module.startswith("test_")
    }


def test_no_test_imports_another() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))
    found = {file.name: imported_tests(file.read_text()) for file in files}
    assert {name: modules for name, modules in found.items() if modules} == {}


@pytest.mark.parametrize(
    "known_bad",
    ["from test_n_step import game", "import test_n_step", "def f():\n    import test_n_step as t"],
)
def test_test_that_imports_another_is_rejected(known_bad: str) -> None:
    assert imported_tests(known_bad) == {"test_n_step"}


def test_exceptions_name_files_that_need_them() -> None:
    """Among the product's; tests and benchmarks import what they want."""
    for place in sorted(EXEMPT - {"tests/*", "benchmarks/*"}):
        files = list(ROOT.glob(place.replace("*", "**/*.py")))
        imported = {m for file in files for m in imported_modules(file.read_text())}
        assert {"ray", "torch"} & imported, place


def run_without(blocked: str, modules: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter in which `blocked` cannot be imported."""
    code = f"import sys; sys.modules[{blocked!r}] = None\nimport " + ", ".join(modules)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )


def modules(packages: tuple[str, ...], wanted: Callable[[str, str], bool]) -> list[str]:
    """Return our modules in `packages` whose path and source are wanted."""
    files = sorted(p for name in packages for p in (ROOT / name).rglob("*.py"))
    paths = [
        str(p.relative_to(ROOT)) for p in files if wanted(str(p.relative_to(ROOT)), p.read_text())
    ]
    return [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths]


def test_replay_messages_and_what_people_look_at_import_without_torch() -> None:
    """Whatever they import on the way, too."""
    wanted = modules(
        ("common", "replay", "driver"),
        lambda path, source: not uses_torch(path, source) and path not in TORCH_BY_OTHERS,
    )
    result = run_without("torch", wanted)
    assert result.returncode == 0, result.stderr


def test_plain_cores_import_without_ray() -> None:
    result = run_without("ray", modules(PACKAGES, lambda _, source: not is_shell(source)))
    assert result.returncode == 0, result.stderr


def test_blocked_module_is_missed() -> None:
    assert run_without("ray", ["replay.server"]).returncode != 0
    assert run_without("torch", ["common.networks"]).returncode != 0


def ruff(path: str, source: str) -> str:
    """Return what the project's ruff says of `source`, were it the file at `path`."""
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID", "--output-format", "concise"]
        + ["--no-cache", "--stdin-filename", path, "-"],
        input=source,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode in (0, 1), result.stderr
    return result.stdout


BANNED = RUFF["flake8-tidy-imports"]["banned-api"]


def test_ruff_bans_ray_and_torch() -> None:
    assert set(BANNED) == {"ray", "torch"}


@pytest.mark.parametrize("module", sorted(BANNED))
@pytest.mark.parametrize("path", ["replay/storage.py", "common/types.py", "actors/n_step.py"])
def test_ruff_rejects_a_banned_import(path: str, module: str) -> None:
    said = ruff(path, f"import {module}\n")
    assert "TID251" in said
    assert BANNED[module]["msg"] in said


def test_ruff_rejects_a_relative_import() -> None:
    assert "TID252" in ruff("replay/storage.py", "from . import sum_tree\n")


def test_ruff_accepts_ray_in_a_shell() -> None:
    assert "TID" not in ruff("replay/server.py", "import ray\n")


def normal(name: str) -> str:
    """Return a distribution's name as the index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def undeclared(sources: list[str], requirements: list[str]) -> set[str]:
    """Return the third-party modules in `sources` that no requirement brings by its own name."""
    declared = {normal(Requirement(text).name) for text in requirements}
    providers = metadata.packages_distributions()
    tops = {m.partition(".")[0] for source in sources for m in imported_modules(source)} - {""}
    return {
        top
        for top in tops - set(sys.stdlib_module_names) - OURS
        if not declared & {normal(name) for name in providers.get(top, [])}
    }


def test_every_import_is_a_declared_dependency() -> None:
    project = PYPROJECT["project"]
    product = [path.read_text() for path in product_files()]
    assert undeclared(product, project["dependencies"]) == set()
    benchmarks = [path.read_text() for path in (ROOT / "benchmarks").rglob("*.py")]
    requirements = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert undeclared(benchmarks, requirements) == set()


def test_undeclared_import_is_found() -> None:
    requirements = ["numpy>=2", "opencv-python-headless"]
    assert undeclared(["import numpy.linalg, cv2, os", "import requests"], requirements) == {
        "requests"
    }
