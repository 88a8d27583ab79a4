"""Where a run goes on: its newest sound checkpoint, its counters, and what was changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from common.config import Config
from common.config_file import differences, load_file
from common.schema import one_line
from common.types import EnvironmentSpec
from driver.run_folder import RunFolder, RunFolderError
from learner.assembly import make_learner
from learner.checkpoint import CheckpointError, CheckpointFolder, SoundCheckpoint
from learner.payload import expect_resumable, spec_from_dict


class Start(NamedTuple):
    """Where a run sets in.

    Fields:
      checkpoint: path of the checkpoint to go on from, "" for a new run.
      counters: agent_steps, episodes, learner_step and samples so far.
      incarnations: of each process, by "role/index", the number that is next to give.
      notes: lines for the user.
      scale: what its network multiplies observations by; None for a new run.
    """

    checkpoint: str
    counters: Mapping[str, int]
    incarnations: Mapping[str, int]
    notes: list[str]
    scale: float | None


AT_THE_BEGINNING = Start(
    checkpoint="",
    counters={"agent_steps": 0, "episodes": 0, "learner_step": 0, "samples": 0},
    incarnations={},
    notes=[],
    scale=None,
)


def find_start(folder: RunFolder, config: Config, spec: EnvironmentSpec | None) -> Start:
    """Return where the run in `folder` goes on, with the settings `config`.

    Args:
      folder: of the run.
      config: its settings from now on.
      spec: its environment, None where that is not known.

    Raises:
      RunFolderError: it is in use, has no sound checkpoint, or replay's snapshots do not fit the
        settings.
      ConfigError: its configuration cannot be read.
      CheckpointError: it has checkpoints, and none can be used.
      UnreadableFile: another of its files is not what it has to be.
    """
    folder.expect_unused()
    checkpoints = CheckpointFolder(folder.checkpoints, config.checkpoint.keep)
    sound = checkpoints.newest_sound(expect_resumable)
    if sound is None:
        raise RunFolderError(f"{folder.path}: has no checkpoint to resume from")
    if spec is not None:
        _expect_fit(sound, config, spec)
    notes = [f"skipped a checkpoint: {line}" for line in sound.skipped]
    before = load_file(Config(), folder.config_file)
    notes += [f"changed: {line}" for line in differences(before, config)]
    scale = spec_from_dict(sound.payload["spec"]).scale
    if spec is not None and spec.scale != scale:
        notes.append("observations are read as since this run began: its weights know no others")
    has_snapshots = config.checkpoint.replay and folder.snapshots(0).is_dir()
    if has_snapshots and before.replay.shards != config.replay.shards:
        raise RunFolderError(
            f"--replay.shards {config.replay.shards}: must stay {before.replay.shards} in a "
            "resumed run whose replay was saved; --checkpoint.no-replay starts with an empty one"
        )
    counters, incarnations = sound.payload["counters"], folder.read_incarnations()
    # The file may be older than the checkpoint, of a disk that took that one only; the next
    # learner's checkpoints must be the newer ones.
    incarnations["learner/0"] = max(incarnations.get("learner/0", 0), counters["incarnation"] + 1)
    return Start(
        checkpoint=str(sound.path),
        counters=counters,
        incarnations=incarnations,
        notes=notes,
        scale=scale,
    )


def _expect_fit(sound: SoundCheckpoint, config: Config, spec: EnvironmentSpec) -> None:
    """Check that the learner of these settings can go on with what is saved.

    Raises:
      CheckpointError: it cannot.
    """
    learner = make_learner(config, spec, device=torch.device("cpu"), serial=True)
    try:
        learner.load_state_dict(sound.payload["learner"])
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{sound.path}: {one_line(str(error), 400)}") from error
