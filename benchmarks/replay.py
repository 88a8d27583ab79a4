"""Replay through Ray: inserts, prioritised samples up to decoded frames, memory; and snapshots."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.recording import decode_naively, recording, recording_config, spec_of
from benchmarks.rows import Row, alternate, row
from common.config import Config, LearnerConfig, ReplayConfig
from common.packing import unpack_segment
from common.source import own_source
from common.types import EnvironmentSpec, LearnerCounts, PhaseSeconds, Push
from driver import ray_session
from learner.learner import tune_allocator
from replay.assembly import make_sampler, make_shard
from replay.client import RayHandle
from replay.handles import ROWS_PER_CALL, LocalHandle, Pending, ShardHandle
from replay.sampler import ReplaySampler
from replay.server import ReplayServer
from replay.shard import ReplayShard
from replay.snapshot import SnapshotFolder

_BATCH = 512
_SEGMENTS_PER_PUSH = 8
_WINDOW = 4
_MAX_BYTES = 8 << 30
_LEAST = {"insert": 15_000, "sample": 25_000, "pong": 700, "ms_pacman": 2_500}


def run(seconds: float) -> list[Row]:
    """Return the rows of both games."""
    tune_allocator()
    ray_session.start_local()
    rows = []
    for game, segments in recording(["pong", "ms_pacman"]).items():
        rows += _one_game(game, segments, seconds)
    ray_session.shut_down()
    return rows


def _one_game(game: str, segments: list[bytes], seconds: float) -> list[Row]:
    spec = spec_of(game)
    transitions = total_transitions(segments)
    config = dataclasses.replace(
        recording_config(game),
        replay=ReplayConfig(
            capacity=transitions, min_size=_BATCH, samples_per_insert="off", max_bytes=_MAX_BYTES
        ),
        learner=LearnerConfig(batch_size=_BATCH),
    )
    server = ReplayServer.options(num_cpus=0).remote(
        config, spec, 0, 0, _MAX_BYTES, None, (0, 0), own_source()
    )
    shard = RayHandle(server, 0)
    ray.get(server.counts.remote(LearnerCounts(0, 0, None)))
    process_id = ray.get(server.__ray_call__.remote(lambda _: os.getpid()))
    empty_bytes = _own_bytes(process_id)
    inserted_per_s = insert(shard, segments)
    full_bytes = _own_bytes(process_id)
    local = make_shard(
        config,
        spec,
        shard=0,
        incarnation=0,
        max_bytes=_MAX_BYTES,
        accepted_before=0,
        episodes_before=0,
    )
    for push in _pushes(segments):
        local.add(push)
    ours = _sampler(config, spec, shard)
    floor = _sampler(config, spec, LocalHandle(local))
    _check(ours, segments, spec)
    medians, _ = alternate(
        5,
        ours=lambda: _sample_rate(ours, seconds / 5),
        floor=lambda: _sample_rate(floor, seconds / 5),
    )
    ray.kill(server)
    settings = {"game": game, "batch": _BATCH, "n_step": 3, "stack": 4, "transitions": transitions}
    per_transition = (full_bytes - empty_bytes) / transitions
    return [
        row(
            "replay_sample",
            medians["ours"],
            "transitions/s",
            medians["floor"],
            "the same replay and decoder in one process, without Ray",
            settings | {"decode_threads": 1, "least": _LEAST["sample"]},
        ),
        row(
            "replay_insert",
            inserted_per_s,
            "transitions/s",
            _LEAST["insert"],
            "least asked for; Reverb measured on a like machine: 5,600",
            settings | {"segments_per_push": _SEGMENTS_PER_PUSH, "window": _WINDOW},
        ),
        row(
            f"replay_memory_{game}",
            per_transition,
            "bytes/transition",
            _LEAST[game],
            "most allowed; two naive stacks would take 56,448",
            settings | {"what": "growth of the process's own memory (USS) from empty to full"},
        ),
        _snapshot_row(local, settings),
    ]


def _snapshot_row(shard: ReplayShard, settings: dict[str, Any]) -> Row:
    state = shard.capture()
    transitions = len(state.masses)

    def save(folder: Path) -> float:
        started_s = time.perf_counter()
        SnapshotFolder(folder, keep=1).write(state)
        return transitions / (time.perf_counter() - started_s)

    def write_raw(folder: Path) -> float:
        started_s = time.perf_counter()
        with (folder / "raw").open("wb") as file:
            file.writelines(state.segments)
            file.flush()
            os.fsync(file.fileno())
        return transitions / (time.perf_counter() - started_s)

    def in_new_folder(measure: Callable[[Path], float]) -> float:
        # Beside the recordings: /tmp may lie in memory.
        with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
            return measure(Path(folder))

    medians, _ = alternate(
        3, ours=lambda: in_new_folder(save), floor=lambda: in_new_folder(write_raw)
    )
    return row(
        "replay_snapshot",
        medians["ours"],
        "transitions/s",
        medians["floor"],
        "the segments' bytes in one file, with one fsync and no checksum",
        settings | {"segment_bytes": sum(len(packed) for packed in state.segments)},
    )


def _own_bytes(process_id: int) -> int:
    """Return a process's own memory (USS), from Linux's books."""
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def total_transitions(segments: list[bytes]) -> int:
    """Return how many transitions the packed segments hold."""
    return sum(unpack_segment(segment).num_transitions for segment in segments)


def insert(shard: RayHandle, segments: list[bytes]) -> float:
    """Push everything with a bounded window, as an actor does; return transitions per second."""
    pushes = _pushes(segments)
    started_s = time.perf_counter()
    window: deque[Pending[bool]] = deque()
    for push in pushes:
        if len(window) == _WINDOW:
            assert window.popleft().result()
        window.append(shard.add(shard.prepare(push)))
    while window:
        assert window.popleft().result()
    return sum(push.transitions for push in pushes) / (time.perf_counter() - started_s)


def _pushes(segments: list[bytes]) -> list[Push]:
    groups = [
        segments[i : i + _SEGMENTS_PER_PUSH] for i in range(0, len(segments), _SEGMENTS_PER_PUSH)
    ]
    return [
        Push(
            segments=tuple(group),
            transitions=total_transitions(group),
            episodes=(),
            phases=PhaseSeconds(()),
            epsilon=0.0,
        )
        for group in groups
    ]


def _sampler(config: Config, spec: EnvironmentSpec, shard: ShardHandle) -> ReplaySampler:
    sampler = make_sampler(
        config, spec, shards=[shard], in_flight=2, rows_per_request=ROWS_PER_CALL
    )
    while sampler.fetch() is None:
        pass
    return sampler


def _sample_rate(sampler: ReplaySampler, seconds: float) -> float:
    started_s = time.perf_counter()
    samples = 0
    while time.perf_counter() - started_s < seconds:
        batch = sampler.fetch()
        assert batch is not None
        samples += len(batch.ids)
    return samples / (time.perf_counter() - started_s)


def _check(sampler: ReplaySampler, segments: list[bytes], spec: EnvironmentSpec) -> None:
    """Hold every row of one batch against what was pushed."""
    batch = sampler.fetch()
    assert batch is not None
    ends = np.cumsum([unpack_segment(segment).num_transitions for segment in segments])
    for i, position in enumerate((batch.ids & ((1 << 40) - 1)).tolist()):
        index = int(np.searchsorted(ends, position, side="right"))
        row_in_segment = position - (int(ends[index - 1]) if index else 0)
        pushed = unpack_segment(segments[index])
        stacks = decode_naively(segments[index], 4, spec.observation.frame_shape)
        s_tm1, s_t = stacks[row_in_segment]
        assert np.array_equal(batch.s_tm1[i], s_tm1), f"row {i}: s_tm1 differs from what was pushed"
        assert np.array_equal(batch.s_t[i], s_t), f"row {i}: s_t differs from what was pushed"
        assert batch.a_tm1[i] == pushed.a_tm1[row_in_segment]
        assert batch.r_t[i] == pushed.r_t[row_in_segment]
        assert batch.discount_t[i] == pushed.discount_t[row_in_segment]
