"""The learner's process, without Ray: what it does beside its loop."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from launching import PATIENCE_S, ROOT

from learner.worker import LearnerProcess


def process_with(**parts: object) -> LearnerProcess:
    process = LearnerProcess.__new__(LearnerProcess)
    vars(process).update(parts)
    return process


def test_agent_steps_go_out_while_the_learner_compiles() -> None:
    """Compiling takes half a minute and more: exploration by agent steps would stand still."""
    told = threading.Event()

    def warm_up() -> None:
        assert told.wait(10.0)

    process_with(
        _loop=SimpleNamespace(republish=told.set), _learner=SimpleNamespace(warm_up=warm_up)
    )._warm_up()
    assert not [one.name for one in threading.enumerate() if one.name.startswith("republish")]


HANGING = """
from dataclasses import replace
from types import SimpleNamespace
import torch
from actors.environments import resolve
from common.presets import PRESETS
from learner import worker
from learner.assembly import make_learner
worker._COMPILE_S = 3.0
config = PRESETS["cartpole"].config
config = replace(config, learner=replace(config.learner, compile="auto"))
learner = make_learner(config, resolve(config.env), device=torch.device("cpu"), serial=False)
process = worker.LearnerProcess.__new__(worker.LearnerProcess)
process._learner, process._said = learner, ""
process._loop = SimpleNamespace(republish=lambda: None)
process._warm_up()
assert not learner.is_compiled
print(process._said)
"""


def test_compiler_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    hanging = tmp_path / "hanging-cxx"
    hanging.write_text(f"#!/bin/sh\nsleep 1234 & echo $! >> {tmp_path}/pids; wait\n")
    hanging.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", HANGING],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CXX": str(hanging),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("; steps are not compiled: "), done.stdout
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    alive = [pid for pid in pids if psutil.pid_exists(pid)]
    assert pids and not [p for p in alive if psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("who", ["compiler", "teller"])
def test_failure_while_the_learner_compiles_is_raised(who: str) -> None:
    tried = threading.Event()

    def republish() -> None:
        tried.set()
        if who == "teller":
            raise RuntimeError("teller")

    def warm_up() -> None:
        assert tried.wait(10.0)
        if who == "compiler":
            raise RuntimeError("compiler")

    process = process_with(
        _loop=SimpleNamespace(republish=republish), _learner=SimpleNamespace(warm_up=warm_up)
    )
    with pytest.raises(RuntimeError, match=who):
        process._warm_up()
