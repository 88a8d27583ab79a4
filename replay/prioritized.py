"""Prioritised replay over compressed segments (Schaul et al. 2016); alpha = 0 is uniform."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.seeding import expect_generator_state
from common.types import PriorityUpdate, SampledRows
from replay.state import ShardState, SnapshotError
from replay.storage import Added, SegmentStorage, position_of
from replay.sum_tree import SumTree

# Keeps a transition without error sampleable (Schaul et al. 2016, section 3.3).
_PRIORITY_EPSILON = 1e-6


class PrioritizedReplay:
    """Stores segments and draws transitions in proportion to a power of their priority.

        p_i = (|td_i| + 1e-6)^alpha / sum_j (|td_j| + 1e-6)^alpha

    (Schaul et al. 2016, equation 1). Draws are stratified: the total mass is cut into as many equal
    parts as rows are asked for, and one row is drawn from each (ibid., section 3.3). In sequential
    order a draw is a run of neighbours instead. Not thread-safe.
    """

    def __init__(
        self,
        *,
        storage: SegmentStorage,
        capacity: int,
        alpha: float,
        is_sequential: bool,
        rng: np.random.Generator,
    ) -> None:
        """Prepare an empty replay.

        Args:
          storage: an empty storage.
          capacity: its capacity in transitions.
          alpha: priority exponent; 0 is uniform.
          is_sequential: draw neighbours in order of insertion, from a random start; from the newest
            on to the oldest, so that each transition is drawn as often as any. Needs alpha 0.
          rng: draws the samples.
        """
        if alpha < 0:
            raise ValueError(f"Expect `alpha` >= 0, actually: {alpha}")
        if is_sequential and alpha > 0:
            raise ValueError(f"Expect `alpha` 0 in sequential order, actually: {alpha}")
        self._storage = storage
        self._alpha = alpha
        self._is_sequential = is_sequential
        self._rng = rng
        self._tree = SumTree(capacity)

    @property
    def alpha(self) -> float:
        """Priority exponent."""
        return self._alpha

    @property
    def rng_state(self) -> dict[str, Any]:
        """State of the generator that draws samples."""
        return dict(self._rng.bit_generator.state)

    @property
    def storage(self) -> SegmentStorage:
        """The segments."""
        return self._storage

    @property
    def mass(self) -> float:
        """Sum of (priority + 1e-6) ** alpha over the live transitions."""
        return self._tree.total

    def add(self, packed: bytes) -> Added | None:
        """Insert one packed segment; see SegmentStorage.add."""
        added = self._storage.add(packed)
        if added is not None:
            if len(added.evicted_slots):
                self._tree.set(added.evicted_slots, np.zeros(len(added.evicted_slots)))
            self._tree.set(added.slots, self._mass(added.priority))
        return added

    def update_priorities(self, update: PriorityUpdate) -> int:
        """Set new priorities and return how many were dropped because their transition is gone.

        Raises:
          ValueError: a priority is negative or not finite; nothing was changed.
        """
        good = np.isfinite(update.priority) & (update.priority >= 0)
        if not np.all(good):
            bad = update.priority[~good][0]
            raise ValueError(f"Expect finite priorities >= 0, actually: {bad}")
        slots, live = self._storage.live_slots(update.ids)
        if np.any(live):
            self._tree.set(slots[live], self._mass(update.priority[live]))
        return int(np.count_nonzero(~live))

    def masses(self) -> NDArray[np.float64]:
        """Return float64[N], the mass of each live transition, oldest first; a copy."""
        return self._tree.run(self._storage.evicted % self._tree.capacity, len(self._storage))

    def restore(self, state: ShardState) -> None:
        """Take in the segments that there is room for, their masses, and the generator's state.

        Masses under another alpha become those of the same priorities under this one:

            ((|td| + 1e-6)^old)^(new / old) = (|td| + 1e-6)^new

        Under alpha 0 all masses are 1 and the priorities are lost; they are taken to be 1, which is
        what actors push then.

        Raises:
          ValueError: this replay has held something.
          SnapshotError: the state is inconsistent, or its generator is another than this one's.
          PackingError: a segment is not sound. In every case nothing was changed.
        """
        own = self._rng.bit_generator.state["bit_generator"]
        if state.rng.get("bit_generator") != own:
            raise SnapshotError(
                f"Expect the state of a {own} generator, actually: {state.rng.get('bit_generator')}"
            )
        try:
            expect_generator_state(state.rng)
        except ValueError as error:
            raise SnapshotError(str(error)) from error
        first = int(position_of(state.first_ids[0])) if len(state.first_ids) else state.inserted
        masses = self._converted(state.masses, state.alpha)
        good = np.isfinite(masses) & (masses > 0.0)
        if len(masses) != state.inserted - first or not np.all(good):
            raise SnapshotError(
                f"Expect {state.inserted - first} finite masses > 0, actually: "
                f"{np.count_nonzero(good)} of {len(masses)}"
            )
        self._storage.restore(state.segments, state.first_ids, state.inserted, state.names)
        positions = np.arange(self._storage.evicted, self._storage.inserted)
        self._tree.set(positions % self._tree.capacity, masses[len(masses) - len(positions) :])
        self._rng.bit_generator.state = state.rng

    def sample(self, num: int) -> SampledRows:
        """Draw `num` rows (none while empty) with the compressed blocks they need."""
        if num < 1:
            raise ValueError(f"Expect `num` >= 1, actually: {num}")
        slots = self._draw(num if len(self._storage) else 0)
        rows = self._storage.rows(slots)
        parts: list[memoryview] = []
        block_bytes: list[int] = []
        block_frames: list[int] = []
        spans = zip(
            rows["segment"].tolist(),
            rows["first_block"].tolist(),
            rows["num_blocks"].tolist(),
            strict=True,
        )
        for number, first, count in spans:  # plain lists: numpy would cost more per row
            segment = self._storage.segment(number)
            bounds = segment.block_bounds[first : first + count + 1]
            parts.append(segment.blocks[bounds[0] : bounds[-1]])
            block_bytes += [end - start for start, end in pairwise(bounds)]
            block_frames += segment.block_frames[first : first + count]
        return SampledRows(
            ids=rows["id"].copy(),
            probability=self._tree.get(slots) / max(self._tree.total, np.finfo(np.float64).tiny),
            a_tm1=rows["a_tm1"].copy(),
            r_t=rows["r_t"].copy(),
            discount_t=rows["discount_t"].copy(),
            newest_tm1=rows["newest_tm1"].copy(),
            newest_t=rows["newest_t"].copy(),
            depth_tm1=rows["depth_tm1"].copy(),
            depth_t=rows["depth_t"].copy(),
            blocks=np.frombuffer(b"".join(parts), np.uint8),
            block_bytes=np.array(block_bytes, np.int32),
            block_frames=np.array(block_frames, np.int32),
            row_blocks=rows["num_blocks"].copy(),
        )

    def check_valid(self) -> None:
        """Raise AssertionError unless there is mass on the live slots and nowhere else."""
        self._storage.check_valid()
        self._tree.check_valid()
        live = np.zeros(self._tree.capacity, np.bool_)
        positions = np.arange(self._storage.evicted, self._storage.inserted)
        live[positions % self._tree.capacity] = True
        has_mass = self._tree.get(np.arange(self._tree.capacity)) > 0.0
        assert np.array_equal(has_mass, live), "mass on a dead slot, or none on a live one"

    def _draw(self, num: int) -> NDArray[np.int64]:
        if num == 0:
            return np.zeros(0, np.int64)
        if self._is_sequential:
            live = len(self._storage)
            positions = (self._rng.integers(live) + np.arange(num)) % live
            return (self._storage.evicted + positions) % self._tree.capacity
        strata = (np.arange(num) + self._rng.random(num)) / num
        return self._tree.query(strata * self._tree.total)

    def _converted(self, masses: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
        if alpha == self._alpha:
            return masses
        if alpha == 0.0:
            return np.full(len(masses), (1.0 + _PRIORITY_EPSILON) ** self._alpha)
        with np.errstate(all="ignore"):  # what comes of numbers that are none is refused
            converted: NDArray[np.float64] = masses ** (self._alpha / alpha)
        return converted

    def _mass(self, priority: NDArray[np.float32]) -> NDArray[np.float64]:
        return (priority.astype(np.float64) + _PRIORITY_EPSILON) ** self._alpha
