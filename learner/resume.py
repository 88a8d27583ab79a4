"""Where a run goes on: its newest sound checkpoint, its counters, and what was changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from common.config import Config
from common.config_file import differences, load_file
from common.run_folder import RunFolder, RunFolderError
from learner.assembly import expect_format, spec_from_dict
from learner.checkpoint import CheckpointFolder


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


def find_start(folder: RunFolder, config: Config) -> Start:
    """Return where the run in `folder` goes on, with the settings `config`.

    Raises:
      RunFolderError: it is in use, has no sound checkpoint, or replay's snapshots do not fit the
        settings.
      ConfigError: its configuration cannot be read.
    """
    folder.expect_unused()
    sound = CheckpointFolder(folder.checkpoints, config.checkpoint.keep).newest_sound()
    if sound is None:
        raise RunFolderError(f"{folder.path}: has no checkpoint to resume from")
    notes = [f"skipped a damaged checkpoint: {line}" for line in sound.skipped]
    before = load_file(Config(), folder.config_file)
    notes += [f"changed: {line}" for line in differences(before, config)]
    has_snapshots = config.checkpoint.replay and folder.snapshots(0).is_dir()
    if has_snapshots and before.replay.shards != config.replay.shards:
        raise RunFolderError(
            f"--replay.shards {config.replay.shards}: must stay {before.replay.shards} in a "
            "resumed run whose replay was saved; --checkpoint.no-replay starts with an empty one"
        )
    saved = expect_format(sound.path, sound.payload)
    return Start(
        checkpoint=str(sound.path),
        counters=saved["counters"],
        incarnations=folder.read_incarnations(),
        notes=notes,
        scale=spec_from_dict(saved["spec"]).scale,
    )
