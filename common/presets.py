"""Named configurations, each with its source."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from common.config import (
    ActorConfig,
    AgentConfig,
    Config,
    EnvConfig,
    EvaluatorConfig,
    LearnerConfig,
    ReplayConfig,
)


class Preset(NamedTuple):
    """A configuration and where it comes from.

    Fields:
      config: the configuration.
      source: what it reproduces, for `launch.py presets`.
    """

    config: Config
    source: str


# What the seeds have in common, the systems that Troop grew from: one actor with one environment
# and one update per agent step, so that samples per insert is the batch size. None is double,
# dueling, prioritised or n-step.
_SEED_PONG = Config(
    preset="seed-pong",
    total_frames=4 * 2_000_000,
    stop_at_return=18.0,
    stop_at_return_of="train",
    env=EnvConfig(id="PongNoFrameskip-v4"),
    agent=AgentConfig(dueling=False, double=False, n_step=1),
    actor=ActorConfig(
        count=1,
        envs=1,
        epsilon_schedule="exponential",
        epsilon_start=1.0,
        epsilon_end=0.05,
        epsilon_decay_agent_steps=30_000.0,
        segment_transitions=20,
        weights_poll_agent_steps=20,
    ),
    replay=ReplayConfig(
        capacity=100_000, min_size=10_000, priority_exponent=0.0, samples_per_insert=32.0
    ),
    learner=LearnerConfig(
        batch_size=32,
        learning_rate=2e-4,
        rmsprop_decay=0.95,
        rmsprop_centered=False,
        optimizer_epsilon=1e-3,
        max_grad_norm=None,
        max_grad_value=1.0,
        target_period_learner_steps=1_000,
        publish_period_learner_steps=1,
    ),
    evaluator=EvaluatorConfig(every_minutes=10.0, episodes=3),
)
_SEED_CARTPOLE = Config(
    preset="seed-cartpole",
    total_frames=200 * 200,
    total_episodes=200,
    env=EnvConfig(id="CartPole-v1", clip_rewards=False, max_game_frames=200),
    agent=replace(_SEED_PONG.agent, network="mlp", hidden=(256, 256), gamma=0.95),
    actor=replace(
        _SEED_PONG.actor,
        epsilon_start=0.95,
        epsilon_end=0.01,
        epsilon_decay_agent_steps=500.0,
        segment_transitions=1,
    ),
    replay=ReplayConfig(
        capacity=100_000, min_size=64, priority_exponent=0.0, samples_per_insert=64.0
    ),
    learner=LearnerConfig(
        batch_size=64,
        optimizer="adam",
        learning_rate=1e-4,
        optimizer_epsilon=1e-8,
        loss="mse",
        max_grad_norm=None,
        max_grad_value=0.5,  # the source clamps at 1 what it has from (td error)^2, ours is half
        target_period_episodes=4,
        publish_period_learner_steps=1,
        compile="off",
        threads=1,  # a network this small only waits for a second thread
    ),
    # 20 greedy games after training, and none before.
    evaluator=EvaluatorConfig(every_minutes=60.0, episodes=20, epsilon=0.0),
)

PRESETS: dict[str, Preset] = {
    "apex": Preset(
        Config(),
        "Ape-X DQN (Horgan et al. 2018, arXiv:1803.00933): double, dueling, prioritised, 3-step; "
        "for a GPU and many cores. Samples per insert are held at 8, since few actors feed it.",
    ),
    "pong-fast": Preset(
        Config(
            preset="pong-fast",
            total_frames=7_500_000,
            agent=AgentConfig(network="nips_cnn", dueling=False, double=False),
            actor=ActorConfig(count=2, envs=8, weights_poll_agent_steps=200),
            replay=ReplayConfig(capacity=200_000, min_size=10_000, samples_per_insert=4.0),
            learner=LearnerConfig(
                batch_size=64,
                optimizer="adam",
                learning_rate=2.5e-4,
                optimizer_epsilon=1e-5,
                max_grad_norm=10.0,
                target_period_learner_steps=500,
            ),
            evaluator=EvaluatorConfig(every_minutes=5.0, episodes=3),
        ),
        "Pong on two cores without a GPU, in about an hour (docs/experiments/pong.md): the network "
        "of Mnih et al. 2013, 3-step, prioritised, Adam 2.5e-4, 4 samples per insert.",
    ),
    "nature": Preset(
        Config(
            preset="nature",
            total_frames=200_000_000,
            agent=AgentConfig(dueling=False, double=False, n_step=1),
            actor=ActorConfig(
                count=1,
                envs=4,
                epsilon_schedule="exponential",
                epsilon_start=1.0,
                epsilon_end=0.1,
                epsilon_decay_agent_steps=400_000.0,
                segment_transitions=25,
            ),
            replay=ReplayConfig(
                capacity=1_000_000,
                min_size=50_000,
                priority_exponent=0.0,
                samples_per_insert=8.0,
            ),
            learner=LearnerConfig(
                batch_size=32,
                learning_rate=0.00025,
                rmsprop_decay=0.95,
                # The paper's 0.01 is for a sum over 32 rows, ours is a mean.
                optimizer_epsilon=0.01 / 32**2,
                max_grad_norm=None,
                target_period_learner_steps=10_000,
            ),
            evaluator=EvaluatorConfig(epsilon=0.05),
        ),
        "Nature DQN (Mnih et al. 2015): uniform replay of 1M, batch 32 every 4 agent steps, "
        "centred RMSProp, life loss ends the value; its linear epsilon is here the exponential of "
        "the same reach.",
    ),
    "machado": Preset(
        Config(
            preset="machado",
            total_frames=200_000_000,
            env=EnvConfig(sticky_actions=0.25, full_action_space=True, life_loss_terminates=False),
        ),
        "The protocol of Machado et al. 2018 (arXiv:1709.06009): sticky actions 0.25, the full set "
        "of actions, no life signal; learning as in apex.",
    ),
    "cartpole": Preset(
        Config(
            preset="cartpole",
            total_frames=60_000,
            env=EnvConfig(id="CartPole-v1", clip_rewards=False),
            agent=AgentConfig(network="mlp", hidden=(128, 128), dueling=False, n_step=3),
            actor=ActorConfig(count=1, envs=4, segment_transitions=10, weights_poll_agent_steps=40),
            replay=ReplayConfig(
                capacity=50_000, min_size=1_000, samples_per_insert=16.0, priority_exponent=0.0
            ),
            learner=LearnerConfig(
                batch_size=64,
                optimizer="adam",
                learning_rate=5e-4,
                optimizer_epsilon=1e-8,
                max_grad_norm=10.0,
                target_period_learner_steps=200,
                publish_period_learner_steps=10,
                compile="off",
                threads=1,  # a network this small only waits for a second thread
            ),
            evaluator=EvaluatorConfig(every_minutes=0.5, episodes=10, epsilon=0.0),
        ),
        "CartPole-v1 in a minute or two: to see the whole line work, and for tests.",
    ),
    "seed-pong": Preset(
        _SEED_PONG,
        "Seed: the Pong DQN that two tutorials share. One actor, one update of 32 per agent step, "
        "uniform replay of 100,000, RMSprop 2e-4, target every 1,000 steps.",
    ),
    "seed-pong-wrappers": Preset(
        replace(
            _SEED_PONG,
            preset="seed-pong-wrappers",
            total_frames=4 * 1_000_000,
            stop_at_return=None,
            stop_at_return_of="either",
            env=replace(_SEED_PONG.env, fire_reset=True, life_loss_reward=-1.0),
            actor=replace(_SEED_PONG.actor, epsilon_end=0.01, epsilon_decay_agent_steps=50_000.0),
            replay=replace(_SEED_PONG.replay, capacity=10_000),
        ),
        "Seed: Pong DQN over the classic wrappers. FIRE at the start, a lost life costs 1, replay "
        "of 10,000, epsilon to 0.01; what its source leaves open is as in seed-pong.",
    ),
    "seed-cartpole": Preset(
        _SEED_CARTPOLE,
        "Seed: CartPole DQN on four numbers. 200 games of at most 200 steps, Adam 1e-4, gamma "
        "0.95, target every 4 games; then 20 greedy test games.",
    ),
    "seed-cartpole-pixels": Preset(
        replace(
            _SEED_CARTPOLE,
            preset="seed-cartpole-pixels",
            total_frames=300 * 500,
            total_episodes=300,
            env=EnvConfig(id="CartPole-v1-pixels", clip_rewards=False),
            agent=replace(_SEED_CARTPOLE.agent, network="pixel_cnn", gamma=0.999),
            actor=replace(
                _SEED_CARTPOLE.actor,
                epsilon_start=0.9,
                epsilon_end=0.05,
                epsilon_decay_agent_steps=200.0,
            ),
            replay=replace(
                _SEED_CARTPOLE.replay, capacity=10_000, min_size=128, samples_per_insert=128.0
            ),
            learner=replace(
                _SEED_CARTPOLE.learner,
                batch_size=128,
                optimizer="rmsprop",
                learning_rate=1e-2,  # torch's default: the source names none
                rmsprop_decay=0.99,
                rmsprop_centered=False,
                loss="huber",
                max_grad_value=1.0,
                target_period_episodes=10,
                threads=0,
            ),
        ),
        "Seed: CartPole DQN from pixels. The crop around the cart less the one before, three "
        "convolutions with batch normalisation, RMSprop, target every 10 games.",
    ),
}
