"""`best.pt`: the weights with a run's best evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from common.reports import EvaluationResult
from common.types import Weights
from driver.plan import Plan
from learner.checkpoint import CheckpointError, save
from learner.payload import load_playable, weights_payload


class BestWeights:
    """Keeps the weights that scored best; a disk that does not take them is no reason to end a run.

    One thread only.
    """

    def __init__(self, plan: Plan, note: Callable[[str], None]) -> None:
        """Go on from the best so far; `note` is told what cannot be written."""
        self._plan = plan
        self._note = note
        self._place = plan.folder.place("checkpoints", "best.pt")
        self._score = -math.inf
        path = Path(self._place)
        if plan.resume_from and path.exists():
            with suppress(CheckpointError):  # damaged: the next evaluation replaces it
                score = load_playable(path).get("score")
                if type(score) is float and math.isfinite(score):
                    self._score = score

    def offer(self, result: EvaluationResult, weights: Weights) -> None:
        """Save the weights that played, unless others scored better."""
        score = float(result.returns.mean())
        if not score >= self._score:  # nor one that is no number
            return
        try:
            path = Path(self._place)
            path.parent.mkdir(exist_ok=True)
            save(path, weights_payload(self._plan.config, self._plan.spec, weights, score))
        except OSError as error:
            self._note(f"best.pt could not be written: {error}; training goes on")
        else:
            self._score = score
