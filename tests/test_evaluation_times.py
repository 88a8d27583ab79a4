"""The driver's half of the evaluator's times: one that is replaced gets what is left to wait."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from fakes import FakeClock, new_plan

from actors.environments import resolve
from common.presets import PRESETS
from common.reports import EvaluationResult
from common.types import Weights, WeightsVersion
from driver.ray_run import RayRun

CONFIG = PRESETS["cartpole"].config
PERIOD_S = 60.0 * CONFIG.evaluator.every_minutes
EVALUATOR = ("evaluator", 0)


class Driver:
    """A RayRun at 1,000 s of a clock, with an evaluator that waits and plays when told to.

    Attributes:
      first_in_s: what each evaluator was told to wait before its first evaluation.
      booked: evaluations that the run took note of.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = FakeClock()
        self.clock.now_s = 1_000.0
        self.first_in_s: list[float] = []
        self.booked: list[EvaluationResult] = []
        self._results: list[tuple[EvaluationResult, Weights]] = []
        at_once = SimpleNamespace(
            wait=lambda refs, **_: (refs, []),
            get=lambda ref, **_: ref,
            exceptions=ray.exceptions,
        )
        monkeypatch.setattr("driver.evaluations.ray", at_once)
        monkeypatch.setattr("driver.evaluations.time", SimpleNamespace(monotonic=self.clock))
        nobody: Any = SimpleNamespace(note=lambda line: None, evaluated=lambda result: None)
        evaluator = SimpleNamespace(remote=self._construct)
        role = SimpleNamespace(options=lambda: evaluator)
        monkeypatch.setattr("driver.ray_run.Evaluator", role)
        self._run = RayRun(
            plan=new_plan(CONFIG, resolve(CONFIG.env), folder),
            reporter=nobody,
            console=nobody,
            interrupts=nobody,
            on_evaluation=lambda result, _: self.booked.append(result),
            is_local=True,
        )
        take_results = SimpleNamespace(remote=self._take_results)
        crew: Any = SimpleNamespace(
            handles=lambda role: ["a weight store"],
            handle=lambda name: SimpleNamespace(take_results=take_results),
        )
        placement: Any = SimpleNamespace(options=lambda name: {})
        self._run._crew, self._run._placement = crew, placement
        self._run._evaluations._crew = crew
        self.start_evaluator()

    def start_evaluator(self) -> None:
        """Start one, in the place of the one before."""
        self._run._create(EVALUATOR, len(self.first_in_s))

    def _construct(self, config: Any, spec: Any, store: Any, first_in_s: float, *_: Any) -> None:
        self.first_in_s.append(first_in_s)

    def _take_results(self) -> list[tuple[EvaluationResult, Weights]]:
        results, self._results = self._results, []
        return results

    def pass_s(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def book(self, *evaluations_s: float) -> None:
        """Take the evaluations in that ended just now, which took so long."""
        version = WeightsVersion(0, 1)
        self._results += [
            (
                EvaluationResult(version, 0, np.ones(1), np.ones(1, np.int64), 0.0, seconds),
                Weights(version, np.zeros(1, np.uint8), 0),
            )
            for seconds in evaluations_s
        ]
        self._run._evaluations.book(timeout_s=0.0)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path / "run", monkeypatch)


def test_the_first_evaluator_waits_a_whole_period(driver: Driver) -> None:
    assert PERIOD_S == 30.0
    assert driver.first_in_s == [30.0]


def test_one_that_is_replaced_before_its_first_evaluation_waits_what_is_left(
    driver: Driver,
) -> None:
    driver.pass_s(12.0)
    driver.start_evaluator()
    driver.pass_s(5.0)
    driver.book()
    driver.start_evaluator()
    assert driver.first_in_s == [30.0, 30.0 - 12.0, 30.0 - 12.0 - 5.0]


def test_one_that_is_replaced_after_an_evaluation_waits_a_period_from_where_that_began(
    driver: Driver,
) -> None:
    driver.pass_s(37.0)
    driver.book(7.0)  # began at 30
    driver.pass_s(11.0)
    driver.start_evaluator()
    assert len(driver.booked) == 1
    assert driver.first_in_s[1:] == [30.0 + 30.0 - 37.0 - 11.0]


def test_one_that_is_replaced_when_an_evaluation_is_due_plays_at_once(driver: Driver) -> None:
    driver.pass_s(41.0)
    driver.start_evaluator()
    assert driver.first_in_s[1:] == [30.0 - 41.0]  # it was due 11 s ago


def test_replacing_it_again_and_again_does_not_put_its_evaluation_off(driver: Driver) -> None:
    for _ in range(10):
        driver.pass_s(3.0)
        driver.start_evaluator()
    assert driver.first_in_s[1:] == [30.0 - 3.0 * deaths for deaths in range(1, 11)]
