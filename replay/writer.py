"""An actor's side of replay: a bounded window of pushes, each offered until it is accepted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.packing import pack_segment
from common.types import EpisodeRecord, PhaseSeconds, Push, Segment
from replay.handles import Pending, ShardHandle, ShardLost

# Between two offers of a push that was answered "not yet".
_RETRY_S = 0.05
# The same where nobody answered.
_LOST_RETRY_S = 0.5


@dataclass
class _Offer:
    shard: ShardHandle
    prepared: Any
    transitions: int
    pending: Pending[bool] | None  # None: refused, waits for its next turn
    retry_at_s: float


class ReplayWriter:
    """Pushes segments round the shards and keeps at most `window` pushes open.

    The loop it lives in:

        if segments: writer.push(segments, episodes, phases, epsilon)
        while not writer.has_room(): writer.wait(0.1)  # offers again what was refused

    A push is open until a shard has accepted it, so an actor that runs ahead of the learner stands
    still here, and so does one whose shard died, until another process takes the shard's place. One
    call of `push` opens up to one for each shard, perhaps more than the window has room for. One
    thread only.
    """

    def __init__(
        self,
        *,
        shards: Sequence[ShardHandle],
        window: int,
        first_shard: int,
        clock: Callable[[], float],
    ) -> None:
        """Prepare to push.

        Args:
          shards: all shards of the run.
          window: most pushes open at once.
          first_shard: where this actor begins its round, so that actors do not move in step.
          clock: seconds, monotonic.
        """
        if window < 1:
            raise ValueError(f"Expect `window` >= 1, actually: {window}")
        self._shards = shards
        self._window = window
        self._turn = first_shard
        self._clock = clock
        self._offers: list[_Offer] = []
        self._accepted = 0

    @property
    def accepted_transitions(self) -> int:
        """Transitions that shards have accepted from this writer."""
        return self._accepted

    def push(
        self,
        segments: Sequence[Segment],
        episodes: tuple[EpisodeRecord, ...],
        phases: PhaseSeconds,
        epsilon: float,
    ) -> None:
        """Offer segments, one shard after the other; the records ride on the first push.

        Args:
          segments: of one actor, in the order in which they filled up.
          episodes: games that ended since the push before.
          phases: wall time by phase since the push before.
          epsilon: mean exploration rate that the actor's environments act with.

        Raises:
          ValueError: there is no segment for the records to ride on.
        """
        if not segments:
            raise ValueError("Expect `segments` to hold at least one, actually: none")
        for_shard: dict[int, list[Segment]] = {}
        for segment in segments:
            for_shard.setdefault(self._turn % len(self._shards), []).append(segment)
            self._turn += 1
        for index, group in for_shard.items():
            push = Push(
                segments=tuple(pack_segment(segment) for segment in group),
                transitions=sum(segment.num_transitions for segment in group),
                episodes=episodes,
                phases=phases,
                epsilon=epsilon,
            )
            episodes, phases = (), PhaseSeconds(())
            shard = self._shards[index]
            prepared = shard.prepare(push)
            self._offers.append(_Offer(shard, prepared, push.transitions, shard.add(prepared), 0.0))

    def has_room(self) -> bool:
        """Book the answers that are there; return whether another push may be opened."""
        self._advance()
        return len(self._offers) < self._window

    def wait(self, timeout_s: float) -> None:
        """Wait until something may have changed, at most so long."""
        under_way = [offer for offer in self._offers if offer.pending is not None]
        if under_way:
            pending = under_way[0].pending
            assert pending is not None
            pending.wait(timeout_s)
        elif self._offers:
            next_turn = min(offer.retry_at_s for offer in self._offers)
            time.sleep(max(0.0, min(timeout_s, next_turn - self._clock())))

    def _advance(self) -> None:
        still_open = []
        for offer in self._offers:
            if offer.pending is None and self._clock() >= offer.retry_at_s:
                offer.pending = offer.shard.add(offer.prepared)
            if offer.pending is not None and offer.pending.wait(0.0):
                retry_s = _RETRY_S
                try:
                    if offer.pending.result():
                        self._accepted += offer.transitions
                        continue
                except ShardLost:
                    # Whether it was inserted is not known. So the same shard is offered it again,
                    # which knows by its name a segment that it has.
                    retry_s = _LOST_RETRY_S
                offer.pending = None
                offer.retry_at_s = self._clock() + retry_s
            still_open.append(offer)
        self._offers = still_open
