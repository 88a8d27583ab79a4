"""`best.pt`: the weights with a run's best evaluation."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

from common.plan import Plan
from common.reports import EvaluationResult
from common.types import Weights
from learner.assembly import load_playable, weights_payload
from learner.checkpoint import CheckpointError, save


class BestWeights:
    """Keeps the weights that scored best."""

    def __init__(self, plan: Plan) -> None:
        """Go on from the best so far."""
        self._plan = plan
        self._place = plan.folder.place("checkpoints", "best.pt")
        self._score = -math.inf
        path = Path(self._place)
        if plan.resume_from and path.exists():
            with suppress(CheckpointError):  # damaged: the next evaluation replaces it
                score = load_playable(path).get("score")
                if type(score) is float and math.isfinite(score):
                    self._score = score

    def offer(self, result: EvaluationResult, weights: Weights) -> None:
        """Save the weights that played, unless others scored better.

        Raises:
          OSError: they cannot be written.
        """
        score = float(result.returns.mean())
        if score >= self._score:
            path = Path(self._place)
            path.parent.mkdir(exist_ok=True)
            save(path, weights_payload(self._plan.config, self._plan.spec, weights, score))
            self._score = score
