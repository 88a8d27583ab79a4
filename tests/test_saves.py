"""RunSaves: what the driver says of saves that fail, and which good one it names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.reports import NEVER_SAVED, SaveStatus
from driver.run_folder import RunFolder
from driver.saves import RunSaves
from driver.supervisor import WorkerName

LEARNER = ("learner", 0)
SHARD = ("replay", 1)


class Told:
    """The saves of a run in a folder, with what they said; the crew is nobody."""

    def __init__(self, folder: RunFolder, newest: str) -> None:
        nobody: Any = SimpleNamespace(handle=lambda name: None)
        self.lines: list[str] = []
        console: Any = SimpleNamespace(note=self.lines.append)
        self.saves = RunSaves(
            crew=nobody,
            console=console,
            folder=folder,
            every_s=60.0,
            names=[LEARNER, SHARD],
            newest=newest,
        )

    def hear(self, name: WorkerName, *statuses: SaveStatus) -> list[str]:
        """Return what is said of these reports."""
        before = len(self.lines)
        for status in statuses:
            self.saves.told(name, status)
        return self.lines[before:]


def failed(attempts: int, path: str | Path = "", seconds: float = 0.5) -> SaveStatus:
    return SaveStatus(attempts, str(path), "disk full", held_s=0.1, seconds=seconds)


def wrote(path: Path) -> SaveStatus:
    return SaveStatus(1, str(path), "", held_s=0.1, seconds=0.5)


def checkpoint(tmp_path: Path) -> Path:
    path = RunFolder(tmp_path).checkpoints / "checkpoint_0000000100.pt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    return path


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(RunFolder(tmp_path), newest="")


@pytest.mark.parametrize("name", [LEARNER, SHARD])
def test_a_save_that_failed_is_told_once_however_often_it_is_reported(
    name: WorkerName, told: Told
) -> None:
    assert told.hear(name, NEVER_SAVED) == []
    assert len(told.hear(name, *[failed(1)] * 10)) == 1
    assert len(told.hear(name, *[failed(2)] * 10)) == 1
    assert told.hear(name, failed(2)._replace(attempts=3, trouble="")) == []


def test_the_first_failed_save_of_another_incarnation_is_told_though_its_number_is_the_last_one_s(
    told: Told,
) -> None:
    assert len(told.hear(SHARD, failed(1, seconds=0.5))) == 1
    assert len(told.hear(SHARD, failed(1, seconds=0.7))) == 1


def test_each_process_is_told_of_for_itself(told: Told) -> None:
    assert told.hear(LEARNER, failed(1)) == [
        "learner 0 could not write its checkpoint: disk full; training goes on, there is none "
        "before"
    ]
    assert told.hear(SHARD, failed(1)) == [
        "replay 1 could not write its snapshot: disk full; training goes on"
    ]


# --- the last good one ----------------------------------------------------------------------------


def test_the_last_good_checkpoint_is_named_while_its_file_is_there(
    told: Told, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path)
    assert told.hear(LEARNER, wrote(path)) == []
    assert told.saves.last_good() == f"; the last good checkpoint is {path}"
    (line,) = told.hear(LEARNER, failed(2, path))
    assert line.endswith(f"training goes on, the last good one is {path}")
    path.unlink()
    (line,) = told.hear(LEARNER, failed(3, path))
    assert line.endswith("training goes on, the last good one is gone")
    assert told.saves.last_good() == ""


@pytest.mark.parametrize("is_resumed", [True, False])
def test_a_learner_that_was_replaced_knows_of_the_checkpoint_it_goes_on_from(
    is_resumed: bool, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path)
    told = Told(RunFolder(tmp_path), newest=str(path) if is_resumed else "")
    if not is_resumed:
        told.hear(LEARNER, wrote(path))
    (line,) = told.hear(LEARNER, failed(1))
    assert line.endswith(f"the last good one is {path}")
    assert told.saves.newest == str(path)


def test_the_last_good_snapshot_is_named_while_its_folder_is_there(
    told: Told, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path).snapshots(1)
    folder.mkdir(parents=True)
    (line,) = told.hear(SHARD, failed(4, "snapshot 3"))
    assert line.endswith("training goes on, the last good one is snapshot 3")
    folder.rmdir()
    (line,) = told.hear(SHARD, failed(5, "snapshot 3"))
    assert line.endswith("training goes on, the last good one is gone")
