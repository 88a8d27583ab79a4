"""Presets: sound, told apart, and the default one pinned to its paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from actors.environments import clips_rewards
from common.config import Config
from common.config_file import override, to_dict
from common.presets import PRESETS, Preset


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_sound_and_carries_its_own_name(name: str) -> None:
    preset = PRESETS[name]
    assert preset.config.problems() == []
    assert preset.config.preset == name


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_preset_names_its_source(preset: Preset) -> None:
    assert len(preset.source) > 40
    assert "\n" not in preset.source


def test_presets_differ_in_more_than_their_name() -> None:
    nameless = [dataclasses.replace(p.config, preset="") for p in PRESETS.values()]
    assert len({repr(config) for config in nameless}) == len(PRESETS)


def test_apex_is_the_default_and_what_the_design_says() -> None:
    config = PRESETS["apex"].config
    assert config == Config()
    assert (config.env.id, config.env.sticky_actions) == ("pong", None)
    agent, actor, replay, learner = config.agent, config.actor, config.replay, config.learner
    assert (agent.double, agent.dueling, agent.n_step, agent.gamma) == (True, True, 3, 0.99)
    assert agent.network == "nature_cnn"
    assert (actor.epsilon_schedule, actor.epsilon, actor.epsilon_alpha) == ("ladder", 0.4, 7.0)
    assert actor.weights_poll_agent_steps == 400
    assert (replay.capacity, replay.min_size) == (2_000_000, 50_000)
    assert (replay.priority_exponent, replay.importance_exponent) == (0.6, 0.4)
    assert replay.samples_per_insert == 8
    assert learner.batch_size == 512
    assert (learner.optimizer, learner.rmsprop_centered) == ("rmsprop", True)
    assert (learner.learning_rate, learner.optimizer_epsilon) == (6.25e-5, 1.5e-7)
    assert (learner.max_grad_norm, learner.max_grad_value) == (40.0, None)
    assert learner.target_period_learner_steps == 2_500


def test_nature_is_what_its_paper_says() -> None:
    config = PRESETS["nature"].config
    assert (config.agent.double, config.agent.dueling, config.agent.n_step) == (False, False, 1)
    assert config.replay.priority_exponent == 0  # uniform
    assert (config.replay.capacity, config.replay.min_size) == (1_000_000, 50_000)
    assert config.learner.batch_size == 32
    # One batch of 32 every 4 agent steps.
    assert config.replay.samples_per_insert == 32 / 4
    assert (config.learner.optimizer, config.learner.learning_rate) == ("rmsprop", 0.00025)
    # The paper's 0.01 is for gradients summed over the batch, ours are means.
    assert config.learner.optimizer_epsilon == 0.01 / 32**2
    assert config.learner.rmsprop_centered
    assert config.learner.target_period_learner_steps == 10_000
    assert (config.actor.epsilon_start, config.actor.epsilon_end) == (1.0, 0.1)
    assert config.env.life_loss_terminates
    assert config.total_frames == 200_000_000


def test_machado_is_apex_under_the_protocol_of_its_paper() -> None:
    config = PRESETS["machado"].config
    env = config.env
    assert (env.sticky_actions, env.full_action_space, env.life_loss_terminates) == (
        0.25,
        True,
        False,
    )
    apex = PRESETS["apex"].config
    assert (config.agent, config.learner, config.replay) == (
        apex.agent,
        apex.learner,
        apex.replay,
    )


PINNED = yaml.safe_load((Path(__file__).parent / "presets.yaml").read_text())


def test_every_preset_is_pinned() -> None:
    assert set(PINNED) == set(PRESETS)
    leaves = [name for part in PINNED["apex"].values() if isinstance(part, dict) for name in part]
    assert len(leaves) > 60


@pytest.mark.parametrize("name", PRESETS)
def test_no_setting_of_a_preset_changes_unnoticed(name: str) -> None:
    """What was searched, run and recorded under docs/experiments holds for these values."""
    pinned = override(Config(), PINNED["apex"], "apex")
    assert to_dict(override(pinned, PINNED[name], name)) == to_dict(PRESETS[name].config)
    assert to_dict(pinned) == PINNED["apex"]  # nothing is left to the defaults


SEEDS = ("seed-pong", "seed-pong-wrappers", "seed-cartpole", "seed-cartpole-pixels")


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_plain_dqn_with_one_update_per_agent_step(name: str) -> None:
    config = PRESETS[name].config
    agent, actor, replay, learner = config.agent, config.actor, config.replay, config.learner
    assert (agent.dueling, agent.double, agent.n_step) == (False, False, 1)
    assert config.num_environments == 1
    assert actor.epsilon_schedule == "exponential"
    assert (replay.priority_exponent, replay.order) == (0.0, "random")
    assert config.samples_per_insert == learner.batch_size
    # The sources clamp at 1; ours is half of the squared error that seed-cartpole's clamps.
    assert learner.max_grad_norm is None
    assert learner.max_grad_value == (0.5 if name == "seed-cartpole" else 1.0)


def epsilon_of(config: Config) -> tuple[float, float, float]:
    actor = config.actor
    return actor.epsilon_start, actor.epsilon_end, actor.epsilon_decay_agent_steps


def test_pong_seeds_are_what_their_sources_say() -> None:
    pong, wrappers = (PRESETS[name].config for name in SEEDS[:2])
    assert (pong.env.id, pong.env.noop_max, pong.env.stack) == ("PongNoFrameskip-v4", 30, 4)
    assert pong.env.life_loss_terminates and clips_rewards(pong.env)
    assert (pong.env.fire_reset, pong.env.life_loss_reward) == (False, 0.0)
    assert (pong.agent.network, pong.agent.gamma) == ("nature_cnn", 0.99)
    assert (pong.replay.capacity, pong.replay.min_size) == (100_000, 10_000)
    learner = pong.learner
    assert (learner.batch_size, learner.loss) == (32, "huber")
    assert (learner.optimizer, learner.rmsprop_centered) == ("rmsprop", False)
    rates = learner.learning_rate, learner.rmsprop_decay, learner.optimizer_epsilon
    assert rates == (2e-4, 0.95, 1e-3)
    assert learner.target_period_learner_steps == 1_000
    assert epsilon_of(pong) == (1.0, 0.05, 30_000)
    assert (pong.env.action_repeat_frames, pong.total_frames) == (4, 4 * 2_000_000)
    assert (pong.stop_at_return, pong.stop_at_return_of) == (18.0, "train")

    punished = dataclasses.replace(pong.env, fire_reset=True, life_loss_reward=-1.0)
    assert wrappers.env == punished
    assert wrappers.agent == pong.agent
    assert wrappers.stop_at_return is None
    assert wrappers.replay.capacity == 10_000
    assert epsilon_of(wrappers) == (1.0, 0.01, 50_000)
    assert wrappers.total_frames == 4 * 1_000_000
    assert wrappers.learner == pong.learner


def test_cartpole_seeds_are_what_their_sources_say() -> None:
    vector, pixels = (PRESETS[name].config for name in SEEDS[2:])
    assert (vector.env.id, vector.env.max_game_frames) == ("CartPole-v1", 200)
    assert (vector.agent.network, vector.agent.hidden) == ("mlp", (256, 256))
    assert vector.agent.gamma == 0.95
    assert (vector.learner.optimizer, vector.learner.learning_rate) == ("adam", 1e-4)
    assert (vector.learner.loss, vector.learner.batch_size) == ("mse", 64)
    assert vector.learner.target_period_episodes == 4
    assert vector.replay.capacity == 100_000
    assert epsilon_of(vector) == (0.95, 0.01, 500)
    assert vector.total_episodes == 200
    assert vector.total_frames >= 200 * 200  # so that the games end it
    assert (vector.evaluator.episodes, vector.evaluator.epsilon) == (20, 0.0)

    assert (pixels.env.id, pixels.agent.network) == ("CartPole-v1-pixels", "pixel_cnn")
    assert pixels.agent.gamma == 0.999
    assert (pixels.learner.optimizer, pixels.learner.rmsprop_centered) == ("rmsprop", False)
    assert (pixels.learner.loss, pixels.learner.batch_size) == ("huber", 128)
    assert pixels.learner.learning_rate == 1e-2
    assert pixels.learner.target_period_episodes == 10
    assert pixels.replay.capacity == 10_000
    assert epsilon_of(pixels) == (0.9, 0.05, 200)
    assert pixels.total_episodes is not None and pixels.total_episodes >= 300
    assert pixels.total_frames >= pixels.total_episodes * 500
