"""The learner's step with the pipeline feeding it, against the step on tensors already in place."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import ray
import torch

from benchmarks.floors.learner_step import make_step
from benchmarks.recording import recording, recording_config, spec_of
from benchmarks.replay import insert, total_transitions
from benchmarks.rows import Row, alternate, row
from common.config import LearnerConfig, ReplayConfig
from common.machine import available_cores
from common.source import own_source
from driver import ray_session
from learner.assembly import make_learner, resolve_device
from learner.learner import tune_allocator
from learner.learner_loop import LearnerLoop
from learner.prefetch import Prefetcher
from replay.assembly import make_sampler
from replay.client import RayHandle
from replay.handles import ROWS_PER_CALL
from replay.priority_updater import PriorityUpdater
from replay.server import ReplayServer

_ROUNDS = 5
_MAX_BYTES = 8 << 30


def run(seconds: float) -> list[Row]:
    """Return one row for each batch size, and one in bfloat16."""
    tune_allocator()
    torch.set_num_threads(available_cores())
    ray_session.start_local()
    segments = recording(["pong"])["pong"]
    rows = [_one(segments, batch, "float32", seconds) for batch in (32, 128, 512)]
    rows.append(_one(segments, 512, "bfloat16", seconds))
    ray_session.shut_down()
    return rows


def _one(
    segments: list[bytes],
    batch_size: int,
    precision: Literal["float32", "bfloat16"],
    seconds: float,
) -> Row:
    spec = spec_of("pong")
    transitions = total_transitions(segments)
    config = dataclasses.replace(
        recording_config("pong"),
        replay=ReplayConfig(capacity=transitions, min_size=batch_size, samples_per_insert="off"),
        learner=LearnerConfig(
            batch_size=batch_size,
            optimizer="adam",
            learning_rate=1e-4,
            optimizer_epsilon=1.5e-4,
            precision=precision,
        ),
    )
    server = ReplayServer.options(num_cpus=0).remote(
        config, spec, 0, 0, _MAX_BYTES, None, (0, 0), own_source()
    )
    shard = RayHandle(server, 0)
    insert(shard, segments)
    device = resolve_device("auto")
    learner = make_learner(config, spec, device=device, serial=False)
    learner.warm_up()
    sampler = make_sampler(
        config, spec, shards=[shard], in_flight=2, rows_per_request=ROWS_PER_CALL
    )
    prefetcher = Prefetcher(
        fetch=sampler.fetch, device=device, depth=config.learner.prefetch_batches
    )
    loop = LearnerLoop(
        learner=learner,
        fetcher=prefetcher,
        send_priorities=PriorityUpdater(
            shards=[shard], window=16, rows_per_call=ROWS_PER_CALL
        ).update,
        send_weights=lambda weights: None,
        agent_steps=lambda: 0,
        episodes=lambda: 0,
        incarnation=0,
        publish_period_learner_steps=10,
        samples=0,
        clock=time.monotonic,
    )
    fetched = None
    while fetched is None:
        fetched = prefetcher.get(1.0)
    _, in_place = fetched
    floor_step, floor_wait = make_step(batch_size, spec.num_actions, precision)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def fed() -> None:
        if not loop.run_step(10.0):
            raise RuntimeError("the pipeline gave no batch in 10 s")
        loop.publish_if_due()

    box = seconds / (3 * _ROUNDS)
    for step in (fed, floor_step):
        for _ in range(3):
            step()

    # The prefetch thread stands still, with its batches ready, while nobody takes from it.
    medians, figures = alternate(
        _ROUNDS,
        fed=lambda: batch_size * _steps_per_s(fed, wait, box),
        in_place=lambda: batch_size * _steps_per_s(lambda: learner.step(in_place), wait, box),
        floor=lambda: batch_size * _steps_per_s(floor_step, floor_wait, box),
    )
    prefetcher.close()
    ray.kill(server)
    best = max(medians["in_place"], medians["floor"])
    ratios = [
        fed / max(mine, floor)
        for fed, mine, floor in zip(
            figures["fed"], figures["in_place"], figures["floor"], strict=True
        )
    ]
    return row(
        "learner",
        medians["fed"],
        "samples/s",
        best,
        f"our step in place {medians['in_place']:,.0f}, compiled floor {medians['floor']:,.0f}",
        {
            "batch": batch_size,
            "precision": precision,
            "optimizer": "adam",
            "network": "dueling Nature CNN",
            "device": str(device),
            "torch_threads": torch.get_num_threads(),
            "compiled": learner.is_compiled,
            "least": 0.9,
        },
        ratio=float(np.median(ratios)),
    )


def _steps_per_s(step: Callable[[], object], wait: Callable[[], None], seconds: float) -> float:
    wait()
    started_s = time.perf_counter()
    steps = 0
    while time.perf_counter() - started_s < seconds:
        step()
        steps += 1
    wait()
    return steps / (time.perf_counter() - started_s)
