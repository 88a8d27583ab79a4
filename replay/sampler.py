"""The learner's side of replay: batches over all shards, importance weights, new priorities."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.types import Batch, PriorityUpdate, RunCounts, SampleReply, ShardCounts
from replay.decoding import Decoder
from replay.handles import Pending, ShardHandle
from replay.rate_limiter import RateLimiter
from replay.storage import shard_of

# How long a thread that found nothing to sample waits for the shards' counts before it says so.
_POLL_S = 0.02

# Rows, asked for or updated, that make a call through Ray worth its cost: docs/decisions.md.
ROWS_PER_CALL = 512


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


class _Request(NamedTuple):
    """Batches asked for at once.

    Fields:
      splits: int64[batches, K], rows of each batch asked of each shard.
      asked: (shard, its replies, one for each batch that it has rows of).
    """

    splits: NDArray[np.int64]
    asked: list[tuple[int, Pending[tuple[SampleReply, ...]]]]


class ReplaySampler:
    """Draws batches over K shards, as fast as the rate limiter lets it.

    The loop it lives in:

        batch = sampler.fetch()      # None: not yet
        ... learn ...; updater.update(batch.ids, priority)

    Rows are asked of each shard in proportion to its mass, and p is the probability with which a
    row was really drawn: (rows asked of its shard / batch) * (its share of the shard's mass). It
    counts every sample itself and sums the inserts from the shards' replies, which may lag: then it
    samples a little later, never too early.

    Small batches are asked for several at a time, each drawn on its own, since a call through Ray
    costs as much as some 60 rows.

    `fetch` belongs to one thread; the counters may be read from any.
    """

    def __init__(
        self,
        *,
        shards: Sequence[ShardHandle],
        num_actions: int,
        batch_size: int,
        beta: float,
        limiter: RateLimiter,
        decoder: Decoder,
        rng: np.random.Generator,
        in_flight: int,
        rows_per_request: int,
    ) -> None:
        """Prepare to sample.

        Args:
          shards: all shards of the run, in the order of their indices.
          num_actions: A; a stored action beyond it is an error here, where it has a name. On a
            CUDA device it would end the process with an assertion about an index.
          batch_size: B.
          beta: importance exponent.
          limiter: the run's rate limiter.
          decoder: decompresses the rows.
          rng: splits batches over shards.
          in_flight: most requests under way.
          rows_per_request: as many whole batches as fit into this are asked for at once, where the
            limiter lets them; always one at least.
        """
        if batch_size < 1:
            raise ValueError(f"Expect `batch_size` >= 1, actually: {batch_size}")
        if in_flight < 1:
            raise ValueError(f"Expect `in_flight` >= 1, actually: {in_flight}")
        self._shards = shards
        self._num_actions = num_actions
        self._batch_size = batch_size
        self._beta = beta
        self._limiter = limiter
        self._decoder = decoder
        self._rng = rng
        self._in_flight = in_flight
        self._batches_per_request = max(1, rows_per_request // batch_size)
        self._counts = [ShardCounts(0, 0, 0.0, 0, 0, 0) for _ in shards]
        self._requests: deque[_Request] = deque()
        self._drawn: deque[list[SampleReply]] = deque()  # one list for each batch
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
        """Training games that ended in the shards' incarnations, as they last said."""
        return sum(counts.episodes for counts in self._counts)

    def fetch(self) -> Batch | None:
        """Return the next batch, or None when the limiter or an empty replay says "not yet".

        Raises:
          ValueError: a row is not what its sender said: a block of other frames (Decoder.decode),
            an action that there is not; names the transition.
        """
        self._request()
        if not self._drawn:
            if not self._requests:
                self._poll(_POLL_S)
                return None
            if not all(counts.transitions for counts in self._counts):
                # A shard that was empty is asked for no rows, so no reply tells that it filled.
                self._poll(0.0)
            self._receive(self._requests.popleft())
            self._request()  # the shards sample the next batches while these are decoded
        return self._batch(self._drawn.popleft())

    def _request(self) -> None:
        while len(self._requests) < self._in_flight and (batches := self._allowed_batches()):
            masses = np.array([c.mass if c.transitions else 0.0 for c in self._counts])
            if masses.sum() <= 0.0:
                return
            self._samples += batches * self._batch_size
            splits = np.stack(
                [split_rows(self._batch_size, masses, self._rng) for _ in range(batches)]
            )
            asked = []
            for shard, column in enumerate(splits.T):
                if rows := tuple(column[column > 0].tolist()):
                    pending = self._shards[shard].sample(rows, self._run_counts(shard))
                    asked.append((shard, pending))
            self._requests.append(_Request(splits, asked))

    def _allowed_batches(self) -> int:
        """Return how many batches to ask for in one request: the most that the limiter allows."""
        for batches in range(self._batches_per_request, 0, -1):
            rows = batches * self._batch_size
            if self._limiter.can_sample(self.inserts, self._samples, rows):
                return batches
        return 0

    def _receive(self, request: _Request) -> None:
        """Wait for a request's replies and sort them by batch."""
        drawn: list[list[SampleReply]] = [[] for _ in request.splits]
        for shard, pending in request.asked:
            column = request.splits[:, shard]
            for batch, reply in zip(np.flatnonzero(column), pending.result(), strict=True):
                rows = int(column[batch])
                assert len(reply.ids) == rows, (shard, rows, len(reply.ids))
                self._counts[shard] = reply.counts
                drawn[batch].append(reply)
        self._drawn.extend(drawn)

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
        ids = np.concatenate([reply.ids for reply in replies])
        a_tm1 = np.concatenate([reply.a_tm1 for reply in replies]).astype(np.int64)
        if a_tm1.max() >= self._num_actions:
            row = int(a_tm1.argmax())
            raise ValueError(
                f"Expect actions below {self._num_actions}, actually: {a_tm1[row]} in transition "
                f"{ids[row]} of replay shard {shard_of(ids)[row]}"
            )
        stacks = [self._decoder.decode(reply) for reply in replies]
        return Batch(
            ids=ids,
            weight=importance_weights(probability, self.size, self._beta),
            s_tm1=_join([s_tm1 for s_tm1, _ in stacks]),
            a_tm1=a_tm1,
            r_t=np.concatenate([reply.r_t for reply in replies]),
            discount_t=np.concatenate([reply.discount_t for reply in replies]),
            s_t=_join([s_t for _, s_t in stacks]),
        )


def _join(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate, without the copy where there is one part."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class PriorityUpdater:
    """Sends new priorities to the shards that own the rows and never waits.

    Updates are hints: they are held back until they make a call's worth of rows, and when `window`
    calls are under way the newest is dropped and counted. One thread only.
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
        self._under_way: deque[Pending[int]] = deque()
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Priorities dropped because too many updates were under way."""
        return self._dropped

    def update(self, update: PriorityUpdate) -> None:
        """Send the update with those held back, hold it back, or drop it.

        Raises:
          Exception: whatever an earlier update ended with, so that no failure is silent.
        """
        while self._under_way and self._under_way[0].wait(0.0):
            self._under_way.popleft().result()
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
            self._under_way.append(
                self._shards[shard].update_priorities(
                    PriorityUpdate(update.ids[mine], update.priority[mine])
                )
            )
