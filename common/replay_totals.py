"""What the shards took in, added up over the deaths of their processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Lineage:
    """One shard: what its dead incarnations said last, summed, and what the living one says."""

    incarnation: int | None = None
    is_alive: bool = True
    inserts: int = 0
    accepted: int = 0
    episodes: int = 0
    accepted_before: int = 0
    episodes_before: int = 0


class ReplayTotals:
    """Adds up counts that start again with each incarnation of a shard.

    A shard that died comes back from its last snapshot, so its stream goes back; what it had
    accepted was accepted all the same. Of what it took in after its last word nobody knows.

    One thread only; the totals may be read from any.
    """

    def __init__(self, shards: int) -> None:
        """Know nothing yet of `shards` shards."""
        self._shards = [_Lineage() for _ in range(shards)]
        self._lost = 0

    @property
    def is_complete(self) -> bool:
        """Whether every shard has said something."""
        return all(shard.incarnation is not None for shard in self._shards)

    @property
    def inserts(self) -> int:
        """Positions of all streams, restored transitions included."""
        return sum(shard.inserts for shard in self._shards)

    @property
    def accepted(self) -> int:
        """Transitions accepted, over all shards and incarnations."""
        return sum(shard.accepted_before + shard.accepted for shard in self._shards)

    @property
    def episodes(self) -> int:
        """Training games that ended, over all shards and incarnations."""
        return sum(shard.episodes_before + shard.episodes for shard in self._shards)

    @property
    def lost(self) -> int:
        """Transitions that were inserted and died with their shard."""
        return self._lost

    def by_the_dead(self, shard: int) -> tuple[int, int]:
        """Return the transitions that a shard's dead incarnations accepted, and their games."""
        return self._shards[shard].accepted_before, self._shards[shard].episodes_before

    def died(self, shard: int) -> None:
        """Take note that the incarnation heard of last is dead: what it still says is late."""
        lineage = self._shards[shard]
        lineage.is_alive = False
        lineage.accepted_before += lineage.accepted
        lineage.episodes_before += lineage.episodes
        lineage.accepted = lineage.episodes = 0

    def update(
        self,
        shard: int,
        *,
        incarnation: int,
        inserts: int,
        accepted: int,
        episodes: int,
        by_the_dead: tuple[int, int] = (0, 0),
    ) -> int:
        """Take a shard's counts; return how many transitions its last restart lost, mostly 0.

        `by_the_dead` is what `by_the_dead` says to somebody who may have heard of deaths that
        nobody told here.

        Counts that are older than the newest known, or another incarnation's before it, are late,
        and are ignored: within an incarnation no count ever falls.
        """
        lineage = self._shards[shard]
        known = lineage.incarnation
        lost = 0
        if known is not None:
            newest = (known, lineage.inserts, lineage.episodes)
            if (incarnation, inserts, episodes) < newest:
                return 0
            if incarnation == known and not lineage.is_alive:
                return 0
        if known is not None and incarnation > known:
            restored = inserts - accepted
            lost = max(0, lineage.inserts - restored)
            # What the snapshot holds beyond the last word was accepted after it.
            unheard = max(0, restored - lineage.inserts)
            lineage.accepted_before += lineage.accepted + unheard
            lineage.episodes_before += lineage.episodes
            self._lost += lost
        lineage.accepted_before = max(lineage.accepted_before, by_the_dead[0])
        lineage.episodes_before = max(lineage.episodes_before, by_the_dead[1])
        lineage.incarnation, lineage.is_alive = incarnation, True
        lineage.inserts, lineage.accepted, lineage.episodes = inserts, accepted, episodes
        return lost
