"""Real transitions to measure replay with, kept between runs.

The ordinary actor loop plays them at epsilon 0.1.

python -m benchmarks.recording pong 200000
"""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from actors.assembly import make_actor_loop
from actors.environments import resolve
from common.config import ActorConfig, Config, EnvConfig
from common.networks import build_network, flatten_state
from common.packing import pack_segment
from common.types import EnvironmentSpec, Weights, WeightsVersion

TRANSITIONS = 200_000
_FOLDER = Path(__file__).parent / ".recordings"
_LENGTH = struct.Struct("<I")


def recording_config(game: str) -> Config:
    """Return the settings a recording is made with: n = 3, stack 4, epsilon 0.1 everywhere."""
    return Config(
        env=EnvConfig(id=game),
        actor=ActorConfig(count=1, envs=32, epsilon=0.1, epsilon_alpha=0.0),
    )


def recording(games: Sequence[str]) -> dict[str, list[bytes]]:
    """Return >= TRANSITIONS packed transitions of each game.

    Games that are not kept yet are played first, side by side.
    """
    paths = {game: _FOLDER / f"{game}_{TRANSITIONS}.segments" for game in games}
    missing = [game for game, path in paths.items() if not path.exists()]
    if missing:
        print(f"recording {TRANSITIONS:,} transitions of {', '.join(missing)} (once, some minutes)")
    players = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.recording", game, str(TRANSITIONS)])
        for game in missing
    ]
    for player in players:
        if player.wait():
            raise RuntimeError(f"recording ended with {player.returncode}")
    return {game: _read(path) for game, path in paths.items()}


def spec_of(game: str) -> EnvironmentSpec:
    """Return the environment a recording was made in."""
    return resolve(recording_config(game).env)


def record(game: str, transitions: int) -> None:
    """Play and keep `transitions` transitions."""
    torch.set_num_threads(1)
    config = recording_config(game)
    spec = spec_of(game)
    loop = make_actor_loop(config, spec, actor=0, incarnation=0)
    loop.take(Weights(WeightsVersion(0, 0), flatten_state(build_network(config.agent, spec)), 0))
    _FOLDER.mkdir(exist_ok=True)
    path = _FOLDER / f"{game}_{transitions}.segments"
    started_s, count = time.monotonic(), 0
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        while count < transitions:
            for segment in loop.collect(10):
                packed = pack_segment(segment)
                file.write(_LENGTH.pack(len(packed)) + packed)
                count += segment.num_transitions
    temporary.rename(path)
    print(f"{game}: {count:,} transitions in {time.monotonic() - started_s:.0f} s", flush=True)


def _read(path: Path) -> list[bytes]:
    content = path.read_bytes()
    segments, offset = [], 0
    while offset < len(content):
        (length,) = _LENGTH.unpack_from(content, offset)
        offset += _LENGTH.size
        segments.append(content[offset : offset + length])
        offset += length
    return segments


def decode_naively(
    packed: bytes, stack: int, frame_shape: tuple[int, ...]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (s_tm1, s_t) of each transition by decompressing the whole segment.

    The oracle that a sampled batch is checked against.
    """
    import lz4.block

    from common.packing import unpack_segment

    segment = unpack_segment(packed)
    frame_bytes = int(np.prod(frame_shape))
    raw, start = b"", 0
    for index, end in enumerate(segment.block_ends.tolist()):
        left = segment.num_frames - index * segment.frames_per_block
        size = min(segment.frames_per_block, left) * frame_bytes
        raw += lz4.block.decompress(segment.blocks[start:end].tobytes(), uncompressed_size=size)
        start = end
    frames = np.frombuffer(raw, np.uint8).reshape(-1, *frame_shape)

    def stacked(newest: int, depth: int) -> np.ndarray:
        padding = np.zeros((stack - depth, *frame_shape), np.uint8)
        return np.concatenate([padding, frames[newest - depth + 1 : newest + 1]])

    return [
        (stacked(a, b), stacked(c, d))
        for a, b, c, d in zip(
            segment.newest_tm1.tolist(),
            segment.depth_tm1.tolist(),
            segment.newest_t.tolist(),
            segment.depth_t.tolist(),
            strict=True,
        )
    ]


if __name__ == "__main__":
    record(sys.argv[1], int(sys.argv[2]))
