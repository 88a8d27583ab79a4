"""Slow and obviously right versions of the fast parts, to compare them with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


class NaiveSumTree:
    """What replay.sum_tree.SumTree does, as one list and linear scans."""

    def __init__(self, capacity: int) -> None:
        self.values = [0.0] * capacity

    @property
    def total(self) -> float:
        """Exactly rounded sum of all values."""
        return math.fsum(self.values)

    def set(self, slots: Sequence[int], values: Sequence[float]) -> None:
        """Set one after another, so that the last of a slot's values stays."""
        for slot, value in zip(slots, values, strict=True):
            self.values[slot] = value

    def get(self, slots: Sequence[int]) -> list[float]:
        """Return the values of `slots`."""
        return [self.values[slot] for slot in slots]

    def query(self, targets: Sequence[float]) -> list[int]:
        """Return for each target the first slot where the running sum exceeds it."""
        return [self._find(target) for target in targets]

    def _find(self, target: float) -> int:
        for slot, running_sum in enumerate(itertools.accumulate(self.values)):
            if running_sum > target:
                return slot
        raise AssertionError(f"target {target} must be below the total, {self.total}")
