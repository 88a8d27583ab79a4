"""Keep the samples per insert near a set ratio: a formula that decides, and no waiting."""

from __future__ import annotations

import math


class RateLimiter:
    """Decides who may move: the actors (insert) or the learner (sample).

    With I transitions inserted and S sampled over all shards,

      error(I, S) = (I - min_size) * samples_per_insert - S

    is kept within +-band: an insert of n is allowed if afterwards error <= band, a sample of n if
    afterwards error >= -band. Below `min_size` inserts always pass and samples never do. (Reverb's
    SampleToInsertRatio works alike: Cassirer et al. 2021, "Reverb: a framework for experience
    replay".)

    The limiter holds no counts and never waits: whoever asks passes the counts it believes in, and
    asks again later when the answer is no. Safe from any thread.

    **Neither side can wait for ever**, given that

      band >= 2 * max(batch, samples_per_insert * push)

    with the largest sample `batch` >= 1 and the largest insert `push` >= 1, which `Config.problems`
    demands. Claim: in EVERY state (I, S), however it was reached, one of the two may move.
    Proof. Say that an insert of n <= push is refused. Then I >= min_size, and

      error(I, S) > band - n * samples_per_insert >= band - band / 2 = band / 2.

    A sample of n <= batch is refused too, as I >= min_size, only if

      error(I, S) < n - band <= band / 2 - band = -band / 2,

    and error cannot be both above band / 2 and below -band / 2. As it holds in every state, the
    claim needs no history: it covers a resumed run, one that lost a shard, and one whose counts
    were rebased. An insert that is refused for what is promised to others changes nothing: the
    first of those who still ask is judged as if it were alone. Rounding is harmless, since the two
    bounds are at least 2 apart.

    **With shards** each side knows part of the counts late. A shard adds its own inserts to what
    the learner last told of the others, and uses the samples last told; the learner adds up the
    inserts each shard last replied and knows its own samples. Both may then refuse at once, for a
    while. They cannot for ever, if the learner, while it waits, keeps polling every shard and tells
    each poll the run's counts: should nobody move, one round of polls makes its sum of inserts
    exact, a second round makes every shard's two counts exact, and then the claim applies. In the
    meantime late counts err on the safe side for the learner (a sum of old inserts is an
    underestimate, so the error never falls below -band), while K shards that have not heard of each
    other's inserts may together pass +band; then inserts wait and samples do not, until it is back.

    After a shard was lost see `rebase`.
    """

    def __init__(self, *, min_size: int, samples_per_insert: float | None, band: float) -> None:
        """Check and keep the settings.

        Args:
          min_size: transitions inserted before the first sample.
          samples_per_insert: times a transition is sampled, on average; None switches the ratio off
            (`min_size` holds).
          band: samples the ratio may be off by, to either side; unused if the ratio is off.

        Raises:
          ValueError: `min_size` < 1, or a ratio or band that is not finite and > 0.
        """
        if min_size < 1:
            raise ValueError(f"Expect `min_size` >= 1, actually: {min_size}")
        if samples_per_insert is not None:
            if not 0.0 < samples_per_insert < math.inf:
                raise ValueError(
                    "Expect `samples_per_insert` finite and > 0, or None to switch it off, "
                    f"actually: {samples_per_insert}"
                )
            if not 0.0 < band < math.inf:
                raise ValueError(f"Expect `band` finite and > 0, actually: {band}")
        self._min_size = min_size
        self._samples_per_insert = samples_per_insert
        self._band = band

    def samples_due(self, inserts: int) -> int:
        """Return the samples at which the error is 0: where a learner that comes anew sets in.

        Args:
          inserts: transitions ever inserted, over all shards.
        """
        return max(0, round(self.error(inserts, 0)))

    def rebase(self, inserts: int, samples: int, lost_inserts: int) -> int:
        """Return the samples to go on with after a loss; see the function `rebase`."""
        return rebase(inserts, samples, lost_inserts, self._min_size, self._samples_per_insert)

    def error(self, inserts: int, samples: int) -> float:
        """Return how many samples are owed (> 0) or were taken too early (< 0).

        Always 0 if the ratio is off.

        Args:
          inserts: transitions ever inserted, over all shards.
          samples: transitions ever sampled, over all shards.
        """
        if self._samples_per_insert is None:
            return 0.0
        return (inserts - self._min_size) * self._samples_per_insert - samples

    def can_insert(self, inserts: int, samples: int, num: int, promised: int = 0) -> bool:
        """Return whether `num` more transitions may be inserted now.

        Args:
          inserts: transitions ever inserted, over all shards.
          samples: transitions ever sampled, over all shards.
          num: transitions to insert, at once.
          promised: transitions that have to find room first (see replay.waiting_line).
        """
        soon = inserts + promised + num
        return inserts < self._min_size or self.error(soon, samples) <= self._band

    def can_sample(self, inserts: int, samples: int, num: int) -> bool:
        """Return whether `num` more transitions may be sampled now.

        Args:
          inserts: transitions ever inserted, over all shards.
          samples: transitions ever sampled, over all shards.
          num: transitions to sample, at once.
        """
        return inserts >= self._min_size and self.error(inserts, samples + num) >= -self._band


def rebase(
    inserts: int,
    samples: int,
    lost_inserts: int,
    min_size: int,
    samples_per_insert: float | None,
) -> int:
    """Return the sample count to go on with after a shard was lost, and its insert count with it.

    A lost shard takes its L inserts out of the sum: I' = I - L. With the old samples the error
    would drop by L * samples_per_insert, often far below -band, and the learner would stand still
    until L NEW transitions came in. So the samples that were drawn against the lost inserts are
    forgiven,

      S' = S - samples_per_insert * (max(I, min_size) - max(I', min_size)),   but at least 0,

    which keeps the error as it was. If less than `min_size` is left, the learner waits for
    `min_size` again (few transitions are not worth training on) and finds, when it has come in, the
    error that it had before the loss. Where S' is kept at 0, the error only comes nearer to 0. So
    with e(I, S) = error(max(I, min_size), S), the error now or once `min_size` is in,

      |e(I', S')| <= |e(I, S)|

    up to the half sample that rounding costs: an error within the band stays within it.

    Losses one after another may be rebased one by one or at once. The result counts for the limiter
    only: statistics keep the true number of samples.

    Args:
      inserts: I, transitions ever inserted, over all shards, before the loss.
      samples: S, transitions ever sampled (or an earlier rebase's answer).
      lost_inserts: L, how far the sum of inserts fell: those of the lost shard, less those its
        replacement restored.
      min_size: the limiter's.
      samples_per_insert: the limiter's; None returns `samples` as they are.

    Raises:
      ValueError: a negative count, or more inserts lost than there were.
    """
    if samples < 0:
        raise ValueError(f"Expect `samples` >= 0, actually: {samples}")
    if not 0 <= lost_inserts <= inserts:
        raise ValueError(
            f"Expect `lost_inserts` from 0 to `inserts` = {inserts}, actually: {lost_inserts}"
        )
    if samples_per_insert is None:
        return samples
    uncounted = max(inserts, min_size) - max(inserts - lost_inserts, min_size)
    return max(0, samples - round(samples_per_insert * uncounted))
