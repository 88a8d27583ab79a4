"""Slow and obviously right versions of the fast parts, to compare them with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import lz4.block
import numpy as np
from numpy.typing import NDArray

from common.types import ObservationSpec, Segment, SegmentName, TimeSteps


class NaiveSumTree:
    """What replay.sum_tree.SumTree does, as one list and linear scans."""

    def __init__(self, capacity: int) -> None:
        self.values = [0.0] * capacity

    @property
    def total(self) -> float:
        """Exactly rounded sum of all values."""
        return math.fsum(self.values)

    def set(self, slots: Sequence[int], values: Sequence[float]) -> None:
        """Set one after another, so that the last of a slot's values stays."""
        for slot, value in zip(slots, values, strict=True):
            self.values[slot] = value

    def get(self, slots: Sequence[int]) -> list[float]:
        """Return the values of `slots`."""
        return [self.values[slot] for slot in slots]

    def query(self, targets: Sequence[float]) -> list[int]:
        """Return for each target the first slot where the running sum exceeds it."""
        return [self._find(target) for target in targets]

    def _find(self, target: float) -> int:
        for slot, running_sum in enumerate(itertools.accumulate(self.values)):
            if running_sum > target:
                return slot
        raise AssertionError(f"target {target} must be below the total, {self.total}")


class NaiveTransition(NamedTuple):
    """A transition of one environment, by the indices of its two timesteps."""

    tm1: int
    t: int
    a_tm1: int
    r_t: float
    discount_t: float


class Step(NamedTuple):
    """One timestep of one environment (common.types.TimeSteps) with the action taken there."""

    action: int
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    first: bool = False
    game_over: bool = False


def naive_n_step(steps: Sequence[Step], n_step: int, gamma: float) -> list[NaiveTransition]:
    """Return every transition that the timesteps finish, walking forward from each start."""
    found = []
    for start, step in enumerate(steps):
        if step.game_over:
            continue  # the action is void
        r_t = 0.0
        for m in range(1, n_step + 1):
            if start + m >= len(steps):
                break  # not finished yet
            end = steps[start + m]
            assert not end.first, "a game has to end before another begins"
            r_t += gamma ** (m - 1) * end.reward
            if end.terminated:
                found.append(NaiveTransition(start, start + m, step.action, r_t, 0.0))
                break
            if end.truncated or m == n_step:
                found.append(NaiveTransition(start, start + m, step.action, r_t, gamma**m))
                break
    return found


def naive_depths(steps: Sequence[Step], stack: int) -> list[int]:
    """Return how many of each observation's frames belong to its game."""
    depths, length = [], 0
    for step in steps:
        length = 1 if step.first else length + 1
        depths.append(min(length, stack))
    return depths


def naive_stacks(segment: Segment, spec: ObservationSpec) -> list[tuple[NDArray, NDArray]]:
    """Return (s_tm1, s_t) of each transition: decode everything, then pick frame by frame."""
    packed, raw, start = segment.blocks.tobytes(), b"", 0
    for block, end in enumerate(segment.block_ends.tolist()):
        left = segment.num_frames - block * segment.frames_per_block
        size = min(left, segment.frames_per_block) * spec.frame_bytes
        raw += lz4.block.decompress(packed[start:end], uncompressed_size=size)
        start = end
    frames = np.frombuffer(raw, spec.dtype).reshape(segment.num_frames, *spec.frame_shape)

    def stack(newest: int, depth: int) -> NDArray:
        observation = np.zeros(spec.shape, spec.dtype)
        for back in range(depth):
            observation[spec.stack - 1 - back] = frames[newest - back]
        return observation

    columns = (segment.newest_tm1, segment.depth_tm1, segment.newest_t, segment.depth_t)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [(stack(tm1, d_tm1), stack(t, d_t)) for tm1, d_tm1, t, d_t in rows]


class NaiveRow(NamedTuple):
    """One live transition of NaiveReplay."""

    id: int
    s_tm1: NDArray
    a_tm1: int
    r_t: float
    discount_t: float
    s_t: NDArray


class NaiveReplay:
    """What replay.prioritized.PrioritizedReplay remembers, as lists of decoded transitions."""

    def __init__(
        self, *, capacity: int, max_bytes: int, alpha: float, first_id: int, spec: ObservationSpec
    ) -> None:
        self.segments: list[tuple[int, list[NaiveRow]]] = []  # (bytes, rows), oldest first
        self.masses: dict[int, float] = {}
        self.inserted = 0
        self.evicted = 0
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._alpha = alpha
        self._first_id = first_id
        self._spec = spec
        self._names: set[SegmentName] = set()

    @property
    def rows(self) -> dict[int, NaiveRow]:
        """Every live transition by its id."""
        return {row.id: row for _, rows in self.segments for row in rows}

    @property
    def num_bytes(self) -> int:
        return sum(size for size, _ in self.segments)

    @property
    def total(self) -> float:
        return math.fsum(self.masses.values())

    def add(self, segment: Segment, num_bytes: int) -> bool:
        """Insert, evicting the oldest first; False for a segment that was here before."""
        if segment.name in self._names:
            return False
        self._names.add(segment.name)
        count = segment.num_transitions
        while (
            len(self.rows) + count > self._capacity or self.num_bytes + num_bytes > self._max_bytes
        ):
            _, gone = self.segments.pop(0)
            self.evicted += len(gone)
            for row in gone:
                del self.masses[row.id]
        rows = []
        for i, (s_tm1, s_t) in enumerate(naive_stacks(segment, self._spec)):
            number = self._first_id + self.inserted
            columns = (segment.a_tm1, segment.r_t, segment.discount_t)
            a_tm1, r_t, discount_t = (column[i].item() for column in columns)
            rows.append(NaiveRow(number, s_tm1, a_tm1, r_t, discount_t, s_t))
            self.masses[number] = (float(segment.priority[i]) + 1e-6) ** self._alpha
            self.inserted += 1
        self.segments.append((num_bytes, rows))
        return True

    def update(self, ids: Sequence[int], priorities: Sequence[float]) -> int:
        """Set one after another; return how many are gone."""
        stale = 0
        for number, priority in zip(ids, priorities, strict=True):
            if number in self.masses:
                self.masses[number] = (priority + 1e-6) ** self._alpha
            else:
                stale += 1
        return stale


class SeenTransition(NamedTuple):
    """A transition as one environment really showed it."""

    s_tm1: NDArray
    a_tm1: int
    r_t: float
    discount_t: float
    s_t: NDArray
    tm1: int
    t: int


def seen_transitions(
    timesteps: Sequence[TimeSteps],
    actions: Sequence[NDArray[np.int64]],
    environment: int,
    *,
    n_step: int,
    gamma: float,
    clip_rewards: bool,
) -> list[SeenTransition]:
    """Return what an actor must have learned from one environment, from a record of what it saw.

    Timesteps without an action are not looked at: an actor books a timestep when it acts on it.
    """
    e = environment
    steps = []
    for seen, action in zip(timesteps, actions, strict=False):
        reward = float(seen.reward[e])
        flags = (seen.terminated, seen.truncated, seen.first, seen.game_over)
        steps.append(
            Step(
                int(action[e]),
                max(-1.0, min(1.0, reward)) if clip_rewards else reward,
                *(bool(flag[e]) for flag in flags),
            )
        )
    return [
        SeenTransition(
            s_tm1=timesteps[row.tm1].observation[e],
            a_tm1=row.a_tm1,
            r_t=row.r_t,
            discount_t=row.discount_t,
            s_t=timesteps[row.t].observation[e],
            tm1=row.tm1,
            t=row.t,
        )
        for row in naive_n_step(steps, n_step, gamma)
    ]
