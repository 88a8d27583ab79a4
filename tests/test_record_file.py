"""RecordFile: every record is in a file, whole and in order, or counted as lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from disks import SmallDisk, files_no_longer_than

from common.files import open_new_fd
from driver.view.record_file import RecordFile

HEAD = b"head\n"


class Numbered(RecordFile):
    """A file in a folder that is made if need be."""

    def _open_file(self, folder: Path) -> tuple[str, int]:
        folder.mkdir(exist_ok=True)
        name = f"{time.monotonic_ns():020d}"  # sorts after all others
        return name, open_new_fd(folder / name)

    def _head(self) -> bytes:
        return HEAD


class Files:
    """A folder of files, and what they hold together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, max_waiting_bytes: int = 2**20) -> RecordFile:
        return Numbered(folder=self.folder, flush_s=10.0, max_waiting_bytes=max_waiting_bytes)

    def records(self) -> list[int]:
        """Return the numbers in all files; every file must consist of a head and whole records."""
        found = []
        for path in sorted(self.folder.iterdir()):
            data = path.read_bytes()
            assert data.startswith(HEAD)
            rest = data[len(HEAD) :].decode()
            lines = rest.split()
            assert rest == "".join(map(line, map(int, lines))), "half a record"
            found += [int(text) for text in lines]
        return found


def line(number: int) -> str:
    return f"{number:07d}\n"


def append(file: RecordFile, numbers: range) -> None:
    for number in numbers:
        file.append(line(number).encode())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "files")


def test_records_are_in_the_file_after_a_flush_and_not_before(files: Files) -> None:
    file = files.open()
    append(file, range(3))
    assert files.records() == []
    file.flush()
    assert files.records() == [0, 1, 2]
    append(file, range(3, 5))
    file.close()
    file.close()
    assert files.records() == list(range(5))
    assert (file.trouble, file.lost_records) == ("", 0)
    with pytest.raises(ValueError, match="Expect an open file, actually closed"):
        append(file, range(1))


# 1: no byte fits; 8: exactly a record; others end within one.
@pytest.mark.parametrize("room", [0, 1, 7, 8, 9, 100, 4099])
def test_what_a_disk_refuses_is_written_when_it_takes_it(files: Files, room: int) -> None:
    file = files.open()
    append(file, range(10))
    file.flush()
    with files_no_longer_than(file.path.stat().st_size + room):
        append(file, range(10, 1_000))
        for _ in range(3):
            file.flush()
            assert file.trouble == f"{file.path}: cannot be written: File too large"
            written = files.records()
            assert written == list(range(len(written)))
        append(file, range(1_000, 1_010))
    file.flush()
    assert file.trouble == ""
    assert files.records() == list(range(1_010))
    file.close()


def test_what_a_full_disk_refuses_is_written_when_there_is_room(small_disk: SmallDisk) -> None:
    files = Files(small_disk.path / "files")
    file = files.open()
    append(file, range(10))
    file.flush()
    small_disk.fill()
    append(file, range(10, 5_000))
    file.flush()
    assert file.trouble == f"{file.path}: cannot be written: No space left on device"
    written = files.records()
    assert written == list(range(len(written))) != list(range(5_000))
    small_disk.free()
    file.close()
    assert files.records() == list(range(5_000))
    assert (file.trouble, file.lost_records) == ("", 0)


def test_half_a_record_that_could_not_be_taken_back_is_taken_back_later(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    file = files.open()
    with files_no_longer_than(file.path.stat().st_size + 5), monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        append(file, range(2))
        file.flush()
    assert file.path.read_bytes() == HEAD + b"00000"
    file.flush()
    assert files.records() == [0, 1]
    file.close()


def test_part_of_a_record_that_is_lost_since_is_taken_back(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    file = files.open(max_waiting_bytes=32)
    file.append(b"9" * 30)
    with files_no_longer_than(file.path.stat().st_size + 25), monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        file.flush()
    append(file, range(1))  # shorter than what the file has of the other
    file.close()
    assert files.records() == [0]
    assert file.lost_records == 1


def test_oldest_of_too_many_waiting_records_are_lost_and_counted(files: Files) -> None:
    file = files.open(max_waiting_bytes=80)
    with files_no_longer_than(file.path.stat().st_size):
        append(file, range(25))
    assert file.lost_records == 15
    file.close()
    assert files.records() == list(range(15, 25))


def test_too_many_waiting_records_are_written_where_the_disk_is_fine(files: Files) -> None:
    file = files.open(max_waiting_bytes=80)
    append(file, range(25))
    assert len(files.records()) >= 15
    file.close()
    assert files.records() == list(range(25))
    assert file.lost_records == 0


def test_records_that_wait_at_the_end_are_lost_and_counted(files: Files) -> None:
    file = files.open()
    with files_no_longer_than(file.path.stat().st_size):
        append(file, range(25))
        file.close()
    assert file.lost_records == 25
    assert file.trouble.endswith("cannot be written: File too large")
    assert files.records() == []


@pytest.mark.parametrize("remove", [Path.unlink, lambda path: shutil.rmtree(path.parent)])
def test_removed_file_is_followed_by_a_new_one(files: Files, remove: object) -> None:
    assert callable(remove)
    file = files.open()
    append(file, range(5))
    file.flush()
    first = file.path
    remove(first)
    append(file, range(5, 9))
    file.flush()
    assert (file.path != first, file.trouble) == (True, "")
    assert files.records() == [5, 6, 7, 8]
    file.close()


def test_records_wait_while_no_new_file_can_be_made(files: Files) -> None:
    file = files.open()
    shutil.rmtree(files.folder)
    files.folder.write_text("in the way")
    append(file, range(3))
    file.flush()
    assert file.trouble.startswith(f"{file.path}: cannot be written: ")
    files.folder.unlink()
    file.flush()
    assert file.trouble == ""
    assert files.records() == [0, 1, 2]
    file.close()


def test_file_that_somebody_cut_or_replaced_is_left_alone(files: Files) -> None:
    file = files.open()
    for damage in (lambda: os.truncate(file.path, 5), lambda: _replace(file.path)):
        append(file, range(5))
        file.flush()
        damage()
        append(file, range(5, 9))
        file.flush()
        assert (file.trouble, file.path.read_bytes()) == (
            "",
            HEAD + "".join(map(line, range(5, 9))).encode(),
        )
    file.close()


def _replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(HEAD)
    os.replace(other, path)


def test_file_that_cannot_be_begun_raises_and_is_not_there(files: Files) -> None:
    with files_no_longer_than(2), pytest.raises(OSError, match="File too large"):
        files.open()
    assert list(files.folder.iterdir()) == []
    files.folder.rmdir()
    files.folder.write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        files.open()


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_records_are_whole_in_order_and_none_is_lost_unsaid(
    files: Files, seed: int
) -> None:
    rng = random.Random(seed)
    file = files.open(max_waiting_bytes=4_000)
    count, removed = 0, 0
    for _ in range(60):
        grown = rng.randrange(300)
        append(file, range(count, count + grown))
        count += grown
        match rng.randrange(4):
            case 0:
                with files_no_longer_than(rng.randrange(3_000)):
                    file.flush()
            case 1 if file.path.exists():
                removed += file.path.read_bytes().count(b"\n") - 1
                file.path.unlink()
            case _:
                file.flush()
        numbers = files.records()
        assert numbers == sorted(set(numbers))
    file.close()
    numbers = files.records()
    assert numbers == sorted(set(numbers))
    assert len(numbers) == count - removed - file.lost_records
