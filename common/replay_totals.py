"""What replay took in: what its shards last said, added up, over the deaths of their processes."""

from __future__ import annotations

from common.types import ShardCounts

NEVER_HEARD = ShardCounts(
    incarnation=-1, inserts=0, restored=0, transitions=0, mass=0.0, accepted=0, episodes=0
)


class ReplayTotals:
    """The newest counts of each shard, and their sums.

    A shard that died comes back from its last snapshot, so its stream goes back; what it had
    accepted was accepted all the same. Where a stream stands at I inserts, went back by L in all,
    and stood at H before this start of the run, A = I + L - H were accepted. Of what a shard took
    in after its last word nobody knows, unless its snapshot holds it.

    One thread only; the sums may be read from any.
    """

    def __init__(self, shards: int) -> None:
        """Know nothing yet of `shards` shards."""
        self._newest = [NEVER_HEARD] * shards
        self._dead: set[int] = set()
        self._beyond = [0] * shards  # L - H of each
        self._accepted = [0] * shards
        self._episodes = [0] * shards
        self._lost = 0

    @property
    def silent(self) -> set[int]:
        """Shards that never said anything."""
        return {k for k, counts in enumerate(self._newest) if counts == NEVER_HEARD}

    @property
    def inserts(self) -> int:
        """Positions of all streams, restored transitions included."""
        return sum(counts.inserts for counts in self._newest)

    @property
    def transitions(self) -> int:
        """Live transitions."""
        return sum(counts.transitions for counts in self._newest)

    @property
    def accepted(self) -> int:
        """Transitions accepted since this start of the run."""
        return sum(self._accepted)

    @property
    def episodes(self) -> int:
        """Training games that ended since this start of the run."""
        return sum(self._episodes)

    @property
    def lost(self) -> int:
        """Transitions that were inserted and died with their shard."""
        return self._lost

    def newest(self, shard: int) -> ShardCounts:
        """Return what a shard said last; NEVER_HEARD before it did."""
        return self._newest[shard]

    def accepted_by(self, shard: int) -> tuple[int, int]:
        """Return what a shard accepted since this start of the run, and its games."""
        return self._accepted[shard], self._episodes[shard]

    def died(self, shard: int) -> None:
        """Take note that the incarnation heard of last is dead: what it still says is late."""
        self._dead.add(shard)

    def update(self, shard: int, counts: ShardCounts) -> bool:
        """Take a shard's counts; return False for late ones, which change nothing.

        Late are counts older than the newest known, or of an incarnation that is dead: within an
        incarnation no count ever falls.
        """
        known = self._newest[shard]
        if counts.incarnation > known.incarnation:
            self._dead.discard(shard)
            lost = max(0, known.inserts - counts.restored)
            self._lost += lost
            # Whoever was away may have missed the death of an incarnation: the shard knows of it.
            told = counts.accepted - counts.inserts
            heard = told if known == NEVER_HEARD else self._beyond[shard] + lost
            self._beyond[shard] = max(told, heard)
        elif shard in self._dead or (
            (counts.incarnation, counts.inserts, counts.episodes)
            < (known.incarnation, known.inserts, known.episodes)
        ):
            return False
        self._newest[shard] = counts
        self._accepted[shard] = counts.inserts + self._beyond[shard]
        self._episodes[shard] = max(self._episodes[shard], counts.episodes)
        return True
