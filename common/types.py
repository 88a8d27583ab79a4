"""Every message that crosses a process, and the specs both sides must agree on.

Messages are immutable NamedTuples of few large numpy arrays (struct of arrays): cheap to pickle,
nothing optional, no torch tensors, no handles. Letters in shapes: E environments, B rows of a
batch, T transitions, F frames, k frames in a stacked observation, A actions, G games.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class ObservationSpec(NamedTuple):
    """What one stacked observation is made of.

    Fields:
      frame_shape: shape of one frame, e.g. (84, 84) or (4,).
      dtype: numpy dtype name, "uint8" or "float32".
      stack: k, frames in an observation; its full shape is (k, *frame_shape).
    """

    frame_shape: tuple[int, ...]
    dtype: str
    stack: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one stacked observation, (k, *frame_shape)."""
        return (self.stack, *self.frame_shape)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return int(np.prod(self.frame_shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class EnvironmentSpec(NamedTuple):
    """What a run has to know of its environment.

    Fields:
      name: the game's short name, e.g. "pong"; for scores and file names.
      observation: see ObservationSpec.
      num_actions: A.
      action_repeat_frames: emulator frames one agent step takes (4 on Atari, 1 elsewhere).
      protocol: a line for the console that says what the id means (sticky actions, action set, life
        signal).
      scale: what the network multiplies observations by: pixels come into [-1, 1] so, and the
        numbers of a vector stay what they are.
    """

    name: str
    observation: ObservationSpec
    num_actions: int
    action_repeat_frames: int
    protocol: str
    scale: float = 1.0


class TimeSteps(NamedTuple):
    """What E environments answered to one `reset` or `step`.

    Fields:
      observation: dtype[E, k, *frame_shape], the stacks to act on next; zero-padded at a game's
        start.
      reward: float32[E], raw (never clipped); 0 where `first`.
      terminated: bool[E], the learning signal: no value follows (game over or, if so configured, a
        life lost).
      truncated: bool[E], the game was cut at its time limit; the observation is its last and may be
        bootstrapped from.
      first: bool[E], the observation opens a new game: the action sent was ignored and no
        transition leads here.
      game_over: bool[E], the game ended here (terminated for good, or truncated); the next timestep
        is `first`.
      life_lost: bool[E], a life was lost here, the last one too, whatever `terminated` makes of it;
        always False in games without lives.
    """

    observation: NDArray[Any]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    first: NDArray[np.bool_]
    game_over: NDArray[np.bool_]
    life_lost: NDArray[np.bool_]


class WeightsVersion(NamedTuple):
    """Names the weights that acted.

    Orders by learner incarnation, then step, since a restarted learner goes back.

    Fields:
      incarnation: how many times the run's learner was started before this one.
      learner_step: gradient updates done when the weights were published.
    """

    incarnation: int
    learner_step: int


class Weights(NamedTuple):
    """One published set of weights.

    Fields:
      version: see WeightsVersion.
      buffer: uint8[P], every parameter and buffer of the network back to back
        (common.networks.flatten_state).
      agent_steps: agent steps of the whole run that replay had accepted when they were published.
    """

    version: WeightsVersion
    buffer: NDArray[np.uint8]
    agent_steps: int


class SegmentName(NamedTuple):
    """Names a segment for ever, so that a retried push is recognised.

    Fields:
      actor: index of the actor in the run.
      incarnation: how many times that actor was started before.
      sequence: segments this incarnation wrote before this one, over all its environments.
    """

    actor: int
    incarnation: int
    sequence: int


class Segment(NamedTuple):
    """A stretch of one environment's stream: F consecutive frames and T transitions in them.

    Each frame is there once. Immutable: the unit of pushing, storing and evicting.

    Fields:
      name: see SegmentName.
      blocks: uint8[...], lz4 blocks of `frames_per_block` consecutive frames (the last may hold
        fewer), back to back.
      block_ends: int64[ceil(F / frames_per_block)], end offset of each block in `blocks`.
      num_frames: F.
      frames_per_block: frames in every block but the last.
      newest_tm1: int32[T], index of the newest frame of s_tm1; s_tm1 is the k frames that end
        there.
      newest_t: int32[T], the same for s_t.
      depth_tm1: uint8[T], how many of those k frames belong to this game; the rest (the oldest) are
        zero padding.
      depth_t: uint8[T], the same for s_t.
      a_tm1: int32[T].
      r_t: float32[T], n-step return; each reward was clipped (if so configured) before summing.
      discount_t: float32[T], gamma to the steps really taken; 0 exactly where the game or life
        TERMINATED.
      priority: float32[T], |n-step TD error| from the actor's own Q-values, before the exponent; 1
        if replay is uniform.
      weights_version: int64[T, 2], WeightsVersion whose weights chose a_tm1.
    """

    name: SegmentName
    blocks: NDArray[np.uint8]
    block_ends: NDArray[np.int64]
    num_frames: int
    frames_per_block: int
    newest_tm1: NDArray[np.int32]
    newest_t: NDArray[np.int32]
    depth_tm1: NDArray[np.uint8]
    depth_t: NDArray[np.uint8]
    a_tm1: NDArray[np.int32]
    r_t: NDArray[np.float32]
    discount_t: NDArray[np.float32]
    priority: NDArray[np.float32]
    weights_version: NDArray[np.int64]

    @property
    def num_transitions(self) -> int:
        """T."""
        return len(self.a_tm1)


class EpisodeRecord(NamedTuple):
    """One whole training game, raw.

    Fields:
      episode_return: sum of raw rewards over the whole game (all lives).
      agent_steps: its length.
      epsilon: exploration rate of the environment that played it, when it ended.
      ladder_position: float in [0, 1), where that environment stands on the ladder; quartiles are
        cut from it. NaN where all explore alike, by a schedule.
    """

    episode_return: float
    agent_steps: int
    epsilon: float
    ladder_position: float


class PhaseSeconds(NamedTuple):
    """Wall time one worker spent per phase since it last reported.

    Fields:
      phases: (name, seconds) pairs, e.g. ("inference", 0.41).
    """

    phases: tuple[tuple[str, float], ...]


class Push(NamedTuple):
    """What an actor sends to one replay shard at once.

    Fields:
      segments: packed segments (common.packing.pack_segment).
      transitions: how many transitions they hold.
      episodes: games that ended since the push before.
      phases: wall time by phase since the push before.
      epsilon: mean exploration rate that the actor's environments act with.
    """

    segments: tuple[bytes, ...]
    transitions: int
    episodes: tuple[EpisodeRecord, ...]
    phases: PhaseSeconds
    epsilon: float


class LearnerCounts(NamedTuple):
    """What the learner tells a shard with each request: every shard's limiter has to know it.

    Fields:
      samples: transitions sampled over all shards, as the limiter counts them.
      inserts_elsewhere: transitions inserted into the other shards, as they last said.
      version: of the learner's weights as they are now; None before it told.
    """

    samples: int
    inserts_elsewhere: int
    version: WeightsVersion | None


class ShardCounts(NamedTuple):
    """What a shard tells with each reply to the learner and each report to the driver.

    A shard that was started again counts accepted transitions and games on from what the driver
    heard of its dead incarnations, so that who comes anew hears of those, too.

    Fields:
      incarnation: how many times the shard was started before.
      inserts: transitions ever inserted into this shard: its position in its stream, what was
        restored from a snapshot included.
      restored: the position at which this incarnation began, 0 without a snapshot.
      transitions: live transitions.
      mass: sum of (priority + 1e-6) ** alpha over them.
      accepted: transitions inserted since this start of the run; what was restored counts only as
        far as a dead incarnation had accepted it since.
      episodes: training games whose records came since then.
    """

    incarnation: int
    inserts: int
    restored: int
    transitions: int
    mass: float
    accepted: int
    episodes: int


class SampledRows(NamedTuple):
    """Compressed rows drawn from one shard; B is 0 when the shard is empty.

    Fields:
      ids: int64[B], insertion ids.
      probability: float64[B], probability of each row in one draw from this shard.
      a_tm1: int32[B].
      r_t: float32[B].
      discount_t: float32[B].
      newest_tm1: int32[B], index of s_tm1's newest frame within the row's own decoded frames.
      newest_t: int32[B], the same for s_t.
      depth_tm1: uint8[B], as in Segment.
      depth_t: uint8[B], as in Segment.
      blocks: uint8[...], the lz4 blocks every row needs, back to back, row after row.
      block_bytes: int32[N], compressed bytes of each block.
      block_frames: int32[N], frames in each block.
      row_blocks: int32[B], blocks of each row.
    """

    ids: NDArray[np.int64]
    probability: NDArray[np.float64]
    a_tm1: NDArray[np.int32]
    r_t: NDArray[np.float32]
    discount_t: NDArray[np.float32]
    newest_tm1: NDArray[np.int32]
    newest_t: NDArray[np.int32]
    depth_tm1: NDArray[np.uint8]
    depth_t: NDArray[np.uint8]
    blocks: NDArray[np.uint8]
    block_bytes: NDArray[np.int32]
    block_frames: NDArray[np.int32]
    row_blocks: NDArray[np.int32]


class SampleReply(NamedTuple):
    """A shard's answer to one request of the learner.

    Fields:
      counts: see ShardCounts.
      batches: the rows of each batch that was asked for.
    """

    counts: ShardCounts
    batches: tuple[SampledRows, ...]


class Batch(NamedTuple):
    """Decoded rows, ready for the device.

    Fields:
      ids: int64[B], insertion ids, unique over shards and restarts.
      weight: float32[B], importance weight (N p)^-beta over the batch's largest.
      s_tm1: dtype[B, k, *frame_shape].
      a_tm1: int64[B].
      r_t: float32[B].
      discount_t: float32[B].
      s_t: dtype[B, k, *frame_shape].
    """

    ids: NDArray[np.int64]
    weight: NDArray[np.float32]
    s_tm1: NDArray[Any]
    a_tm1: NDArray[np.int64]
    r_t: NDArray[np.float32]
    discount_t: NDArray[np.float32]
    s_t: NDArray[Any]


class PriorityUpdate(NamedTuple):
    """New priorities for rows that were trained on.

    Fields:
      ids: int64[B]; where an id comes twice, the last one counts.
      priority: float32[B], |TD error| before the exponent, not importance-weighted.
    """

    ids: NDArray[np.int64]
    priority: NDArray[np.float32]
