"""What replay took in: what its shards last said, added up, over the deaths of their processes."""

from __future__ import annotations

from common.types import NEVER_HEARD, ShardCounts


class ReplayTotals:
    """The newest counts of each shard, and their sums.

    A shard that died comes back from its last snapshot, so its stream goes back, and what it had
    taken in after that snapshot is lost. What it had accepted was accepted all the same: it counts
    that on by itself (see ShardCounts), and no sum of accepted transitions or games ever falls.

    One thread only; the sums may be read from any.
    """

    def __init__(self, shards: int) -> None:
        """Know nothing yet of `shards` shards."""
        self._newest = [NEVER_HEARD] * shards
        self._dead: set[int] = set()
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

    def died(self, shard: int) -> None:
        """Take note that the incarnation heard of last is dead: what it still says is late."""
        self._dead.add(shard)

    def update(self, shard: int, counts: ShardCounts) -> bool:
        """Take a shard's counts; return False for late ones, which change nothing.

        Late are counts older than the newest known, or of an incarnation that is dead: within an
        incarnation no count ever falls.
        """
        known = self._newest[shard]
        is_next = counts.incarnation > known.incarnation
        if not is_next and (
            shard in self._dead
            or (counts.incarnation, counts.inserts, counts.episodes)
            < (known.incarnation, known.inserts, known.episodes)
        ):
            return False
        if is_next:
            self._dead.discard(shard)
            self._lost += max(0, known.inserts - counts.restored)
        self._newest[shard] = counts
        # Somebody here may have heard more of the dead than the driver, which told the living.
        self._accepted[shard] = max(self._accepted[shard], counts.accepted)
        self._episodes[shard] = max(self._episodes[shard], counts.episodes)
        return True
