"""Averages along a curve."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray


def is_average(average: float) -> bool:
    """Return whether there is such an average of training returns (see average_returns)."""
    return 0 < average < 1 or (average >= 1 and float(average).is_integer())


def average_returns(values: NDArray[np.float64], average: float) -> NDArray[np.float64]:
    """Return what the line through training returns is.

    Args:
      values: float64[n], the returns of all games.
      average: A, whole and >= 1: at each game the mean of the last A games; 0 < A < 1: exponential
        smoothing by the factor A, y_1 = x_1 and y_t = A * y_(t-1) + (1 - A) * x_t.

    Returns:
      float64[n].
    """
    if not is_average(average):
        raise ValueError(
            f"Expect `average` whole and >= 1, or between 0 and 1, actually: {average}"
        )
    if average >= 1:
        return moving_average(values, int(average))
    smoothed = accumulate(values.tolist(), lambda y, x: average * y + (1 - average) * x)
    return np.array(list(smoothed), dtype=np.float64)


def moving_average(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return at each value the mean of the last `window` values; of fewer where the series starts.

    Args:
      values: float64[n].
      window: values per mean.

    Returns:
      float64[n].
    """
    if window < 1:
        raise ValueError(f"Expect `window` >= 1, actually: {window}")
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - min(window, len(values)), 0)
    return np.asarray((sums[end] - sums[start]) / (end - start), dtype=np.float64)
