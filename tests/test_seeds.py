"""The systems that Troop grew from: each trains through the ordinary path and shows its result."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import make_push, make_segment, make_weights
from launching import launch as launch_process
from launching import result_of
from shard_contract import START

import launch
from actors.assembly import make_actor_loop
from actors.environments import resolve
from actors.policy import EpsilonGreedyPolicy
from actors.worker import ActorProcess
from common.networks import build_network, flatten_state
from common.presets import PRESETS
from common.source import own_source
from common.types import Weights, WeightsVersion
from driver.view.events import read_scalars
from learner.assembly import make_learner
from learner.device_batch import DeviceBatch
from replay.assembly import make_shard

# What makes each of them short.
SMALL_PONG = (
    *("--replay.min-size", "60", "--total-frames", "480", "--env.max-game-frames", "200"),
    *("--evaluator.episodes", "1"),
)
SHORT = {
    "seed-pong": SMALL_PONG,
    "seed-pong-wrappers": SMALL_PONG,
    "seed-cartpole": ("--total-episodes", "8"),
    "seed-cartpole-pixels": (
        *("--total-episodes", "8", "--evaluator.episodes", "2", "--learner.batch-size", "32"),
        *("--replay.min-size", "32", "--replay.samples-per-insert", "32"),
    ),
}


# Two threads that wait for each other on a busy core take a hundred times as long.
BESIDE_OTHERS = ("--learner.threads", "1", "--learner.compile", "off")


def flags(preset: str, run: Path, *more: str) -> list[str]:
    return ["--preset", preset, "--run-dir", str(run), *more]


def returns_of(run: Path) -> np.ndarray:
    """Return float[G], the raw return of every training game, in order."""
    return np.asarray(read_scalars(run)["train/episode_return"][1])


def run_serially(preset: str, run: Path, *more: str) -> dict:
    assert launch.main([*flags(preset, run, *more), "--serial"]) == 0
    result = result_of(run)
    assert result["end_reason"] == "done"
    return result


def check_short(preset: str, run: Path) -> None:
    result = result_of(run)
    assert result["end_reason"] == "done"
    assert result["learner_steps"] > 0
    assert math.isfinite(result["last_eval_score"])
    scalars = read_scalars(run)
    assert {
        *("learner/td_loss", "actors/epsilon", "eval/episode_return"),
        *("train/episode_return", "train/mean_episode_return"),
    } <= set(scalars)
    # All environments explore alike: there is no ladder to be split by.
    assert not [tag for tag in scalars if "quartile" in tag]
    log = (run / "log.txt").read_text()
    assert "settings:" in log
    assert f"preset {preset}" in log


@pytest.mark.parametrize("preset", SHORT)
@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_seed_trains_serially(preset: str, tmp_path: Path) -> None:
    run_serially(preset, tmp_path / "run", *SHORT[preset], *BESIDE_OTHERS)
    check_short(preset, tmp_path / "run")


@pytest.mark.ray
@pytest.mark.parametrize(
    "preset",
    [
        "seed-cartpole-pixels",
        *(pytest.param(name, marks=pytest.mark.slow) for name in SHORT if "pixels" not in name),
    ],
)
def test_seed_trains_through_ray(preset: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = launch_process(*flags(preset, run, *SHORT[preset], *BESIDE_OTHERS))
    assert done.returncode == 0, done.stdout + done.stderr
    check_short(preset, run)


# --- games as a limit -----------------------------------------------------------------------------


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_run_ends_with_its_last_game_and_a_resumed_one_counts_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    short = ("--evaluator.no-enabled", "--total-episodes")
    assert run_serially("seed-cartpole", run, *short, "5")["episodes"] == 5
    with pytest.raises(SystemExit) as refused:
        launch.main(["--resume", str(run), "--serial"])
    assert refused.value.code == 2
    assert "--total-episodes 5: must be > 5, played already" in capsys.readouterr().err
    first_s = result_of(run)["seconds"]
    assert launch.main(["--resume", str(run), "--serial", "--total-episodes", "8"]) == 0
    assert result_of(run)["episodes"] == 8
    assert result_of(run)["seconds"] > first_s  # of both, as everything in it


# --- the results ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_seed_cartpole_begins_to_balance(tmp_path: Path) -> None:
    """The floor of a short run; the whole one is slow. Seed 2 is early, see below."""
    run_serially("seed-cartpole", tmp_path / "run", "--seed", "2", "--total-episodes", "60")
    returns = returns_of(tmp_path / "run")
    assert len(returns) == 60
    assert returns[-10:].mean() > 3 * returns[:10].mean()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_seed_cartpole_reaches_200_by_about_game_100_and_tests_at_178_to_200(
    tmp_path: Path,
) -> None:
    """The first game of 200 came at 80 with seed 1 and at 61 with seed 2."""
    first = []
    for seed in (1, 2):
        run = tmp_path / f"run{seed}"
        result = run_serially("seed-cartpole", run, "--seed", str(seed))
        returns = returns_of(run)
        assert len(returns) == PRESETS["seed-cartpole"].config.total_episodes
        assert returns[-50:].mean() > 178
        tests = re.findall(r"over 20 games \(min (\d+), max (\d+)", (run / "log.txt").read_text())
        assert len(tests) == 1, "20 test games, after training"
        assert 178 <= int(tests[0][0]) <= result["last_eval_score"] <= int(tests[0][1]) <= 200
        assert (returns == 200).any()
        first.append(1 + int(np.argmax(returns == 200)))
    assert max(first) <= 100


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_seed_cartpole_pixels_learns_what_a_picture_is_worth() -> None:
    """The floor of what takes a quarter of an hour: rewards that two places of a picture decide."""
    config = PRESETS["seed-cartpole-pixels"].config
    spec = resolve(config.env)
    torch.set_num_threads(1)
    learner = make_learner(config, spec, device=torch.device("cpu"), serial=True)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(60):
        shape = (64, spec.observation.stack, *spec.observation.frame_shape)
        pictures = rng.integers(100, 156, shape).astype(spec.observation.dtype)
        action = rng.integers(2, size=64)
        place = rng.integers(2, size=64)
        pictures[place == 0, ..., :8] = 255
        pictures[place == 1, ..., -8:] = 255
        tensors = (
            *(np.ones(64, np.float32), pictures, action, (action == place).astype(np.float32)),
            *(np.zeros(64, np.float32), pictures),
        )
        batch = DeviceBatch(*map(torch.as_tensor, tensors))
        losses.append(float(learner.step(batch).metrics["td_loss"]))
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:3]), losses


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_seed_cartpole_pixels_balances_longer_with_training(tmp_path: Path) -> None:
    run_serially("seed-cartpole-pixels", tmp_path / "run")
    returns = returns_of(tmp_path / "run")
    assert len(returns) >= 300
    assert returns[-100:].mean() > 1.5 * returns[:50].mean()


# --- what they set that other presets leave alone -------------------------------------------------


def test_sequential_order_reaches_replay() -> None:
    config = PRESETS["seed-cartpole"].config
    config = replace(config, replay=replace(config.replay, order="sequential"))
    shard = make_shard(
        config,
        resolve(config.env),
        shard=0,
        incarnation=0,
        max_bytes=10**8,
        accepted_before=0,
        episodes_before=0,
    )
    shard.add(make_push(make_segment(transitions=9)))
    drawn = np.concatenate([shard.sample((4,), START).batches[0].ids for _ in range(2)])
    assert (np.diff(drawn) == 1).all()


def test_a_lost_life_reaches_what_is_learned() -> None:
    config = PRESETS["seed-pong-wrappers"].config
    config = replace(config, env=replace(config.env, id="BreakoutNoFrameskip-v4"))
    spec = resolve(config.env)
    loop = make_actor_loop(config, spec, actor=0, incarnation=0)
    loop.take(make_weights(0, network=build_network(config.agent, spec)))
    rewards = np.concatenate([segment.r_t for segment in loop.collect(300)])
    assert -1.0 in rewards


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_exploration_follows_agent_steps_while_replay_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted = []
    set_epsilons = EpsilonGreedyPolicy.set_epsilons

    def record(policy: EpsilonGreedyPolicy, rates: np.ndarray) -> None:
        acted.append(float(rates[0]))
        set_epsilons(policy, rates)

    monkeypatch.setattr(EpsilonGreedyPolicy, "set_epsilons", record)
    filling = ("--replay.min-size", "500", "--total-frames", "300", "--evaluator.no-enabled")
    assert run_serially("seed-cartpole", tmp_path / "run", *filling)["learner_steps"] == 0
    assert acted[0] == 0.95
    assert acted[-1] == pytest.approx(0.01 + 0.94 * math.exp(-300 / 500), abs=0.01)


def test_the_schedule_of_epsilon_reaches_an_actor_of_ray() -> None:
    config = PRESETS["seed-pong"].config
    spec, nobody = resolve(config.env), object()
    actor: Any = ActorProcess(config, spec, [nobody], nobody, 0, 0, own_source())
    actor.stop()
    actor.run()  # its environments are made as it begins
    buffer = flatten_state(build_network(config.agent, spec))
    actor._poller.poll = lambda: Weights(WeightsVersion(0, 1), buffer, agent_steps=30_000)
    assert actor._loop.epsilon == 1.0
    assert actor._take_weights()
    assert actor._loop.epsilon == pytest.approx(0.05 + 0.95 / math.e)
