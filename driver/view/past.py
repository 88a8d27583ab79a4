"""What a run that goes on has behind it, from its events."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from driver.view.events import read_events
from driver.view.tags import RETURN_GAMES, TRAIN_EPISODE_RETURN

# A century: no run takes longer, whatever its events say.
_MOST_SECONDS = 3.2e9


class Past(NamedTuple):
    """What a run's events tell of its earlier starts.

    Fields:
      returns: raw returns of the last RETURN_GAMES training games.
      seconds: how long it has run, time that a crash made worthless included.
    """

    returns: Sequence[float]
    seconds: float


NO_PAST = Past(returns=(), seconds=0.0)


def read_past(run_dir: Path, frames: int) -> Past:
    """Return what a run that goes on from `frames` has behind it."""
    scalars, sessions = read_events(run_dir)
    # A clock may have been set back.
    spans_s = [session.end_s - session.start_s for session in sessions]
    seconds = min(sum(span_s for span_s in spans_s if span_s > 0.0), _MOST_SECONDS)
    series = scalars.get(TRAIN_EPISODE_RETURN)
    if series is None:
        return Past((), seconds)
    played = series.values[(series.frames <= frames) & np.isfinite(series.values)]
    return Past(tuple(map(float, played[-RETURN_GAMES:])), seconds)
