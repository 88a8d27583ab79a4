"""The learner's side of replay: batches over all shards, importance weights, new priorities."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.replay_totals import NEVER_HEARD, ReplayTotals
from common.types import (
    Batch,
    LearnerCounts,
    SampledRows,
    SampleReply,
    ShardCounts,
    WeightsVersion,
)
from replay.decoding import Decoder
from replay.handles import Pending, ShardHandle, ShardLost
from replay.rate_limiter import RateLimiter
from replay.storage import shard_of

# How long a thread that found nothing to sample waits for the shards' counts before it says so.
_POLL_S = 0.02

# Until a shard that does not answer is asked again.
_LOST_RETRY_S = 0.5


def importance_weights(
    probability: NDArray[np.float64], size: int, beta: float
) -> NDArray[np.float32]:
    """Return float32[B], (N p)^-beta over the batch's largest (Schaul et al. 2016, section 3.4).

    Args:
      probability: float64[B], p over all shards: rows of each that a batch has on average, over B.
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
      shares: float64[K], each shard's share of all mass, by which the batches were split.
      splits: int64[batches, K], rows of each batch asked of each shard.
      asked: (shard, its incarnation as far as known when it was asked, its replies, one for each
        batch that it has rows of).
    """

    shares: NDArray[np.float64]
    splits: NDArray[np.int64]
    asked: list[tuple[int, int, Pending[SampleReply]]]


class ReplaySampler:
    """Draws batches over K shards, as fast as the rate limiter lets it.

    The loop it lives in:

        batch = sampler.fetch()      # None: not yet
        ... learn ...; updater.update(batch.ids, priority)

    Rows are asked of each shard in proportion to its mass, and p is the probability with which a
    row was really drawn: (its shard's share of all mass when the batch was split) * (its share of
    the shard's mass when it was drawn). How many rows came of the shard has no say: where a tenth
    of a row is expected, the one that comes stands for ten batches.

    It counts every sample itself and sums the inserts from the shards' replies, which may lag: then
    it samples a little later, never too early.

    Small batches are asked for several at a time, each drawn on its own, since a call through Ray
    costs as much as some 60 rows.

    A shard that dies is drawn from no more; what was asked of it is forgotten, and the others go
    on. When another process takes its place with fewer transitions, the samples drawn from the lost
    ones are forgotten, too (replay.rate_limiter.rebase).

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
        clock: Callable[[], float] = time.monotonic,
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
          clock: seconds, monotonic.
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
        self._totals = ReplayTotals(len(shards))
        self._missed: set[int] = set()  # shards that were silent when `catch_up` set the counts
        self._lost_until_s = [-math.inf] * len(shards)
        self._clock = clock
        self._requests: deque[_Request] = deque()
        # One list for each batch, of its shards' shares and replies.
        self._drawn: deque[list[tuple[float, SampledRows]]] = deque()
        self._polls: list[tuple[int, Pending[ShardCounts]]] = []
        self._samples = 0
        self.version: WeightsVersion | None = None
        """Of the learner's weights now; rides on requests: shards tell the policy lag by it."""

    @property
    def samples(self) -> int:
        """Transitions asked for, over all shards, as the limiter counts them."""
        return self._samples

    @property
    def inserts(self) -> int:
        """Transitions inserted over all shards, as they last said, as the limiter counts them."""
        return self._totals.inserts

    @property
    def accepted(self) -> int:
        """Transitions that came in, as the shards last said; each is one agent step."""
        return self._totals.accepted

    @property
    def size(self) -> int:
        """Live transitions over all shards that answer, as they last said."""
        return sum(counts.transitions for counts in self._drawable())

    @property
    def episodes(self) -> int:
        """Training games that ended, over all shards, as they last said."""
        return self._totals.episodes

    @property
    def rng_state(self) -> dict[str, Any]:
        """State of the generator that splits batches over shards: plain numbers and text."""
        return dict(self._rng.bit_generator.state)

    @rng_state.setter
    def rng_state(self, state: Mapping[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def catch_up(self, timeout_s: float) -> bool:
        """Set the counts of a learner that starts late, as if neither side were ahead.

        How often the transitions that the shards hold were sampled is not known here. Neither side
        was ever ahead by more than the limiter's band, so the counts are wrong by no more. Call it
        before `fetch`.

        Returns:
          Whether every shard answered in time. One that did not counts as empty until it does; then
          its samples are set alike.
        """
        deadline_s = self._clock() + timeout_s
        while self._totals.silent and self._clock() < deadline_s:
            self._poll(_POLL_S)
        self._samples = self._limiter.samples_due(self.inserts)
        self._missed = self._totals.silent
        return not self._missed

    def refresh(self, timeout_s: float) -> None:
        """Ask every shard for its counts and wait for the answers, at most so long."""
        deadline_s = self._clock() + timeout_s
        while self._polls and self._clock() < deadline_s:
            self._poll(_POLL_S)  # those asked before may be older than what happened since
        self._poll(0.0)
        while self._polls and self._clock() < deadline_s:
            self._poll(_POLL_S)

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
            if not all(counts.transitions for counts in self._drawable()):
                # A shard that was empty is asked for no rows, so no reply tells that it filled.
                self._poll(0.0)
            self._receive(self._requests.popleft())
            self._request()  # the shards sample the next batches while these are decoded
        return self._batch(self._drawn.popleft()) if self._drawn else None

    def _request(self) -> None:
        while len(self._requests) < self._in_flight and (batches := self._allowed_batches()):
            masses = np.array([c.mass if c.transitions else 0.0 for c in self._drawable()])
            if masses.sum() <= 0.0:
                return
            self._samples += batches * self._batch_size
            splits = np.stack(
                [split_rows(self._batch_size, masses, self._rng) for _ in range(batches)]
            )
            asked = []
            for shard, column in enumerate(splits.T):
                if rows := tuple(column[column > 0].tolist()):
                    pending = self._shards[shard].sample(rows, self._learner_counts(shard))
                    asked.append((shard, self._totals.newest(shard).incarnation, pending))
            self._requests.append(_Request(masses / masses.sum(), splits, asked))

    def _allowed_batches(self) -> int:
        """Return how many batches to ask for in one request: the most that the limiter allows."""
        for batches in range(self._batches_per_request, 0, -1):
            rows = batches * self._batch_size
            if self._limiter.can_sample(self.inserts, self._samples, rows):
                return batches
        return 0

    def _receive(self, request: _Request) -> None:
        """Wait for a request's replies and sort them by batch.

        Without a shard's rows a batch is none: then all of them are forgotten.
        """
        drawn: list[list[tuple[float, SampledRows]]] = [[] for _ in request.splits]
        is_whole = True
        for shard, known, pending in request.asked:
            column = request.splits[:, shard]
            try:
                counts, batches = pending.result()
            except ShardLost:
                self._lose(shard)
                is_whole = False
                continue
            self._take(shard, counts)
            for batch, rows in zip(np.flatnonzero(column), batches, strict=True):
                if len(rows.ids) != column[batch]:
                    # Only one that took the place of another may hold less than is known.
                    assert counts.incarnation > known, (shard, int(column[batch]), len(rows.ids))
                    is_whole = False
                drawn[batch].append((float(request.shares[shard]), rows))
        if is_whole:
            self._drawn.extend(drawn)
        else:
            self._samples = max(0, self._samples - len(drawn) * self._batch_size)

    def _take(self, shard: int, counts: ShardCounts) -> None:
        """Believe a shard's counts, unless newer ones came before them."""
        inserts, lost = self.inserts, self._totals.lost
        if not self._totals.update(shard, counts):
            return
        if lost := self._totals.lost - lost:
            self._samples = self._limiter.rebase(inserts, self._samples, lost)
        if shard in self._missed:
            self._missed.discard(shard)
            due = self._limiter.samples_due
            self._samples += due(self.inserts) - due(inserts)
        self._lost_until_s[shard] = -math.inf

    def _lose(self, shard: int) -> None:
        """Draw from a shard no more until it answers again."""
        self._lost_until_s[shard] = self._clock() + _LOST_RETRY_S

    def _is_lost(self, shard: int) -> bool:
        return self._lost_until_s[shard] > -math.inf

    def _drawable(self) -> list[ShardCounts]:
        """Return the newest counts of each shard; a lost one has none to draw from."""
        return [
            NEVER_HEARD if self._is_lost(shard) else self._totals.newest(shard)
            for shard in range(len(self._shards))
        ]

    def _poll(self, timeout_s: float) -> None:
        """Ask the shards for their counts, which also tells them the learner's.

        Wait at most so long for an answer; those that come later are taken in by the next call.
        """
        if not self._polls:
            now_s = self._clock()
            self._polls = [
                (shard, handle.counts(self._learner_counts(shard)))
                for shard, handle in enumerate(self._shards)
                if now_s >= self._lost_until_s[shard]
            ]
        if not self._polls:
            time.sleep(timeout_s)
            return
        self._polls[0][1].wait(timeout_s)
        waiting = []
        for shard, pending in self._polls:
            if not pending.wait(0.0):
                waiting.append((shard, pending))
                continue
            try:
                self._take(shard, pending.result())
            except ShardLost:
                self._lose(shard)
        self._polls = waiting

    def _learner_counts(self, shard: int) -> LearnerCounts:
        # A new process may hold less than the samples were drawn from: told of them before they are
        # rebased, it would let the actors run far ahead.
        return LearnerCounts(
            samples=0 if self._is_lost(shard) else self._samples,
            inserts_elsewhere=self.inserts - self._totals.newest(shard).inserts,
            version=self.version,
        )

    def _batch(self, drawn: list[tuple[float, SampledRows]]) -> Batch:
        probability = np.concatenate([share * reply.probability for share, reply in drawn])
        replies = [reply for _, reply in drawn]
        ids = np.concatenate([reply.ids for reply in replies])
        a_tm1 = np.concatenate([reply.a_tm1 for reply in replies]).astype(np.int64)
        if a_tm1.max() >= self._num_actions:
            row = int(a_tm1.argmax())
            raise ValueError(
                f"Expect actions below {self._num_actions}, actually: {a_tm1[row]} in transition "
                f"{ids[row]} of replay shard {shard_of(ids)[row]}"
            )
        stacks = [self._decoder.decode(reply) for reply in replies]
        # All rows' shards may be lost by now; N cancels out, but 0 would not.
        size = max(1, self.size)
        return Batch(
            ids=ids,
            weight=importance_weights(probability, size, self._beta),
            s_tm1=_join([s_tm1 for s_tm1, _ in stacks]),
            a_tm1=a_tm1,
            r_t=np.concatenate([reply.r_t for reply in replies]),
            discount_t=np.concatenate([reply.discount_t for reply in replies]),
            s_t=_join([s_t for _, s_t in stacks]),
        )


def _join(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate, without the copy where there is one part."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
