"""Starts in surroundings that are not as they should be: warnings as errors, missing packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ale_py
import pytest
from launching import PATIENCE_S, ROOT, launch

TRAIN = ("--preset", "cartpole", "--serial", "--total-frames", "1200", "--evaluator.no-enabled")

# What the first compilation imports warns, and so do Ray's children as they end.
WARNS = f"""
import os, sys, warnings
sys.path.insert(0, {str(ROOT)!r})
from driver.warning_filters import raise_no_warnings
raise_no_warnings()
warnings.warn("shown", RuntimeWarning)
warnings.warn("not shown", DeprecationWarning)
print(os.environ.get("PYTHONWARNINGS"))
"""


@pytest.mark.parametrize("given", ["error", "error::RuntimeWarning", "e,error:a,error"])
def test_warnings_end_nothing_whatever_the_shell_says(given: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WARNS)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(script)],
        env={**os.environ, "PYTHONWARNINGS": f"{given},ignore::BytesWarning"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "ignore::BytesWarning\n"), done
    assert "RuntimeWarning: shown" in done.stderr


def test_run_with_warnings_as_errors_ends_well(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    done = launch(*TRAIN, "--run-dir", run, environment={"PYTHONWARNINGS": "error"})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("is_set", [True, False])
def test_game_without_its_rom_is_one_line(tmp_path: Path, is_set: bool) -> None:
    environment = {"ALE_ROMS_DIR": str(tmp_path / "nowhere")}
    if not is_set:
        environment = {"PYTHONPATH": os.pathsep.join((str(copy_of_ale(tmp_path)), str(ROOT)))}
        for rom in (tmp_path / "ale_py" / "roms").glob("*.bin"):
            rom.unlink()
    done = launch("--env", "pong", "--serial", environment=environment, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "launch.py: --env.id pong: Expect the ROM of pong" in done.stderr
    assert "pip install --force-reinstall ale-py" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("missing", ["roms", "roms/md5.json"])
def test_package_that_is_not_whole_is_one_line(tmp_path: Path, missing: str) -> None:
    environment = {"PYTHONPATH": os.pathsep.join((str(copy_of_ale(tmp_path)), str(ROOT)))}
    (tmp_path / "ale_py" / missing).rename(tmp_path / "gone")
    done = launch("presets", environment=environment)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("launch.py: cannot start: ")
    assert f"`pip install -e .` in {ROOT} installs what is needed" in done.stderr


def test_python_without_the_packages_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "launch.py"), "presets"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("launch.py: cannot start: No module named ")
    assert len(done.stderr.splitlines()) == 1


def test_fault_in_our_own_modules_keeps_its_traceback() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from driver.missing_modules import *; "
        "sys.excepthook = tell_in_one_line; import common.no_such_module"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.startswith("Traceback")


def copy_of_ale(folder: Path) -> Path:
    """Copy ale-py, whose libraries lie beside it, by links; return the folder to look it up in."""
    package = Path(ale_py.__file__).parent
    for file in package.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            copy = folder / file.relative_to(package.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(file) if file.suffix == ".bin" else copy.write_bytes(file.read_bytes())
    for libraries in package.parent.glob("ale_py.libs"):
        (folder / libraries.name).symlink_to(libraries)
    return folder
