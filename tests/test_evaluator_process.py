"""The evaluator's Ray shell, with real weight stores; it runs in this process, in a thread."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import ray

from actors.environments import resolve
from actors.worker import EvaluatorProcess
from common.networks import build_network, flatten_state
from common.presets import PRESETS
from common.source import own_source
from common.types import Weights, WeightsVersion
from learner.weight_store import WeightStore

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session", "torch_is_left_as_it_was")]

CONFIG = PRESETS["cartpole"].config
SPEC = resolve(CONFIG.env)


def store_with_weights(learner_step: int) -> Any:
    buffer = flatten_state(build_network(CONFIG.agent, SPEC))
    store = WeightStore.remote()
    weights = Weights(WeightsVersion(0, learner_step), buffer, agent_steps=0)
    ray.get(store.publish.remote(weights), timeout=60.0)
    return store


def first_result(evaluator: Any, within_s: float) -> int:
    """Return the learner step of the first evaluation."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if results := evaluator.take_results():
            return results[0][0].version.learner_step
        time.sleep(0.05)
    pytest.fail(f"no evaluation within {within_s} s")


def test_an_evaluator_whose_store_is_dead_evaluates_as_soon_as_there_is_another() -> None:
    dead, living = store_with_weights(1), store_with_weights(2)
    ray.kill(dead)
    with pytest.raises(ray.exceptions.RayActorError):
        while True:  # a call right behind the kill may still be answered
            ray.get(dead.latest.remote(), timeout=60.0)
    evaluator: Any = EvaluatorProcess(CONFIG, SPEC, dead, 0.0, 0, own_source())
    thread = threading.Thread(target=evaluator.run)
    thread.start()
    try:
        time.sleep(1.0)
        assert evaluator.take_results() == []
        evaluator.replace("weight_store", 0, living)
        assert first_result(evaluator, within_s=15.0) == 2  # far less than the period of 30
    finally:
        evaluator.stop()
        thread.join(timeout=30.0)
    assert not thread.is_alive()


def test_the_first_evaluation_comes_when_it_is_due_and_not_before() -> None:
    evaluator: Any = EvaluatorProcess(CONFIG, SPEC, store_with_weights(3), 2.0, 0, own_source())
    thread = threading.Thread(target=evaluator.run)
    started_s = time.monotonic()
    thread.start()
    try:
        assert first_result(evaluator, within_s=15.0) == 3
        assert time.monotonic() - started_s >= 2.0
    finally:
        evaluator.stop()
        thread.join(timeout=30.0)
    assert not thread.is_alive()
