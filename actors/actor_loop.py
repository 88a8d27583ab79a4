"""Act, accumulate, cut: the plain loop of one actor."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.environment_source import Environments
from actors.exploration import Exploration
from actors.n_step import Moment, NStepAccumulator
from actors.policy import EpsilonGreedyPolicy
from actors.segments import FirstPriority, SegmentWriter
from common.metrics import PhaseTimer
from common.types import EpisodeRecord, PhaseSeconds, Segment, SegmentName, Weights


class ActorLoop:
    """Plays E environments and returns the segments of what was seen.

    The loop it lives in:

        loop.take(weights)      # before the first step, and whenever there are newer ones
        for segment in loop.collect(num_vector_steps): push(pack_segment(segment))

    One thread only.
    """

    def __init__(
        self,
        *,
        environments: Environments,
        policy: EpsilonGreedyPolicy,
        exploration: Exploration,
        n_step: int,
        gamma: float,
        clip_rewards: bool,
        life_loss_reward: float,
        segment_transitions: int,
        frames_per_block: int,
        first_priority: FirstPriority | None,
        actor: int,
        incarnation: int,
    ) -> None:
        """Reset the environments and prepare one accumulator and one writer for each.

        Args:
          environments: E environments, closed by whoever made them.
          policy: chooses actions and tells the Q-values.
          exploration: how much it explores from which weights on.
          n_step: agent steps in a return.
          gamma: discount per agent step.
          clip_rewards: clip each reward to [-1, 1] before summing.
          life_loss_reward: added, before clipping, to the reward that is learned from where a life
            was lost; returns are reported without it.
          segment_transitions: transitions per segment.
          frames_per_block: see common.compression.
          first_priority: |TD error| of finished rows; None where replay is uniform.
          actor: index of this actor in the run.
          incarnation: how many times it was started before.
        """
        spec = environments.spec.observation
        self._environments = environments
        self._policy = policy
        self._exploration = exploration
        self._clip_rewards = clip_rewards
        self._life_loss_reward = life_loss_reward
        self._accumulators = [
            NStepAccumulator(n_step=n_step, gamma=gamma) for _ in range(environments.num_envs)
        ]
        self._writers = [
            SegmentWriter(
                spec=spec,
                n_step=n_step,
                segment_transitions=segment_transitions,
                frames_per_block=frames_per_block,
                first_priority=first_priority,
            )
            for _ in range(environments.num_envs)
        ]
        self._stack = spec.stack
        self._name = (actor, incarnation)
        self._sequence = 0
        self._version: tuple[int, int] | None = None
        self._timesteps = environments.reset()
        self._depths = [0] * environments.num_envs
        self._returns = np.zeros(environments.num_envs)
        self._lengths = np.zeros(environments.num_envs, np.int64)
        self._episodes: list[EpisodeRecord] = []
        self._timer = PhaseTimer()

    @property
    def epsilon(self) -> float:
        """Mean exploration rate that the environments act with."""
        return float(self._policy.epsilons.mean())

    def take(self, weights: Weights) -> None:
        """Act by these weights from now on, and explore as the run's agent steps say."""
        self._policy.load(weights.buffer)
        self._policy.set_epsilons(self._exploration.epsilons(weights.agent_steps))
        self._version = (weights.version.incarnation, weights.version.learner_step)

    def collect(self, num_steps: int) -> list[Segment]:
        """Take `num_steps` steps in every environment and return the segments that filled up.

        Raises:
          RuntimeError: no weights were ever taken, so the network would act at random.
          EnvironmentFailed: an environment raised, or answered what it may not. No transition holds
            it, and the loop cannot go on: whoever runs it starts the actor anew, counted and
            reported, where to skip the transition would hide a broken environment.
        """
        if self._version is None:
            raise RuntimeError("Expect `take` before `collect`: an actor needs weights first")
        return [segment for _ in range(num_steps) for segment in self._step(self._version)]

    def drain_episodes(self) -> tuple[EpisodeRecord, ...]:
        """Return the games that ended since the last call."""
        episodes, self._episodes = tuple(self._episodes), []
        return episodes

    def waiting(self) -> AbstractContextManager[None]:
        """Book the time inside the `with` block as waiting: for replay, or for its turn."""
        return self._timer.phase("wait")

    def pushing(self) -> AbstractContextManager[None]:
        """Book the time inside the `with` block as pushing: sealing segments and sending them."""
        return self._timer.phase("push")

    def drain_phases(self) -> PhaseSeconds:
        """Return the wall time by phase since the last call."""
        return self._timer.drain()

    def _step(self, version: tuple[int, int]) -> list[Segment]:
        with self._timer.phase("inference"):
            actions, q = self._policy.act(self._timesteps.observation)
        with self._timer.phase("accumulate"):
            full = self._observe(actions, q, version)
        with self._timer.phase("pack"):
            segments = [writer.cut(self._next_name()) for writer in full]
        with self._timer.phase("environment"):
            self._timesteps = self._environments.step(actions)
        return segments

    def _observe(
        self, actions: NDArray[np.int64], q: NDArray[np.float32], version: tuple[int, int]
    ) -> list[SegmentWriter]:
        """Book the timestep reached last; its Q-values came with the choice of the next action."""
        observation, reward, terminated, truncated, first, game_over, life_lost = self._timesteps
        learned = reward + np.float32(self._life_loss_reward) * life_lost
        if self._clip_rewards:
            learned = np.clip(learned, -1.0, 1.0)
        self._count_games(reward, first, game_over)
        rows = zip(
            self._accumulators,
            self._writers,
            learned.tolist(),
            terminated.tolist(),
            truncated.tolist(),
            first.tolist(),
            game_over.tolist(),
            actions.tolist(),
            strict=True,
        )
        full = []
        for e, (accumulator, writer, r, term, trunc, begins, ends, action) in enumerate(rows):
            frame = writer.append(observation[e, -1])
            depth = self._depths[e] = 1 if begins else min(self._depths[e] + 1, self._stack)
            for row in accumulator.observe(
                Moment(frame, depth, q[e]),
                r,
                terminated=term,
                truncated=trunc,
                first=begins,
                game_over=ends,
            ):
                writer.add(row)
            accumulator.act(action, version)
            if writer.full:
                full.append(writer)
        return full

    def _count_games(
        self, reward: NDArray[Any], first: NDArray[Any], game_over: NDArray[Any]
    ) -> None:
        self._returns += reward
        self._lengths += ~first
        for e in np.flatnonzero(game_over):
            self._episodes.append(
                EpisodeRecord(
                    episode_return=float(self._returns[e]),
                    agent_steps=int(self._lengths[e]),
                    epsilon=float(self._policy.epsilons[e]),
                    ladder_position=self._exploration.ladder_positions[int(e)],
                )
            )
            self._returns[e] = 0.0
            self._lengths[e] = 0

    def _next_name(self) -> SegmentName:
        self._sequence += 1
        return SegmentName(*self._name, self._sequence - 1)
