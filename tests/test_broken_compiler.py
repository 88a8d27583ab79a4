"""Runs on a machine whose compiler does not work: `compile auto` goes on, `compile on` ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from launching import HAS_COMPILER, launch, result_of

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="needs a compiler that could work")
BROKEN = {"CXX": "/bin/false"}
REASON = "InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx: "


def flags(run: Path, choice: str) -> tuple[str, ...]:
    return (
        *("--preset", "cartpole", "--run-dir", str(run), "--learner.compile", choice),
        *("--actors", "1", "--total-frames", "3000", "--replay.min-size", "200"),
        *("--evaluator.no-enabled",),
    )


@pytest.mark.ray
def test_run_learns_on_eagerly_and_says_once_why(tmp_path: Path) -> None:
    run = tmp_path / "run"
    environment = {**BROKEN, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = launch(*flags(run, "auto"), environment=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "not compiled" in line]
    assert "learner 0: learning on the CPU with " in line
    assert f"; steps are not compiled: {REASON}" in line
    assert "died" not in done.stdout
    assert result_of(run)["learner_steps"] > 50


@pytest.mark.parametrize(
    "serial",
    [pytest.param((), id="ray", marks=pytest.mark.ray), pytest.param(("--serial",), id="serial")],
)
def test_run_that_insists_ends_with_the_compilers_error_and_starts_nobody_again(
    serial: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    environment = {**BROKEN, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = launch(*flags(run, "on"), *serial, environment=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "the run ended: " in line]
    why = "--learner.compile on: must not be on where steps cannot be compiled: "
    assert f"{why}{REASON}" in line
    assert "RunEnded" not in line
    assert "died" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert f"{why}{REASON}" in result_of(run)["end_reason"]
