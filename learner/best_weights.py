"""`best.pt`: the weights with a run's best evaluation."""

from __future__ import annotations

import math
from contextlib import suppress

from common.plan import Plan
from common.reports import EvaluationResult
from common.types import Weights
from learner.assembly import load_checkpoint, weights_payload
from learner.checkpoint import CheckpointError, save


class BestWeights:
    """Keeps the weights that scored best."""

    def __init__(self, plan: Plan) -> None:
        """Go on from the best so far."""
        self._plan = plan
        self._path = plan.folder.checkpoints / "best.pt"
        self._score = -math.inf
        if plan.resume_from and self._path.exists():
            with suppress(CheckpointError):  # damaged: the next evaluation replaces it
                self._score = load_checkpoint(self._path)["score"]

    def offer(self, result: EvaluationResult, weights: Weights) -> None:
        """Save the weights that played, unless others scored better.

        Raises:
          OSError: they cannot be written.
        """
        score = float(result.returns.mean())
        if score >= self._score:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            save(self._path, weights_payload(self._plan.config, self._plan.spec, weights, score))
            self._score = score
