"""Curves of runs that crash, end and go on: no gap, no overlap, in each of TensorBoard's readers."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from disks import SmallDisk, files_no_longer_than
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator,
)

from common.tensorboard import EventWriter, event_files, read_scalars

Curve = list[tuple[int, float]]


def of_troop(folder: Path) -> dict[str, Curve]:
    return {
        tag: list(zip(map(int, series.frames), series.values.tolist(), strict=True))
        for tag, series in read_scalars(folder).items()
    }


def of_slow_reader(folder: Path) -> dict[str, Curve]:
    """Return what TensorBoard shows with `--load_fast=false`."""
    accumulator = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.tensor_proto.float_val[0]) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
        if accumulator.Tensors(tag)
    }


def of_fast_reader(folder: Path) -> dict[str, Curve]:
    """Return what TensorBoard shows by default, where its server for this is installed."""
    pytest.importorskip("tensorboard_data_server")
    from tensorboard import context
    from tensorboard.data.server_ingester import (
        SubprocessServerDataIngester,
        get_server_binary,
    )

    ingester = SubprocessServerDataIngester(
        server_binary=get_server_binary(),
        logdir=str(folder),
        reload_interval=3_600,
        channel_creds_type=_local_credentials(),
    )
    ingester.start()  # returns once everything is read
    try:
        found = ingester.data_provider.read_scalars(
            context.RequestContext(), experiment_id="", plugin_name="scalars", downsample=10_000
        )
        (run,) = found.values()
        return {tag: [(datum.step, datum.value) for datum in row] for tag, row in run.items()}
    finally:
        ingester._process.kill() if hasattr(ingester, "_process") else None


def _local_credentials() -> object:
    from tensorboard.data.grpc_provider import ChannelCredsType

    return ChannelCredsType.LOCAL
