"""Who may import whom: package arrows, ray, torch; and other imports are declared dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ("actors", "common", "learner", "replay")
OURS = {*PACKAGES, "launch", "benchmarks"}

# Which of our packages a package may import, besides itself.
ARROWS = {
    "common": set(),
    "actors": {"common"},
    "learner": {"common"},
    "replay": {"common"},
}
# The two shells at the ends of the wire also know replay's client side.
# actors and learner never see each other.
CROSSINGS = {
    "actors/worker.py": {"replay.client", "replay.writer"},
    "learner/worker.py": {
        "replay.assembly",
        "replay.client",
        "replay.handles",
        "replay.priority_updater",
    },
}
RAY_SHELLS = {
    "actors/worker.py",
    "common/crew.py",
    "common/evaluations.py",
    "common/placement.py",
    "common/ray_run.py",
    "common/ray_session.py",
    "common/saves.py",
    "launch.py",
    "learner/weight_store.py",
    "learner/worker.py",
    "replay/client.py",
    "replay/server.py",
}
# "learner/" stands for every file of that folder.
# Ruff's ignores in pyproject.toml are these and RAY_SHELLS.
TORCH_USERS = {
    "actors/actor_loop.py",
    "actors/evaluator.py",
    "actors/policy.py",
    "actors/priority.py",
    "actors/worker.py",
    "common/networks.py",
    "common/targets.py",
    "launch.py",
    "learner/",
}


def listed(path: str, places: set[str]) -> bool:
    """Return whether a file, or the folder it lies in, is one of `places`."""
    return path in places or path.partition("/")[0] + "/" in places


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


def violations(path: str, source: str) -> list[str]:
    """Return what a file at `path` (relative to the repository) imports against the rules."""
    found = []
    package = path.partition("/")[0].removesuffix(".py")
    modules = imported_modules(source)
    tops = {module.partition(".")[0] for module in modules}
    if "" in tops:
        found.append("relative import")
    if "ray" in tops and path not in RAY_SHELLS:
        found.append("ray outside the Ray shells")
    if "torch" in tops and not listed(path, TORCH_USERS):
        found.append("torch where it is not allowed")
    if package == "launch":
        return found
    for module in sorted(modules):
        top = module.partition(".")[0]
        if top not in OURS or top in ARROWS[package] | {package}:
            continue
        allowed = CROSSINGS.get(path, set())
        # `from replay.client import X` yields "replay.client" and "replay.client.X", both allowed.
        if not any(module == name or module.startswith(f"{name}.") for name in allowed):
            found.append(f"{package} imports {module}")
    return found


@pytest.mark.parametrize("path", [str(p.relative_to(ROOT)) for p in product_files()])
def test_file_imports_only_what_it_may(path: str) -> None:
    assert violations(path, (ROOT / path).read_text()) == []


KNOWN_BAD = [
    ("common/types.py", "from replay.storage import SegmentStorage", "common imports replay"),
    ("common/types.py", "import launch", "common imports launch"),
    ("actors/policy.py", "import learner.learner", "actors imports learner"),
    ("actors/worker.py", "from learner.weight_store import WeightStore", "actors imports learner"),
    ("actors/worker.py", "from replay.storage import SegmentStorage", "actors imports replay"),
    ("actors/worker.py", "from replay import storage", "actors imports replay"),
    ("actors/actor_loop.py", "from replay.client import RayShard", "actors imports replay"),
    ("learner/learner.py", "from actors import policy", "learner imports actors"),
    ("learner/learner.py", "import benchmarks.replay", "learner imports benchmarks"),
    ("replay/server.py", "import actors", "replay imports actors"),
    ("replay/storage.py", "from . import sum_tree", "relative"),
    ("replay/storage.py", "import ray", "ray outside"),
    ("learner/learner.py", "import ray.util", "ray outside"),
    ("learner/learner.py", "def f():\n    from ray import get", "ray outside"),
    ("actors/n_step.py", "import importlib\nimportlib.import_module('ray')", "ray outside"),
    ("replay/server.py", "import torch", "torch where"),
    ("common/config.py", "from torch import nn", "torch where"),
    ("common/metrics.py", "if True:\n    import torch.cuda", "torch where"),
]


@pytest.mark.parametrize(("path", "source", "expected"), KNOWN_BAD)
def test_known_bad_import_is_rejected(path: str, source: str, expected: str) -> None:
    assert any(expected in violation for violation in violations(path, source))


KNOWN_GOOD = [
    ("actors/worker.py", "import ray\nimport torch\nfrom replay.client import RayShard"),
    ("learner/learner.py", "import torch\nfrom common.types import Batch"),
    ("replay/server.py", "import ray\nfrom replay.shard import ReplayShard"),
    ("launch.py", "import ray\nimport actors.worker, learner.worker\nfrom replay import server"),
    ("common/config.py", "import rayon, torchlight  # only the first word counts, whole"),
]


@pytest.mark.parametrize(("path", "source"), KNOWN_GOOD)
def test_known_good_import_is_accepted(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_exceptions_name_files_that_exist() -> None:
    places = {*CROSSINGS, *RAY_SHELLS, *TORCH_USERS}
    assert [place for place in sorted(places) if not (ROOT / place).exists()] == []


def run_without(blocked: str, modules: list[str]) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter in which `blocked` cannot be imported."""
    code = f"import sys; sys.modules[{blocked!r}] = None\nimport " + ", ".join(modules)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )


def modules_without(exceptions: set[str], packages: tuple[str, ...]) -> list[str]:
    """Return our modules in `packages`, but for the files in `exceptions`."""
    paths = [str(p.relative_to(ROOT)) for name in packages for p in (ROOT / name).rglob("*.py")]
    kept = sorted(path for path in paths if not listed(path, exceptions))
    return [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in kept]


def test_replay_and_messages_import_without_torch() -> None:
    """Whatever they import on the way, too."""
    needs_torch = TORCH_USERS | {"common/ray_session.py"}
    result = run_without("torch", modules_without(needs_torch, ("common", "replay")))
    assert result.returncode == 0, result.stderr


def test_plain_cores_import_without_ray() -> None:
    result = run_without("ray", modules_without(RAY_SHELLS, PACKAGES))
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


BANNED = PYPROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]


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


def test_ruff_makes_exceptions_for_the_same_files() -> None:
    ignores = PYPROJECT["tool"]["ruff"]["lint"]["per-file-ignores"]
    files = {path.removesuffix("*") for path, rules in ignores.items() if "TID251" in rules}
    ours = {p for p in RAY_SHELLS | TORCH_USERS if p == "learner/" or not p.startswith("learner/")}
    assert files == ours | {"tests/", "benchmarks/"}


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
