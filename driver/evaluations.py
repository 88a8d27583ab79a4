"""RAY SHELL: takes the evaluator's results, and knows when its next evaluation is due."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from common.reports import EvaluationResult
from common.types import Weights
from driver.crew import Crew
from driver.view.console import Console

_ANSWER_S = 60.0
_LAST_S = 600.0
_NAME = ("evaluator", 0)


class Evaluations:
    """The evaluations of a run, by whichever evaluator lives.

    They go by one clock while evaluators are replaced: else frequent deaths would put the next one
    off for ever.
    """

    def __init__(
        self,
        *,
        crew: Crew,
        console: Console,
        every_s: float,
        on_result: Callable[[EvaluationResult, Weights], None],
    ) -> None:
        """Begin to count the time.

        Args:
          crew: the run's processes.
          console: is told of the last evaluation.
          every_s: from the start of one evaluation to the start of the next.
          on_result: gets each evaluation with the weights that played.
        """
        self._crew = crew
        self._console = console
        self._every_s = every_s
        self._on_result = on_result
        self._began_s = time.monotonic()  # the newest
        self._asked: Any = None  # ObjectRef of the answer under way
        self._has_answered = False

    @property
    def first_in_s(self) -> float:
        """What an evaluator that starts now has to wait; below 0 if its first one is due."""
        return self._began_s + self._every_s - time.monotonic()

    def book(self, timeout_s: float) -> None:
        """Hand on what is finished; the evaluator may take its time to answer."""
        evaluator = self._crew.handle(_NAME)
        if evaluator is None:
            self._asked = None
            return
        if self._asked is None:
            self._asked = evaluator.take_results.remote()
        if not ray.wait([self._asked], timeout=timeout_s)[0]:
            return
        answer, self._asked = self._asked, None
        try:
            results = ray.get(answer, timeout=_ANSWER_S)
        except ray.exceptions.RayError:
            return  # the supervisor hears of it from its run
        self._has_answered = True
        for result, weights in results:
            self._began_s = time.monotonic() - result.seconds
            self._on_result(result, weights)

    def stop(self) -> None:
        """End the game that is played, and all evaluations."""
        if (evaluator := self._crew.handle(_NAME)) is not None:
            evaluator.stop.remote()

    def finish(self, is_interrupted: Callable[[], bool]) -> None:
        """Evaluate the weights the learner ended with, unless somebody interrupts.

        An evaluator that never answered was still starting, or has no host: it is not waited for.
        """
        evaluator, runs = self._crew.handle(_NAME), self._crew.runs("evaluator")
        if evaluator is None or not self._has_answered or not runs:
            return
        self._console.note("last evaluation")
        told = evaluator.finish.remote()
        deadline_s = time.monotonic() + _LAST_S
        while not is_interrupted() and not ray.wait(runs, timeout=1.0)[0]:
            if time.monotonic() >= deadline_s:
                self._console.note(f"it takes more than {_LAST_S:.0f} s and is left out")
                break
        ray.wait([told], timeout=1.0)
        if self._asked is not None:
            self.book(timeout_s=_ANSWER_S)  # asked before the end
        self.book(timeout_s=_ANSWER_S)
