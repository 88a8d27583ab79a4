"""RunFolder: a new run never touches what is there, and a run is recognised by what it wrote."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from disks import SmallDisk, files_no_longer_than
from fakes import begin_run

from common.config import Config
from common.config_file import load_file
from common.endings import HostUnfit
from common.files import UnreadableFile
from driver import run_folder
from driver.about import facts
from driver.run_folder import Result, RunFolder, RunFolderError, lasting_runs


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_folder_for_a_new_run_is_not_made_yet(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "run"
    assert RunFolder.for_new_run(path).path == path
    assert tree(tmp_path) == []


def test_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    assert RunFolder.for_new_run(tmp_path).path == tmp_path


def test_relative_folder_may_become_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunFolder.for_new_run(Path("runs") / "first").path == Path("runs/first")


def refused(path: Path, rule: str) -> None:
    with pytest.raises(RunFolderError) as caught:
        RunFolder.for_new_run(path)
    assert str(caught.value) == f"--run-dir {path}: {rule}"


def test_folder_that_exists_and_is_not_a_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    refused(tmp_path, "holds files but is not a run; must be a new or empty folder")
    assert tree(tmp_path) == ["thesis.txt"]


def test_folder_that_holds_a_run_is_refused_and_resume_is_offered(tmp_path: Path) -> None:
    begin_run(RunFolder(tmp_path), Config(), "pong", ["x"])
    rule = "holds a run; it saved no checkpoint to resume from, so remove it, or name another"
    refused(tmp_path, rule)
    (tmp_path / "checkpoints" / "checkpoint_0000000001.pt").touch()
    before = tree(tmp_path)
    refused(tmp_path, f"holds a run; go on with --resume {tmp_path}, or name another")
    assert tree(tmp_path) == before


def test_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(file, "is not a folder; must be a new or empty folder")
    refused(file / "run", f"{file} must be a folder that can be written")
    assert file.read_text() == "mine"


def test_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    refused(link, "is not a folder; must be a new or empty folder")


def test_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not by chmod: for root everything can be written.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    refused(tmp_path / "run", f"{tmp_path} must be a folder that can be written")
    refused(tmp_path, f"{tmp_path} must be a folder that can be written")


def test_name_no_file_system_takes_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / ("x" * 5_000), "cannot be used: File name too long")
    with pytest.raises(RunFolderError, match="x: cannot be read: File name too long$"):
        RunFolder.of_run(tmp_path / ("x" * 5_000))


@pytest.mark.parametrize("missing", ["run.json", "config.yaml", None])
def test_folder_without_the_two_files_of_a_run_is_none(tmp_path: Path, missing: str | None) -> None:
    path = tmp_path / "run"
    if missing is not None:
        begin_run(RunFolder(path), Config(), "pong", ["x"])
        (path / missing).unlink()
    with pytest.raises(RunFolderError) as caught:
        RunFolder.of_run(path)
    assert str(caught.value) == f"{path}: is not a run folder (no run.json and config.yaml in it)"


def test_created_folder_is_a_run_with_everything_a_reader_needs(tmp_path: Path) -> None:
    path = tmp_path / "a" / "run"
    config = Config(seed=5)
    folder = RunFolder.for_new_run(path)
    begin_run(folder, config, "pong", ["python", "launch.py", "--seed", "5"])
    assert tree(path) == [
        *(".lock", "checkpoints", "config.yaml", "plots", "result.json", "run.json", "videos")
    ]
    found = RunFolder.of_run(path)
    assert found.checkpoints == path / "checkpoints"
    assert found.log == path / "log.txt"
    assert load_file(Config(), found.config_file) == config
    about = json.loads((path / "run.json").read_text())
    assert about["game"] == "pong"
    assert about["command"] == ["python", "launch.py", "--seed", "5"]
    assert about["versions"]["torch"]
    assert set(about["machine"]) == {"platform", "cpu", "cores", "memory_bytes", "gpus"}
    assert len(about["source_hash"]) == 16


def test_resumed_run_keeps_what_was_said_of_its_start(tmp_path: Path) -> None:
    first, again, third = (
        ["python", "launch.py", *flags.split()] for flags in ("--seed 5", "-r", "")
    )
    begin_run(RunFolder(tmp_path), Config(seed=5), "pong", first)
    start = json.loads((tmp_path / "run.json").read_text())
    for command in (again, third):
        begin_run(RunFolder(tmp_path), Config(seed=5), "pong", command)
    about = json.loads((tmp_path / "run.json").read_text())
    resumed = about.pop("resumed")
    assert about == start
    assert [entry["command"] for entry in resumed] == [again, third]
    assert all(entry.keys() == start.keys() - {"game"} for entry in resumed)


def test_json_that_is_missing_says_nothing(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).read_json("result.json", Result) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[1]", "the file is [1]: must be values by name"),
        ('{"seconds": null}', "`seconds` is None: must be a number"),
        ('{"seconds": -1}', "`seconds` is -1: must be finite and >= 0"),
        ('{"frames": 1.5}', "`frames` is 1.5: must be a whole number"),
        ('{"frames": 1e999}', "`frames` is inf: must be a whole number"),
        ("[" * 100_000, "is nested too deeply"),
        ("[" * 40 + "]" * 40, "is nested too deeply"),
        ('{"frames": 1' + "0" * 30 + "}", "`frames` is 1" + "0" * 30 + ": must be a whole number"),
    ],
)
def test_json_that_is_not_what_it_has_to_be_is_one_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(UnreadableFile) as caught:
        RunFolder(tmp_path).read_json("result.json", Result)
    assert str(caught.value) == f"{path}: cannot be read: {said}"


def test_folder_is_no_run_before_everything_in_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def killed(config: Config, path: Path) -> None:
        raise Killed

    monkeypatch.setattr(run_folder, "save_file", killed)
    with pytest.raises(Killed):
        begin_run(RunFolder(tmp_path / "run"), Config(), "pong", ["x"])
    with pytest.raises(RunFolderError, match="is not a run folder"):
        RunFolder.of_run(tmp_path / "run")


def test_json_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("result.json", {"frames": 1})
    with pytest.raises(TypeError):
        folder.write_json("result.json", {"frames": object()})
    assert json.loads((tmp_path / "result.json").read_text()) == {"frames": 1}
    folder.write_json("result.json", {"frames": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"frames": 2}
    assert tree(tmp_path) == ["result.json"]


def test_json_that_cannot_be_written_leaves_the_old_one_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_json("result.json", {"frames": 1})
    with files_no_longer_than(10), pytest.raises(OSError, match="File too large"):
        folder.write_json("result.json", {"frames": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"frames": 1}
    assert tree(tmp_path) == ["result.json"]


# Holds the lock as a driver does, starts a program, and waits to be killed.
_HOLD = """
import subprocess, sys
from pathlib import Path
from driver.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
child = subprocess.Popen(["sleep", "60"], close_fds=False)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_folder_is_in_use_until_its_process_is_killed_and_its_children_do_not_count(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    root = Path(run_folder.__file__).parent.parent
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            rule = f"{tmp_path}: is in use by process {holder.pid} on {socket.gethostname()}"
            for _ in range(2):  # a refusal changes nothing
                with pytest.raises(RunFolderError, match=f"^{re.escape(rule)}$"):
                    RunFolder(tmp_path).lock()
            with pytest.raises(RunFolderError, match="is in use"):
                begin_run(RunFolder(tmp_path), Config(), "pong", ["x"])
            assert tree(tmp_path) == [".lock"]
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # still there
            begin_run(RunFolder(tmp_path), Config(), "pong", ["x"])
        finally:
            os.kill(child, signal.SIGKILL)


def test_lock_is_held_while_its_object_lives_and_until_it_is_let_go(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock()
    folder.lock()
    owner = re.escape(f"{os.getpid()} {socket.gethostname()}")
    assert re.fullmatch(rf"{owner} [0-9a-f]{{32}}\n", (tmp_path / ".lock").read_text())
    with pytest.raises(RunFolderError, match="is in use"):
        RunFolder(tmp_path).expect_unused()
    folder.unlock()
    folder.unlock()
    RunFolder(tmp_path).expect_unused()
    folder.lock()
    del folder
    RunFolder(tmp_path).expect_unused()


def test_readers_of_a_run_in_use_are_welcome(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    begin_run(folder, Config(), "pong", ["x"])
    assert RunFolder.of_run(tmp_path).path == tmp_path


def test_lock_of_a_run_that_cannot_be_written_says_why(small_disk: SmallDisk) -> None:
    path = small_disk.path / "run"
    begin_run(RunFolder(path), Config(), "pong", ["x"])
    small_disk.set_read_only(read_only=True)
    with pytest.raises(RunFolderError) as caught:
        RunFolder(path).lock()
    assert str(caught.value) == f"{path}: cannot be written: Read-only file system"
    refused(small_disk.path / "other", f"{small_disk.path} must be a folder that can be written")


def test_start_on_a_full_disk_says_so_and_can_be_tried_again(small_disk: SmallDisk) -> None:
    path = small_disk.path / "run"
    small_disk.fill()
    with pytest.raises(RunFolderError) as caught:
        begin_run(RunFolder.for_new_run(path), Config(), "pong", ["x"])
    assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    small_disk.free()
    begin_run(RunFolder.for_new_run(path), Config(), "pong", ["x"])
    assert RunFolder.of_run(path).path == path


def test_facts_name_the_commit_and_whether_something_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        options = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", "-C", str(tmp_path), *options, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr("driver.about.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # no hooks and keys of the user's
    none = facts()
    assert (none["git_commit"], none["git_changed"]) == (None, None)
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    clean = facts()
    assert (clean["git_commit"], clean["git_changed"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "a").write_text("2")
    assert facts()["git_changed"] is True


def test_facts_do_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert facts()["git_commit"] is None


def test_incarnations_come_back_as_they_were_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for incarnations in ({"actor/0": 3, "replay/1": 0}, {"actor/0": 4}):
        folder.write_incarnations(incarnations)
        assert folder.read_incarnations() == incarnations
    assert tree(tmp_path) == ["incarnations.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"actor/0": 1',
        "null",
        "[1, 2]",
        '{"actor/0": null}',
        '{"actor/0": "1"}',
        '{"actor/0": 1.5}',
        '{"actor/0": true}',
        '{"actor/0": -1}',
        '{"actor/0": Infinity}',
        '{"actor/0": 1099511627776}',
        '{"../../etc/0": 1}',
        "{}",
    ],
)
def test_damaged_incarnations_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    """A number that was given before would be given twice."""
    path = tmp_path / "incarnations.json"
    path.write_text(text)
    with pytest.raises(UnreadableFile) as caught:
        RunFolder(tmp_path).read_incarnations()
    assert str(caught.value).startswith(f"{path}: cannot be read: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda path: None, lambda path: path.write_bytes(b"\xff{}")])
def test_missing_or_unreadable_incarnations_are_refused(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "incarnations.json"
    damage(path)
    with pytest.raises(UnreadableFile, match=re.escape(f"{path}: cannot be read: ")):
        RunFolder(tmp_path).read_incarnations()


def test_incarnations_that_cannot_be_written_leave_the_older_ones(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_incarnations({"actor/0": 1})
    with files_no_longer_than(4), pytest.raises(OSError):
        folder.write_incarnations({"actor/0": 2})
    assert folder.read_incarnations() == {"actor/0": 1}
    assert tree(tmp_path) == ["incarnations.json"]


def test_folder_travels_as_an_absolute_path_and_without_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(Path("run"))
    folder.path.mkdir()
    folder.lock()
    sent = pickle.dumps(folder)
    monkeypatch.chdir("/")
    there = pickle.loads(sent)
    assert there.path == tmp_path / "run"
    assert there.snapshots(2) == tmp_path / "run" / "checkpoints" / "replay_2"
    there.unlock()  # it never held it
    with pytest.raises(RunFolderError, match="is in use by process"):
        there.lock()
    folder.unlock()
    there.lock()
    there.unlock()


# --- other hosts ----------------------------------------------------------------------------------


def arrive_elsewhere(folder: RunFolder, path: Path) -> RunFolder:
    """Return the folder as it arrives on a host that has `path` under the folder's name."""
    return run_folder._arrive(path, Path("/proc/0/fd/0"), (0, 0), folder._mark)


def test_another_host_knows_the_folder_by_its_lock_and_takes_no_other(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open({})
    shared = tmp_path / "shared"  # another mount of the same folder has other numbers
    shutil.copytree(folder.path, shared)
    assert arrive_elsewhere(folder, shared).path == shared
    (tmp_path / "empty").mkdir()
    other = RunFolder(tmp_path / "other")  # as the rest of a run of long ago
    other.open({})
    for path in (tmp_path / "empty", tmp_path / "other", tmp_path / "none"):
        with pytest.raises(HostUnfit, match=re.escape(f"the run folder {path}, in which")) as said:
            arrive_elsewhere(folder, path)
        assert socket.gethostname() in str(said.value)
    assert not (tmp_path / "none").exists()


def test_a_run_in_the_folder_of_a_ray_job_goes_home_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lasting_runs() == Path("runs")
    job = tmp_path / "session_2026-11-27_04-17-45_425000_41" / "runtime_resources" / "_ray_pkg_1"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert lasting_runs() == tmp_path / "home" / "runs"
    (tmp_path / "latest").symlink_to(job)
    lasts = tmp_path / "home" / "runs" / "a"
    rule = (
        f"lies in a folder that Ray removes with its session; must be one that lasts, like {lasts}"
    )
    for path in (Path("a"), Path("deep/down/a"), tmp_path / "latest" / "a"):
        refused(path, rule)
    RunFolder.for_new_run(tmp_path / "home" / "runs" / "a")
