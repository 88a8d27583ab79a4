"""Builds an actor's cores from the configuration: the same objects for Ray and for `--serial`."""

from __future__ import annotations

import functools

import numpy as np

from actors.actor_loop import ActorLoop
from actors.environments import clips_rewards, make_run_environments
from actors.exploration import make_exploration
from actors.policy import EpsilonGreedyPolicy
from actors.priority import first_priority
from common.config import Config
from common.heartbeat import Heartbeat
from common.networks import build_network
from common.seeding import derive_environment_seed, derive_seed
from common.types import EnvironmentSpec


def make_actor_loop(
    config: Config,
    spec: EnvironmentSpec,
    *,
    actor: int,
    incarnation: int,
    heartbeat: Heartbeat | None = None,
) -> ActorLoop:
    """Return an actor's loop with fresh environments; its network waits for weights.

    Args:
      config: the run.
      spec: its environment.
      actor: index of the actor.
      incarnation: how many times it was started before; a restarted actor plays other games than
        the first did.
      heartbeat: is told in which call into an environment this thread is.

    Raises:
      EnvironmentFailed: an environment raised, or is not what the spec says; so does the loop.
    """
    # The first incarnations of all actors share one base; each later one has a base of its own.
    seed = config.seed if incarnation == 0 else derive_seed(config.seed, "restart", incarnation)
    environments = make_run_environments(
        config.env,
        spec,
        config.actor.envs,
        derive_environment_seed(seed, actor, config.actor.envs),
        training=True,
        heartbeat=heartbeat,
    )
    exploration = make_exploration(config.actor, actor)
    network = build_network(config.agent, spec)
    policy = EpsilonGreedyPolicy(
        network=network,
        epsilons=exploration.epsilons(0),
        rng=np.random.default_rng(derive_seed(seed, "policy", actor)),
    )
    return ActorLoop(
        environments=environments,
        policy=policy,
        exploration=exploration,
        n_step=config.agent.n_step,
        gamma=config.agent.gamma,
        clip_rewards=clips_rewards(config.env),
        life_loss_reward=config.env.life_loss_reward,
        segment_transitions=config.actor.segment_transitions,
        frames_per_block=config.replay.frames_per_block,
        first_priority=(
            functools.partial(first_priority, network.head.first_priority)
            if config.replay.priority_exponent > 0
            else None
        ),
        actor=actor,
        incarnation=incarnation,
    )
