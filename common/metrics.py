"""Phase timers and rates: where a worker's wall time goes, and how much it gets done per second."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType

from common.types import PhaseSeconds

# A rate keeps its window in so many buckets: bounded memory, and a window that is exact to 1 %.
_BUCKETS_PER_WINDOW = 100


class PhaseTimer:
    """Adds up the wall time a loop spends in each named phase.

    The loop it lives in:

      while True:
          with timer.phase("env"):
              timesteps = environments.step(actions)
          with timer.phase("inference"):
              actions, q = policy.act(timesteps.observation)
          if time_to_report:
              report = timer.drain()

    Every moment counts for one phase at most: inside a nested phase the outer one stands still, so
    the phases never add up to more than the wall time. Time outside all phases is not counted.

    One thread only: each thread has its own timer, and `merge` adds them up. Entering and leaving
    costs about two microseconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start with no phases.

        Args:
          clock: returns seconds that never go back.
        """
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0  # when the innermost open phase was last charged

    def phase(self, name: str) -> _Phase:
        """Return a context manager inside which time counts for `name`."""
        return _Phase(self, name)

    def drain(self) -> PhaseSeconds:
        """Return the seconds per phase since the last call, in order of first use; restart from 0.

        Inside an open phase, its time so far is returned and the rest will come with the next call.
        """
        if self._open:
            self._charge(self._clock())
        drained = PhaseSeconds(tuple(self._seconds.items()))
        self._seconds = {}
        return drained

    def _charge(self, now: float) -> None:
        name = self._open[-1]
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
        self._since = now

    def _enter(self, name: str) -> None:
        now = self._clock()
        if self._open:
            self._charge(now)
        self._open.append(name)
        self._since = now

    def _exit(self) -> None:
        self._charge(self._clock())
        self._open.pop()


class _Phase:
    """One stay in a phase. A plain class: one of contextlib costs about twice as much."""

    __slots__ = ("_name", "_timer")

    def __init__(self, timer: PhaseTimer, name: str) -> None:
        self._timer = timer
        self._name = name

    def __enter__(self) -> None:
        self._timer._enter(self._name)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer._exit()


def merge(parts: Iterable[PhaseSeconds]) -> PhaseSeconds:
    """Return the seconds per phase summed over all `parts`, in order of first appearance."""
    seconds: dict[str, float] = {}
    for part in parts:
        for name, value in part.phases:
            seconds[name] = seconds.get(name, 0.0) + value
    return PhaseSeconds(tuple(seconds.items()))


def shares(phases: PhaseSeconds, wall_s: float | None = None) -> dict[str, float]:
    """Return each phase's share of the time.

    Args:
      phases: seconds per phase.
      wall_s: wall time to divide by, of all the merged workers together (workers times seconds);
        None: the sum of the phases, so that the shares add up to 1.

    Returns:
      Share by phase name, all 0 where there is no time to divide by.
    """
    whole = sum(seconds for _, seconds in phases.phases) if wall_s is None else wall_s
    return {name: seconds / whole if whole > 0.0 else 0.0 for name, seconds in phases.phases}


class Rate:
    """Counts per second over a sliding window.

    A count is taken to have grown since the count before it. So the window reaches back to the last
    one that is out of it: counts that come further apart than the window are divided by the
    time that they took. Until the window has filled that is the start.

    One thread only.
    """

    def __init__(self, *, window_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start counting now.

        Args:
          window_s: seconds looked back.
          clock: returns seconds that never go back.

        Raises:
          ValueError: `window_s` is not > 0.
        """
        if not window_s > 0.0:
            raise ValueError(f"Expect `window_s` > 0, actually: {window_s}")
        self._window_s = window_s
        self._clock = clock
        self._total: int | None = None
        self._start = clock()
        # (time of the first count in it, counts)
        self._buckets: deque[tuple[float, int]] = deque()

    def add(self, count: int) -> None:
        """Count `count` things done just now.

        Raises:
          ValueError: `count` is negative.
        """
        if count < 0:
            raise ValueError(f"Expect `count` >= 0, actually: {count}")
        now = self._clock()
        self._forget(now)
        if self._buckets and now - self._buckets[-1][0] < self._window_s / _BUCKETS_PER_WINDOW:
            first, counted = self._buckets[-1]
            self._buckets[-1] = (first, counted + count)
        else:
            self._buckets.append((now, count))

    def update_total(self, total: int) -> None:
        """Count by how much a running total grew since the last call.

        The first total (a resumed run's is large) and one that fell (a worker was lost) count
        nothing.
        """
        if self._total is not None:
            self.add(max(0, total - self._total))
        self._total = total

    def per_second(self) -> float:
        """Return the counts per second over the window, 0 before any time has passed."""
        now = self._clock()
        self._forget(now)
        seconds = now - self._start
        return sum(count for _, count in self._buckets) / seconds if seconds > 0.0 else 0.0

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] <= now - self._window_s:
            self._start, _ = self._buckets.popleft()
