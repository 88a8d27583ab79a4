"""How clients talk to a shard, whether it lives in this process or behind Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from common.types import LearnerCounts, PriorityUpdate, Push, SampleReply, ShardCounts
from replay.shard import ReplayShard

# Rows, asked for or updated, that make a call through Ray worth its cost: docs/decisions.md.
ROWS_PER_CALL = 512


class ShardLost(Exception):
    """The shard's process is gone, or stuck; later another may answer in its place.

    Whether the call had an effect is not known.
    """


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Pending(Protocol[T_co]):
    """An answer under way."""

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long; return whether the answer is there."""
        ...

    def result(self) -> T_co:
        """Return the answer, or raise what went wrong.

        Raises:
          ShardLost: nobody answers.
        """
        ...


class ShardHandle(Protocol):
    """One replay shard; see replay.shard.ReplayShard for what the calls do."""

    def prepare(self, push: Push) -> Any:
        """Return what `add` takes; made once for a push, however often it has to be offered."""
        ...

    def add(self, prepared: Any) -> Pending[bool]:
        """Offer a push; False says "not yet"."""
        ...

    def sample(self, rows: Sequence[int], learner: LearnerCounts) -> Pending[SampleReply]:
        """Ask for so many rows for each of several batches."""
        ...

    def counts(self, learner: LearnerCounts) -> Pending[ShardCounts]:
        """Ask for the shard's counts and tell it the learner's."""
        ...

    def update_priorities(self, update: PriorityUpdate) -> Pending[int]:
        """Send new priorities."""
        ...


class Done:
    """An answer that is there already."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def wait(self, timeout_s: float) -> bool:
        """Return True at once."""
        del timeout_s
        return True

    def result(self) -> Any:
        """Return the answer."""
        return self._value


class LocalHandle:
    """A shard in this process: `--serial`, tests, benchmarks."""

    def __init__(self, shard: ReplayShard) -> None:
        self._shard = shard

    def prepare(self, push: Push) -> Push:
        """Return the push itself."""
        return push

    def add(self, prepared: Push) -> Pending[bool]:
        """Insert now."""
        return Done(self._shard.add(prepared))

    def sample(self, rows: Sequence[int], learner: LearnerCounts) -> Pending[SampleReply]:
        """Sample now."""
        return Done(self._shard.sample(rows, learner))

    def counts(self, learner: LearnerCounts) -> Pending[ShardCounts]:
        """Count now."""
        return Done(self._shard.counts(learner))

    def update_priorities(self, update: PriorityUpdate) -> Pending[int]:
        """Update now."""
        return Done(self._shard.update_priorities(update))
