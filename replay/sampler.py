"""The learner's side of replay: batches over all shards, importance weights, new priorities."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.types import Batch, PriorityUpdate, RunCounts, SampleReply, ShardCounts
from replay.decoding import Decoder
from replay.handles import Pending, ShardHandle
from replay.rate_limiter import RateLimiter
from replay.storage import shard_of

# How long a thread that found nothing to sample waits for the shards' counts before it says so.
_POLL_S = 0.02


def importance_weights(
    probability: NDArray[np.float64], size: int, beta: float
) -> NDArray[np.float32]:
    """Return float32[B], (N p)^-beta over the batch's largest (Schaul et al. 2016, section 3.4).

    Args:
      probability: float64[B], probability with which each row was really drawn, over all shards.
      size: N, live transitions over all shards.
      beta: importance exponent.
    """
    weight: NDArray[np.float64] = (size * probability) ** -beta
    relative: NDArray[np.float32] = (weight / weight.max()).astype(np.float32)
    return relative


def split_rows(
    rows: int, masses: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return int64[K], how many of a batch's rows to draw from each shard.

    On average rows * mass / total. The whole parts are fixed and only the remainder is drawn, which
    leaves the split little variance.

    Args:
      rows: of the batch.
      masses: float64[K], mass of each shard; one at least is > 0.
      rng: draws the remainder.
    """
    exact = rows * masses / masses.sum()
    split: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    rest = rows - int(split.sum())
    if rest:
        remainder = exact - split
        split += rng.multinomial(rest, remainder / remainder.sum())
    return split


class ReplaySampler:
    """Draws batches over K shards, as fast as the rate limiter lets it.

    The loop it lives in:

        batch = sampler.fetch()      # None: not yet
        ... learn ...; updater.update(batch.ids, priority)

    Rows are asked of each shard in proportion to its mass, and p is the probability with which a
    row was really drawn: (rows asked of its shard / batch) * (its share of the shard's mass). It
    counts every sample itself and sums the inserts from the shards' replies, which may lag: then it
    samples a little later, never too early.

    `fetch` belongs to one thread; the counters may be read from any.
    """

    def __init__(
        self,
        *,
        shards: Sequence[ShardHandle],
        batch_size: int,
        beta: float,
        limiter: RateLimiter,
        decoder: Decoder,
        rng: np.random.Generator,
        in_flight: int,
    ) -> None:
        """Prepare to sample.

        Args:
          shards: all shards of the run, in the order of their indices.
          batch_size: B.
          beta: importance exponent.
          limiter: the run's rate limiter.
          decoder: decompresses the rows.
          rng: splits batches over shards.
          in_flight: most batches asked for ahead of the one that is decoded.
        """
        if batch_size < 1:
            raise ValueError(f"Expect `batch_size` >= 1, actually: {batch_size}")
        if in_flight < 1:
            raise ValueError(f"Expect `in_flight` >= 1, actually: {in_flight}")
        self._shards = shards
        self._batch_size = batch_size
        self._beta = beta
        self._limiter = limiter
        self._decoder = decoder
        self._rng = rng
        self._in_flight = in_flight
        self._counts = [ShardCounts(0, 0, 0.0, 0) for _ in shards]
        self._requests: deque[list[tuple[int, int, Pending[SampleReply]]]] = deque()
        self._polls: list[tuple[int, Pending[ShardCounts]]] = []
        self._samples = 0
        self.learner_step = 0
        """Gradient updates done; rides on requests so that shards can tell the policy lag."""

    @property
    def samples(self) -> int:
        """Transitions asked for, over all shards."""
        return self._samples

    @property
    def inserts(self) -> int:
        """Transitions inserted over all shards, as they last said; each is one agent step."""
        return sum(counts.inserts for counts in self._counts)

    @property
    def size(self) -> int:
        """Live transitions over all shards, as they last said."""
        return sum(counts.transitions for counts in self._counts)

    @property
    def episodes(self) -> int:
        """Training games that ended, over all shards, as they last said."""
        return sum(counts.episodes for counts in self._counts)

    def fetch(self) -> Batch | None:
        """Return the next batch, or None when the limiter or an empty replay says "not yet"."""
        self._request()
        if not self._requests:
            self._poll(_POLL_S)
            return None
        if not all(counts.transitions for counts in self._counts):
            # A shard that was empty is asked for no rows, so no reply would tell that it filled.
            self._poll(0.0)
        replies = []
        for shard, rows, pending in self._requests.popleft():
            reply = pending.result()
            assert len(reply.ids) == rows, (shard, rows, len(reply.ids))
            self._counts[shard] = reply.counts
            replies.append(reply)
        self._request()  # the shards sample the next batch while this one is decoded
        return self._batch(replies)

    def _request(self) -> None:
        while len(self._requests) < self._in_flight and self._limiter.can_sample(
            self.inserts, self._samples, self._batch_size
        ):
            masses = np.array([c.mass if c.transitions else 0.0 for c in self._counts])
            if masses.sum() <= 0.0:
                return
            self._samples += self._batch_size
            split = split_rows(self._batch_size, masses, self._rng).tolist()
            self._requests.append(
                [
                    (shard, rows, self._shards[shard].sample(rows, self._run_counts(shard)))
                    for shard, rows in enumerate(split)
                    if rows
                ]
            )

    def _poll(self, timeout_s: float) -> None:
        """Ask the shards for their counts, which also tells them the run's.

        Wait at most so long for an answer; those that come later are taken in by the next call.
        """
        if not self._polls:
            self._polls = [
                (shard, handle.counts(self._run_counts(shard)))
                for shard, handle in enumerate(self._shards)
            ]
        self._polls[0][1].wait(timeout_s)
        waiting = []
        for shard, pending in self._polls:
            if pending.wait(0.0):
                self._counts[shard] = pending.result()
            else:
                waiting.append((shard, pending))
        self._polls = waiting

    def _run_counts(self, shard: int) -> RunCounts:
        return RunCounts(
            samples=self._samples,
            inserts_elsewhere=self.inserts - self._counts[shard].inserts,
            learner_step=self.learner_step,
        )

    def _batch(self, replies: list[SampleReply]) -> Batch:
        probability = np.concatenate(
            [reply.probability * (len(reply.ids) / self._batch_size) for reply in replies]
        )
        stacks = [self._decoder.decode(reply) for reply in replies]
        return Batch(
            ids=np.concatenate([reply.ids for reply in replies]),
            weight=importance_weights(probability, self.size, self._beta),
            s_tm1=_join([s_tm1 for s_tm1, _ in stacks]),
            a_tm1=np.concatenate([reply.a_tm1 for reply in replies]).astype(np.int64),
            r_t=np.concatenate([reply.r_t for reply in replies]),
            discount_t=np.concatenate([reply.discount_t for reply in replies]),
            s_t=_join([s_t for _, s_t in stacks]),
        )


def _join(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate, without the copy where there is one part."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class PriorityUpdater:
    """Sends new priorities to the shards that own the rows and never waits.

    Updates are hints: when `window` are under way the newest is dropped and counted. One thread
    only.
    """

    def __init__(self, *, shards: Sequence[ShardHandle], window: int) -> None:
        if window < 1:
            raise ValueError(f"Expect `window` >= 1, actually: {window}")
        self._shards = shards
        self._window = window
        self._under_way: deque[Pending[int]] = deque()
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Priorities dropped because too many updates were under way."""
        return self._dropped

    def update(self, update: PriorityUpdate) -> None:
        """Send the update, or drop it.

        Raises:
          Exception: whatever an earlier update ended with, so that no failure is silent.
        """
        while self._under_way and self._under_way[0].wait(0.0):
            self._under_way.popleft().result()
        if len(self._under_way) >= self._window:
            self._dropped += len(update.ids)
            return
        shards = shard_of(update.ids)
        for shard in np.unique(shards):
            mine = shards == shard
            self._under_way.append(
                self._shards[shard].update_priorities(
                    PriorityUpdate(update.ids[mine], update.priority[mine])
                )
            )
