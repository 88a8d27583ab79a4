"""The learner's process, without Ray: what it does beside its loop."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

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
