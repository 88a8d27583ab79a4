"""Checkpoints: exact round trip, atomic writes, and one clear line for every broken file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.checkpoint import CheckpointError, CheckpointFolder, load, save

PAYLOAD: dict[str, Any] = {
    "format": 1,
    "weights": {"layer.weight": torch.arange(6.0).reshape(2, 3)},
    "optimizer": [torch.zeros(2), {"steps": 3, "name": "adam", "rate": 1e-4, "none": None}],
    "flags": (True, False),
}


def test_round_trip_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save(path, PAYLOAD)
    loaded = load(path)
    assert torch.equal(loaded["weights"]["layer.weight"], PAYLOAD["weights"]["layer.weight"])
    assert torch.equal(loaded["optimizer"][0], torch.zeros(2))
    assert loaded["optimizer"][1] == PAYLOAD["optimizer"][1]
    assert loaded["flags"] == (True, False)
    assert loaded["format"] == 1


def test_channels_last_tensors_keep_their_values(tmp_path: Path) -> None:
    picture = torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    save(tmp_path / "a.pt", {"picture": picture})
    assert torch.equal(load(tmp_path / "a.pt")["picture"], picture)


@pytest.mark.parametrize(
    ("payload", "where"),
    [
        ({"a": np.float64(1.0)}, r"payload\['a'\]"),  # a float by inheritance
        ({"a": [1, np.zeros(2)]}, r"payload\['a'\]\[1\]"),
        ({"a": {"b": Path(".")}}, r"payload\['a'\]\['b'\]"),
        ({"a": {np.int64(1): 2}}, r"a key of payload\['a'\]"),
    ],
)
def test_values_that_load_would_refuse_are_refused_by_save(
    tmp_path: Path, payload: dict[str, Any], where: str
) -> None:
    with pytest.raises(TypeError, match=f"Expect `{where}` to be a tensor"):
        save(tmp_path / "a.pt", payload)
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    save(path, {"step": 1})

    def fail(payload: object, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save(path, {"step": 2})
    monkeypatch.undo()
    assert load(path) == {"step": 1}
    assert os.listdir(tmp_path) == ["a.pt"]


def test_reader_never_sees_a_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    save(path, {"step": 1})
    replace = os.replace
    seen = []

    def look_first(source: Path, destination: Path) -> None:
        seen.append(load(path))  # just before the switch: still the old one
        replace(source, destination)

    monkeypatch.setattr(os, "replace", look_first)
    save(path, {"step": 2})
    assert seen == [{"step": 1}]
    assert load(path) == {"step": 2}


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt, actually: no such file"):
        load(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_truncated_file_says_so_in_one_line(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.pt"
    save(path, PAYLOAD)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match="truncated, or no checkpoint") as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_foreign_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match="no checkpoint at all"):
        load(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="actually: a list"):
        load(path)


class Dangerous:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("owned",)


def test_checkpoint_never_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    torch.save({"payload": Dangerous()}, path)
    with pytest.raises(CheckpointError, match="actually unreadable") as raised:
        load(path)
    assert "\n" not in str(raised.value)
    path.write_bytes(pickle.dumps({"payload": Dangerous()}))
    with pytest.raises(CheckpointError):
        load(path)
    assert not (tmp_path / "owned").exists()


def test_folder_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=2)
    assert folder.newest() is None
    for step in (0, 5, 10):
        path = folder.save({"step": step}, step)
        assert path.name == f"checkpoint_{step:010d}.pt"
        assert folder.newest() == path
    save(folder.best, {"step": 5})
    folder.save({"step": 15}, 15)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.pt", "checkpoint_0000000010.pt", "checkpoint_0000000015.pt"]


def test_folder_orders_by_number_also_past_ten_digits(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=3)
    folder.save({}, 9_999_999_999)
    newest = folder.save({}, 10_000_000_000)
    assert folder.newest() == newest


def test_folder_never_deletes_what_it_has_just_written(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.save({}, 100)
    behind = folder.save({}, 50)
    assert behind.exists()


def test_folder_ignores_other_files_and_clears_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_x.pt").write_text("notes")
    (tmp_path / ".checkpoint_0000000001.pt.tmp").write_text("half")
    folder = CheckpointFolder(tmp_path, keep=1)
    assert folder.newest() is None
    folder.save({}, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint_0000000002.pt",
        "checkpoint_x.pt",
    ]


def test_folder_that_keeps_nothing_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expect `keep` >= 1, actually: 0"):
        CheckpointFolder(tmp_path, keep=0)
