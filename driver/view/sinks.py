"""Where a run's scalars go: to every sink alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol


class Sink(Protocol):
    """Takes rows of scalars, such as `driver.view.events.EventWriter`.

    Nothing that happens to a row may reach the caller once the sink is made.
    """

    @property
    def trouble(self) -> str:
        """One line about what keeps rows waiting; "" if nothing does."""

    @property
    def lost_records(self) -> int:
        """How many rows, or parts of them, will never be written."""

    def scalars(self, values: Mapping[str, float], frames: int) -> None:
        """Take one row: values by their tags, at a frame count. A NaN means "nothing to tell"."""

    def flush(self) -> None:
        """Write what was taken so far, now, if the disk takes it."""

    def close(self) -> None:
        """Flush, and take no more."""


class Sinks:
    """Gives each row to every sink, and says once what troubles it. One thread only."""

    def __init__(self, sinks: Sequence[Sink], note: Callable[[str], None]) -> None:
        """Start with sinks that have no trouble.

        Args:
          sinks: where rows go.
          note: tells the user.
        """
        self._sinks = sinks
        self._note = note
        self._said = [("", 0)] * len(sinks)

    def scalars(self, values: Mapping[str, float], frames: int) -> None:
        """Give one row to every sink."""
        for sink in self._sinks:
            sink.scalars(values, frames)

    def flush(self) -> None:
        """Flush every sink."""
        for sink in self._sinks:
            sink.flush()

    def close(self) -> None:
        """Close every sink, and say what that came to."""
        for sink in self._sinks:
            sink.close()
        self.complain()

    def complain(self) -> None:
        """Say of each sink once that rows wait for it, and once that too many did."""
        said, self._said = self._said, [(sink.trouble, sink.lost_records) for sink in self._sinks]
        for (trouble_before, lost_before), (trouble, lost) in zip(said, self._said, strict=True):
            if trouble and not trouble_before:
                self._note(
                    f"scalars could not be written: {trouble}; training goes on, they are kept in "
                    "memory until the disk takes them"
                )
            if lost and not lost_before:
                self._note("scalars are lost: the disk has not taken any for too long")
