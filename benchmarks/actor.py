"""One actor on one core, with n-step and packing, against bare environment and inference."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv

from actors.assembly import make_actor_loop
from actors.environments import resolve
from benchmarks.rows import Row, alternate, row
from common.config import ActorConfig, AgentConfig, Config
from common.networks import build_network, flatten_state
from common.packing import pack_segment
from common.types import Weights, WeightsVersion

_ROUNDS = 5


def run(seconds: float) -> list[Row]:
    """Return one row for each number of environments; everything is pinned to the same core."""
    cores = os.sched_getaffinity(0)
    threads = torch.get_num_threads()
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        return [_one(envs, seconds) for envs in (8, 64)]
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _one(envs: int, seconds: float) -> Row:
    config = Config(actor=ActorConfig(count=1, envs=envs))
    spec = resolve(config.env)
    loop = make_actor_loop(config, spec, actor=0, incarnation=0)
    loop.take(Weights(WeightsVersion(0, 0), flatten_state(build_network(config.agent, spec)), 0))
    bare_env = _bare_environment(envs)
    bare_inference = _bare_inference(config.agent, envs)

    def actor_step() -> None:
        for segment in loop.collect(1):
            pack_segment(segment)

    box = seconds / (3 * _ROUNDS)
    medians, figures = alternate(
        _ROUNDS,
        actor=lambda: envs * _calls_per_s(actor_step, box),
        env=lambda: envs * _calls_per_s(bare_env, box),
        inference=lambda: envs * _calls_per_s(bare_inference, box),
    )
    ratios = [
        a * (1 / e + 1 / i)
        for a, e, i in zip(figures["actor"], figures["env"], figures["inference"], strict=True)
    ]
    floor = 1 / (1 / medians["env"] + 1 / medians["inference"])
    return row(
        "actor",
        medians["actor"],
        "agent steps/s",
        floor,
        f"bare env {medians['env']:,.0f} and bare inference {medians['inference']:,.0f} in series",
        {"game": "pong", "envs": envs, "network": "dueling Nature CNN", "cores": 1, "least": 0.85},
        ratio=float(np.median(ratios)),
    )


def _calls_per_s(call: Callable[[], None], seconds: float) -> float:
    started_s = time.perf_counter()
    calls = 0
    while time.perf_counter() - started_s < seconds:
        call()
        calls += 1
    return calls / (time.perf_counter() - started_s)


def _bare_environment(envs: int) -> Callable[[], None]:
    environment = AtariVectorEnv(
        game="pong", num_envs=envs, num_threads=1, reward_clipping=False, life_loss_info=True
    )
    environment.reset(seed=1)
    rng = np.random.default_rng(1)
    actions = [rng.integers(0, 6, envs) for _ in range(64)]
    turn = 0

    def step() -> None:
        nonlocal turn
        environment.step(actions[turn % 64])
        turn += 1

    return step


def _bare_inference(agent: AgentConfig, envs: int) -> Callable[[], None]:
    network = build_network(dataclasses.replace(agent), resolve(Config().env)).eval()
    observation = torch.randint(0, 256, (envs, 4, 84, 84), dtype=torch.uint8)

    def infer() -> None:
        with torch.inference_mode():
            network(observation)

    return infer
