"""The learner's way back to replay: new priorities, sent without waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from common.types import PriorityUpdate
from replay.handles import Pending, ShardHandle, ShardLost
from replay.storage import shard_of


class PriorityUpdater:
    """Sends new priorities to the shards that own the rows and never waits.

    Updates are hints: they are held back until they make a call's worth of rows, and when `window`
    calls are under way the newest is dropped and counted; so is what was sent to a shard that died.
    One thread only.
    """

    def __init__(self, *, shards: Sequence[ShardHandle], window: int, rows_per_call: int) -> None:
        """Prepare to send.

        Args:
          shards: all shards of the run.
          window: most calls under way.
          rows_per_call: updates are sent together once they have so many rows; 1: each at once.
        """
        if window < 1:
            raise ValueError(f"Expect `window` >= 1, actually: {window}")
        self._shards = shards
        self._window = window
        self._rows_per_call = rows_per_call
        self._held: list[PriorityUpdate] = []
        self._under_way: deque[tuple[int, Pending[int]]] = deque()  # with the rows of each
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Priorities dropped because too many updates were under way, or their shard died."""
        return self._dropped

    def update(self, update: PriorityUpdate) -> None:
        """Send the update with those held back, hold it back, or drop it.

        Raises:
          Exception: whatever an earlier update ended with, so that no failure is silent.
        """
        while self._under_way and self._under_way[0][1].wait(0.0):
            rows, pending = self._under_way.popleft()
            try:
                pending.result()
            except ShardLost:
                self._dropped += rows
        self._held.append(update)
        if sum(len(held.ids) for held in self._held) < self._rows_per_call:
            return
        # In the order of the steps: of a row that comes twice the newest priority stays.
        update = PriorityUpdate(
            np.concatenate([held.ids for held in self._held]),
            np.concatenate([held.priority for held in self._held]),
        )
        self._held = []
        if len(self._under_way) >= self._window:
            self._dropped += len(update.ids)
            return
        shards = shard_of(update.ids)
        for shard in np.unique(shards):
            mine = shards == shard
            pending = self._shards[shard].update_priorities(
                PriorityUpdate(update.ids[mine], update.priority[mine])
            )
            self._under_way.append((int(np.count_nonzero(mine)), pending))
