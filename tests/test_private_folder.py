"""PrivateFolder: where it lies, who gets in, and what becomes of those whose owner was killed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from disks import SmallDisk
from launching import ROOT

from driver.private_folder import PrivateFolder

OWNER = """
import sys, time
from driver.private_folder import PrivateFolder
folder = PrivateFolder("in", longest_bytes=4096)
print(folder.path.parent, flush=True)
time.sleep(600)
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a place for temporary files, the user's wish."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@contextlib.contextmanager
def made_by_another(base: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Start a process that owns a folder."""
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(base)},
    ) as owner:
        assert owner.stdout is not None
        try:
            yield owner, Path(owner.stdout.readline().strip())
        finally:
            owner.kill()


def test_it_lies_where_the_user_wishes_shut_to_all_others_and_goes_with_all_in_it(
    base: Path,
) -> None:
    folder = PrivateFolder("in", longest_bytes=4096)
    assert folder.path.parent.parent == base
    assert stat.S_IMODE(folder.path.parent.stat().st_mode) == 0o700
    (folder.path / "deep").mkdir()
    (folder.path / "deep" / "link").symlink_to(base)
    (folder.path / "deep" / "file").write_text("x")
    folder.remove()
    assert list(base.iterdir()) == []


def test_a_killed_owner_s_folder_goes_with_the_next_start_a_living_one_s_stays(base: Path) -> None:
    with made_by_another(base) as (killed, theirs), made_by_another(base) as (_, others):
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert theirs.is_dir()
        folder = PrivateFolder("in", longest_bytes=4096)
        assert sorted(base.iterdir()) == sorted([others, folder.path.parent])
        folder.remove()


def test_what_is_no_folder_of_ours_is_left_alone(base: Path) -> None:
    kept = base / "kept"
    kept.mkdir()
    (kept / "in").mkdir()
    (base / "troop-linkedto").symlink_to(kept)
    (base / "troop-not-ours").mkdir()
    (base / "troop-a_file00").write_text("x")
    for run in ("troop-baseline", "troop-pong0001"):  # the user's own, eight characters by chance
        (base / run / "in").mkdir(parents=True)
        (base / run / "config.yaml").write_text("x")
    before = sorted(base.rglob("*"))
    PrivateFolder("in", longest_bytes=4096).remove()
    assert sorted(base.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to give a folder away")
def test_another_user_s_folder_is_left_alone(base: Path) -> None:
    theirs = base / "troop-theirs00"
    (theirs / "in").mkdir(parents=True)
    os.chown(theirs, 65534, 65534)
    PrivateFolder("in", longest_bytes=4096).remove()
    assert theirs.is_dir()


@pytest.mark.parametrize(
    "wish", ["{base}/" + "x" * 100, "{base}/none", "{base}/file", "relative", "{base}/open"]
)
def test_a_wish_that_cannot_be_met_is_passed_over(
    wish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("TMPDIR", wish.format(base=tmp_path))
    longest_bytes = len(str(tmp_path)) + 60
    folder = PrivateFolder("in", longest_bytes=longest_bytes)
    assert folder.path.parent.parent == Path("/tmp")
    folder.remove()


def test_a_full_disk_is_passed_over(small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(small_disk.path))
    folder = PrivateFolder("in", longest_bytes=4096)
    assert folder.path.parent.parent == Path("/tmp")
    assert list(small_disk.path.iterdir()) == []
    folder.remove()


def test_where_no_place_is_fit_it_says_of_each_why(base: Path) -> None:
    with pytest.raises(OSError, match="no place for temporary files") as error:
        PrivateFolder("in", longest_bytes=10)
    assert f"{base}: " in str(error.value)
    assert "/tmp: " in str(error.value)
    assert "\n" not in str(error.value)
    assert list(base.iterdir()) == []


def test_a_file_system_without_locks_is_left_as_it_was(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=f"{base}: No locks available"):
        PrivateFolder("in", longest_bytes=4096)
    assert list(base.iterdir()) == []
