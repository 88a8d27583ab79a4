"""Checkpoints: exact round trip, atomic writes, and one clear line for every broken file."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disks import SmallDisk, files_no_longer_than
from fakes import made

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
    with pytest.raises(CheckpointError, match="is no regular file"):
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
    (tmp_path / ".troop-0123456789abcdef").write_text("half")
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


def equal(a: object, b: object) -> bool:
    """Return whether two payloads are the same to the bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return (
            type(a) is type(b)
            and len(a) == len(b)
            and all(equal(*pair) for pair in zip(a, b, strict=True))
        )
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


# 0x10 makes a folder of an archive's member, which torch then reads as rubbish.
@pytest.mark.parametrize(("bits", "stride"), [(0x10, 1), (0x01, 5), (0x80, 5), (0xFF, 5)])
def test_no_flipped_bit_is_ever_taken_for_data(tmp_path: Path, bits: int, stride: int) -> None:
    path = tmp_path / "a.pt"
    small = {"weights": torch.arange(6.0), "steps": 3}
    save(path, small)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), stride):
        damaged = bytearray(whole)
        damaged[position] ^= bits
        path.write_bytes(damaged)
        try:
            payload = load(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert equal(payload, small), position
    assert refused > len(whole) / stride / 4  # the rest is padding, and what nobody reads


def test_damaged_tensor_is_refused_and_its_archive_member_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    weights = torch.full((64,), 1.5)
    save(path, {"weights": weights})
    whole = path.read_bytes()
    data = weights.numpy().tobytes()
    position = whole.index(data) + 17
    path.write_bytes(whole[:position] + b"\x55" + whole[position + 1 :])
    # Torch itself does not mind: this is why `load` looks at the checksums.
    assert not torch.equal(torch.load(path, weights_only=True)["weights"], weights)
    with pytest.raises(CheckpointError, match=r"a\.pt, actually unreadable: damaged in .*data/0$"):
        load(path)


def test_newest_sound_checkpoint_is_found_behind_damaged_ones(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=9)
    assert folder.newest_sound(lambda path, payload: payload) is None
    paths = [folder.save({"step": step}, step) for step in (1, 2, 3, 4)]
    sound = folder.newest_sound(lambda path, payload: payload)
    assert sound == (paths[3], {"step": 4}, [])
    paths[3].write_bytes(paths[3].read_bytes()[:-1])
    paths[2].write_bytes(b"")
    sound = folder.newest_sound(lambda path, payload: payload)
    assert sound is not None
    assert (sound.path, sound.payload) == (paths[1], {"step": 2})
    assert [str(paths[3]) in sound.skipped[0], str(paths[2]) in sound.skipped[1]] == [True, True]
    for path in paths:
        path.write_text("no")
    with pytest.raises(CheckpointError, match=r"checkpoint_0000000004\.pt, actually"):
        folder.newest_sound(lambda path, payload: payload)


BIG = {"weights": torch.arange(30_000.0)}  # 120 kB: two have room on a small disk, three have not


def test_full_disk_is_an_oserror_and_costs_no_older_checkpoint(small_disk: SmallDisk) -> None:
    checkpoints = small_disk.path / "checkpoints"
    folder = CheckpointFolder(checkpoints, keep=1)
    first = folder.save(BIG, 1)
    small_disk.fill()
    with pytest.raises(OSError, match="No space left on device"):
        folder.save(BIG, 2)
    assert list(checkpoints.iterdir()) == [first]
    assert equal(load(first), BIG)
    small_disk.free()
    second = folder.save(BIG, 2)
    assert list(checkpoints.iterdir()) == [second]


def test_leftover_of_a_killed_writer_makes_room_for_the_next_checkpoint(
    small_disk: SmallDisk,
) -> None:
    (small_disk.path / ".troop-0123456789abcdef").write_bytes(b"x" * 200_000)
    folder = CheckpointFolder(small_disk.path, keep=1)
    assert equal(load(folder.save(BIG, 2)), BIG)


def test_read_only_disk_is_an_oserror_and_costs_nothing(small_disk: SmallDisk) -> None:
    folder = CheckpointFolder(small_disk.path, keep=1)
    first = folder.save({"step": 1}, 1)
    small_disk.set_read_only(read_only=True)
    with pytest.raises(OSError, match="Read-only file system"):
        folder.save({"step": 2}, 2)
    assert load(first) == {"step": 1}


@pytest.mark.parametrize("room", [0, 1, 1_000, 100_000])
def test_refused_write_of_any_length_leaves_nothing(tmp_path: Path, room: int) -> None:
    folder = CheckpointFolder(tmp_path, keep=1)
    first = folder.save(BIG, 1)
    with files_no_longer_than(room), pytest.raises(OSError, match="File too large"):
        folder.save(BIG, 2)
    assert list(tmp_path.iterdir()) == [first]
    assert equal(load(first), BIG)


def test_removed_folder_is_made_again_by_the_next_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(made(tmp_path / "run") / "checkpoints", keep=1)
    folder.save({"step": 1}, 1)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    path = folder.save({"step": 2}, 2)
    assert load(path) == {"step": 2}
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    with pytest.raises(OSError, match="exists|Not a directory"):
        folder.save({"step": 3}, 3)


def test_removed_run_is_not_made_again(tmp_path: Path) -> None:
    folder = CheckpointFolder(made(tmp_path / "run") / "checkpoints", keep=1)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        folder.save({"step": 2}, 2)
    assert list(tmp_path.iterdir()) == []
