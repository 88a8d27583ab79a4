"""A sum tree: draw slots in proportion to their values in O(log capacity), many at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROOT = 1

# Up to so many nodes per slot set, recomputing a whole range of a level as a slice beats gathering
# its nodes one by one: measured, 8 and 16 are the quickest for 512 scattered slots among 262,144
# (111 microseconds; 2 takes 161, 32 takes 122).
_RANGE_NODES_PER_SLOT = 8

# Level at which a query starts its descent; 8 to 12 measure alike.
_START_DEPTH = 9


class SumTree:
    """Holds one float64 per slot and finds slots by prefix sum, many at a time.

    The tree is one array: node i has the children 2i and 2i + 1, the root is node 1 and the leaves
    are the last half, as many as the next power of two at or above the capacity (the surplus stays
    0). Parents are RECOMPUTED from their children, never nudged by differences, so that parent ==
    left + right holds to the last bit after any history and nothing drifts (Schaul et al. 2016,
    appendix B.2.1 describes the structure).

    A slot with value 0 is never returned by `query`, whatever the rounding.

    Not safe for threads: one owner calls it. Memory is 16 bytes for each leaf.
    """

    def __init__(self, capacity: int) -> None:
        """Make a tree of `capacity` slots, all 0.

        Args:
          capacity: number of slots.

        Raises:
          ValueError: `capacity` is below 1.
        """
        if capacity < 1:
            raise ValueError(f"Expect `capacity` >= 1, actually: {capacity}")
        self._capacity = capacity
        self._depth = (capacity - 1).bit_length()  # levels below the root
        self._num_leaves = 1 << self._depth
        self._nodes: NDArray[np.float64] = np.zeros(2 * self._num_leaves, dtype=np.float64)
        # Row p holds the two children of node p: a view, which fetches both from one place.
        self._children: NDArray[np.float64] = self._nodes.reshape(self._num_leaves, 2)
        # A sum of this value over all leaves is still finite (dividing by a power of two is exact).
        self._largest = float(np.finfo(np.float64).max) / self._num_leaves

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return self._capacity

    @property
    def total(self) -> float:
        """Sum of all values."""
        return float(self._nodes[_ROOT])

    def get(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the values of `slots` as float64[n].

        Args:
          slots: int64[n], each in [0, capacity).

        Raises:
          ValueError: a slot is out of range.
        """
        slots = self._as_slots(slots)
        if slots.size:
            self._check_range(slots)
        return self._nodes[slots + self._num_leaves]

    def run(self, first: int, num: int) -> NDArray[np.float64]:
        """Return float64[num], the values of `num` neighbours from slot `first` on, as a copy.

        After the last slot comes slot 0. A million take 0.2 milliseconds; with `get`, 9.

        Raises:
          ValueError: `first` is out of range, or there are fewer slots than `num`.
        """
        if not 0 <= first < self._capacity:
            raise ValueError(f"Expect `first` in [0, {self._capacity}), actually: {first}")
        if not 0 <= num <= self._capacity:
            raise ValueError(f"Expect `num` from 0 to {self._capacity}, actually: {num}")
        leaves = self._nodes[self._num_leaves : self._num_leaves + self._capacity]
        return np.concatenate(
            [leaves[first : first + num], leaves[: max(0, first + num - self._capacity)]]
        )

    def set(self, slots: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """Set the value of each slot; where a slot comes twice, its last value counts.

        Costs O(n log(capacity / n)) for scattered slots and O(n) for a run of neighbours.

        Args:
          slots: int64[n], each in [0, capacity), in any order.
          values: float64[n], finite and >= 0.

        Raises:
          ValueError: shapes differ, a slot is out of range, or a value is negative, NaN, infinite
            or so large that the total could overflow. The tree is then unchanged.
        """
        slots = self._as_slots(slots)
        values = np.asarray(values, dtype=np.float64)
        if slots.shape != values.shape:
            raise ValueError(
                f"Expect `values` of shape {slots.shape} like `slots`, actually: {values.shape}"
            )
        if not slots.size:
            return
        lowest, highest = self._check_range(slots)
        # NaN fails both comparisons, infinity the second.
        if not (values.min() >= 0.0 and values.max() <= self._largest):
            wrong = values[~((values >= 0.0) & (values <= self._largest))]
            raise ValueError(f"Expect `values` from 0 to {self._largest:.3g}, actually: {wrong[0]}")
        nodes, children = self._nodes, self._children
        index = slots + self._num_leaves
        # numpy assigns repeated indices one after another, "leaving behind the last value" (numpy
        # quickstart, "Indexing with arrays of indices"); a test pins it.
        nodes[index] = values
        lowest += self._num_leaves
        highest += self._num_leaves
        most_in_range = _RANGE_NODES_PER_SLOT * slots.size
        for _ in range(self._depth):
            lowest >>= 1
            highest >>= 1
            if highest - lowest < most_in_range:
                # Every parent from the lowest to the highest: recomputing one whose children did
                # not change is harmless.
                pairs = children[lowest : highest + 1]
                np.add(pairs[:, 0], pairs[:, 1], out=nodes[lowest : highest + 1])
            else:
                # A parent that two slots share is computed twice, to the same value: cheaper than
                # finding out with np.unique.
                index >>= 1
                pairs = children.take(index, axis=0)
                nodes[index] = pairs[:, 0] + pairs[:, 1]

    def query(self, targets: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the slot where the running sum of values first exceeds each target, as int64[n].

        Slot i is returned for targets in [sum(values[:i]), sum(values[:i + 1])), up to rounding of
        the sums, so targets uniform in [0, total) draw slots in proportion to their values. The
        total itself, which a draw from [0, 1) times the total can round to, finds the last slot
        with a value > 0.

        Args:
          targets: float64[n], each in [0, total].

        Raises:
          ValueError: all values are 0, or a target is out of range or NaN.
        """
        rest = np.array(targets, dtype=np.float64)  # a copy, used up below
        if rest.ndim != 1:
            raise ValueError(f"Expect `targets` of rank 1, actually: rank {rest.ndim}")
        total = self._nodes[_ROOT]
        if not total > 0.0:
            raise ValueError("Expect a value > 0 in the tree before a query, actually: total 0")
        if not rest.size:
            return np.zeros(rest.shape, dtype=np.int64)
        if not (rest.min() >= 0.0 and rest.max() <= total):
            wrong = rest[~((rest >= 0.0) & (rest <= total))]
            raise ValueError(f"Expect `targets` from 0 to {total}, actually: {wrong[0]}")
        # The upper levels at once, by running sums over one level: 512 targets among 262,144 slots
        # take 180 instead of 260 microseconds. Where sums grow, the node's value is > 0; only past
        # the last sum must rounding be brought back to such a node.
        level = min(self._depth, _START_DEPTH)
        starts = self._nodes[1 << level : 2 << level]
        ends = starts.cumsum()
        index = ends.searchsorted(rest, side="right")
        if index.max() == ends.size:
            index = np.minimum(index, starts.nonzero()[0][-1])
        rest -= np.where(index > 0, ends[index - 1], 0.0)
        index += 1 << level
        for _ in range(level, self._depth):
            pairs = self._children.take(index, axis=0)
            left = pairs[:, 0]
            # The second condition keeps to the left where rounding would step off the right edge of
            # the last value > 0. So every node on the way has a sum > 0, and the leaf too.
            right_ward = (rest >= left) & (pairs[:, 1] > 0.0)
            rest -= left * right_ward
            index += index
            index += right_ward
        index -= self._num_leaves
        return index

    def check_valid(self) -> None:
        """Raise AssertionError unless every node is finite, >= 0 and its children's exact sum.

        Costs O(capacity).
        """
        nodes = self._nodes
        good = (nodes[_ROOT:] >= 0.0) & np.isfinite(nodes[_ROOT:])
        if not good.all():
            node = _ROOT + int(np.argmin(good))
            raise AssertionError(f"node {node} must be finite and >= 0, actually: {nodes[node]}")
        sums = self._children[_ROOT:].sum(axis=1)
        equal = nodes[_ROOT : self._num_leaves] == sums
        if not equal.all():
            node = _ROOT + int(np.argmin(equal))
            total = sums[node - _ROOT]
            raise AssertionError(
                f"node {node} must be the sum of its children, {total}, actually: {nodes[node]}"
            )
        surplus = nodes[self._num_leaves + self._capacity :]
        if surplus.any():
            slot = self._capacity + int(np.argmax(surplus > 0.0))
            raise AssertionError(
                f"slot {slot} beyond the capacity of {self._capacity} must be 0, actually: "
                f"{surplus[slot - self._capacity]}"
            )

    @staticmethod
    def _as_slots(slots: NDArray[np.int64]) -> NDArray[np.int64]:
        slots = np.asarray(slots)
        if slots.ndim != 1 or (slots.size and slots.dtype.kind not in "iu"):
            raise ValueError(
                "Expect `slots` as integers of rank 1, "
                f"actually: {slots.dtype} of rank {slots.ndim}"
            )
        return slots.astype(np.int64, copy=False)

    def _check_range(self, slots: NDArray[np.int64]) -> tuple[int, int]:
        """Return the lowest and highest slot of a non-empty array, or raise."""
        lowest, highest = int(slots.min()), int(slots.max())
        if lowest < 0 or highest >= self._capacity:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"Expect `slots` in [0, {self._capacity}), actually: {wrong}")
        return lowest, highest
