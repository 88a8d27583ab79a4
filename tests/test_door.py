"""Files from somebody else: nothing of theirs runs, and each ends in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from launching import launch
from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from common.config import Config
from common.config_file import ConfigError, read_file
from common.files import UnreadableFile, read_bytes, read_json, write_whole
from common.schema import Misfit, fit, shown
from driver.command_line import read_train
from driver.run_folder import RunFolder
from driver.view.events import event_files
from launch import main
from learner.assembly import load_network
from learner.checkpoint import CheckpointError, CheckpointFolder, load, save
from replay.manifest import pack_manifest, unpack_manifest

NEW = ("--preset", "cartpole", "--serial", "--evaluator.no-enabled", "--seed", "7")
# What waits for a file that is none waits for ever; this is long enough where others work, too.
QUICK_S = 60

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")


@contextmanager
def quickly() -> Iterator[None]:
    """Fail where the block takes longer than somebody at a prompt waits."""

    def too_long(number: int, frame: object) -> None:
        raise AssertionError(f"took longer than {QUICK_S} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, QUICK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run that somebody sent."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def resumed(run: Path) -> tuple[str, ...]:
    return ("--resume", str(run), "--serial", "--total-frames", "2200")


def newest(run: Path) -> Path:
    (path,) = sorted(run.glob("checkpoints/checkpoint_*.pt"))[-1:]
    return path


# --- code that a file names ----------------------------------------------------------------------

PAYLOAD = """
from pathlib import Path
Path(__file__).with_name("it ran").touch()
from gymnasium.envs.registration import register
register("Evil-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv")
"""


@pytest.fixture
def evil(run: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An id whose module lies beside a run's files, and can be imported from here."""
    (run / "payload.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend(str(run.parent))
    return "run.payload:Evil-v0"


def with_id(run: Path, name: str) -> None:
    """Make a run's settings name an environment."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["env"]["id"] = name
    (run / "config.yaml").write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize("command", ["--resume", "--config", "eval"])
def test_module_that_a_run_s_settings_name_is_not_imported(
    run: Path, evil: str, refused: Callable[..., str], command: str
) -> None:
    with_id(run, evil)
    target = run / "config.yaml" if command == "--config" else run
    said = refused(command, target)
    assert said == (
        f"{run / 'config.yaml'}: `env.id` is {evil}: names a module, which would be imported and "
        f"run; if you trust it, say so by --env {evil}"
    )
    assert not (run / "it ran").exists()
    assert not list(run.glob("**/__pycache__"))


def test_module_that_a_checkpoint_names_is_not_imported(
    run: Path, evil: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    payload = load(newest(run))
    payload["config"]["env"]["id"] = evil
    sent = tmp_path / "sent.pt"
    save(sent, payload)
    for arguments in (("--checkpoint", sent), ("--checkpoint", "last")):
        assert "names a module" in refused("eval", run, *arguments)
        assert not (run / "it ran").exists()
        save(newest(run), payload)


def test_network_of_a_checkpoint_is_loaded_without_its_environment(run: Path, evil: str) -> None:
    payload = load(newest(run))
    payload["config"]["env"]["id"] = evil
    save(newest(run), payload)
    load_network(newest(run))
    assert not (run / "it ran").exists()


def test_module_that_the_command_line_names_is_imported(run: Path, evil: str) -> None:
    with_id(run, evil)
    for path in run.glob("checkpoints/*.pt"):
        payload = load(path)
        payload["config"]["env"]["id"], payload["spec"]["name"] = evil, "run_payload_evil_v0"
        save(path, payload)
    assert main(["eval", str(run), "--episodes", "1", "--env", evil]) == 0
    assert (run / "it ran").exists()


def test_another_module_than_the_one_that_was_named_is_not_imported(
    run: Path, evil: str, refused: Callable[..., str]
) -> None:
    with_id(run, evil)
    assert "names a module" in refused(*resumed(run), "--env", "other:CartPole-v1")
    assert "names a module" in refused("eval", run, "--env", "other:CartPole-v1")
    assert not (run / "it ran").exists()


# --- links and other names -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("log.txt", "run.json", ".lock", "checkpoints/best.pt", "videos", "events.out.tfevents.1"),
        "scalars.jsonl",
    ],
)
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_run_with_a_link_in_it_is_refused_by_name_and_the_target_is_untouched(
    run: Path, tmp_path: Path, refused: Callable[..., str], name: str, kind: str
) -> None:
    target, link = tmp_path / "target", run / name
    if link.is_dir():
        link.rmdir()
    link.unlink(missing_ok=True)
    if name == "run.json":
        target.write_text("{}")
    else:
        target.write_text("precious")
    before = target.read_text()
    if kind == "symbolic":
        link.symlink_to(target)
    else:
        link.hardlink_to(target)
    for arguments in (resumed(run), ("eval", str(run)), ("plot", str(run))):
        said = refused(*arguments)
        assert said.removeprefix("--resume ").startswith(f"{link}: is a link"), said
    assert target.read_text() == before


def test_link_that_appears_during_a_run_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that older versions wrote through, and the log, whose name everybody knows."""
    run, target = tmp_path / "run", tmp_path / "target"
    target.write_text("precious")
    begin = RunFolder.begin

    def begin_and_link(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        (run / "log.txt").unlink(missing_ok=True)
        for name in (".run.json.tmp", ".result.json.tmp", "log.txt"):
            (run / name).symlink_to(target)
        for name in ("result.json", "checkpoints/best.pt"):
            (run / name).unlink(missing_ok=True)
            (run / name).symlink_to(target)

    monkeypatch.setattr(RunFolder, "begin", begin_and_link)
    assert main([*NEW, "--total-frames", "1100", "--run-dir", str(run)]) == 0
    assert target.read_text() == "precious"
    assert json.loads((run / "result.json").read_text())["end_reason"] == "done"


def test_link_in_the_place_of_the_scalars_ends_a_start_and_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, target = tmp_path / "run", tmp_path / "target"
    target.write_text("precious")
    begin = RunFolder.begin

    def begin_and_link(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        (run / "scalars.jsonl").symlink_to(target)

    monkeypatch.setattr(RunFolder, "begin", begin_and_link)
    with pytest.raises(SystemExit) as end:
        main([*NEW, "--log.jsonl", "--run-dir", str(run)])
    assert (end.value.code, capsys.readouterr().err.count("\n")) == (2, 1)
    assert target.read_text() == "precious"
    monkeypatch.undo()  # and the folder can be used again
    assert main([*NEW, "--total-frames", "1100", "--log.jsonl", "--run-dir", str(run)]) == 0
    assert (run / "scalars.jsonl").is_file() and target.read_text() == "precious"


def test_file_is_replaced_whole_where_a_link_has_its_name(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    write_whole(link, [b"new"])
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("precious", "new", False)


# --- files that are none -------------------------------------------------------------------------


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_device(path: Path) -> None:
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero


def a_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("made", [a_fifo, a_device, a_folder])
@pytest.mark.parametrize(
    "name", ["config.yaml", "run.json", "result.json", "incarnations.json", "checkpoints/*.pt"]
)
def test_what_is_no_file_is_refused_in_one_line(
    run: Path, refused: Callable[..., str], name: str, made: Callable[[Path], None]
) -> None:
    for path in run.glob(name):
        path.unlink()
        try:
            made(path)
        except PermissionError as error:
            pytest.skip(f"needs the right to make a device: {error}")
    with quickly():
        said = refused(*resumed(run))
    assert "is no regular file" in said or "is not a run folder" in said


@pytest.mark.parametrize("made", [a_fifo, a_device, a_folder])
@pytest.mark.parametrize("name", ["*.manifest", "*.segments"])
def test_snapshot_that_is_no_file_starts_empty_and_says_so(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, made: Callable[[Path], None]
) -> None:
    for path in run.glob(f"checkpoints/replay_0/{name}"):
        path.unlink()
        try:
            made(path)
        except PermissionError as error:
            pytest.skip(f"needs the right to make a device: {error}")
    assert main(list(resumed(run))) == 0
    assert "replay 0: starts empty: Expect a whole snapshot" in capsys.readouterr().out


# --- content that is none ------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB + "\nseed: *j\n", "cannot be read: aliases (*name) are not allowed"),
        ("seed: " + "[" * 5_000, "cannot be read: is nested too deeply"),
        ("seed: " + "{a: " * 3_000, "cannot be read: is nested too deeply"),
        ("seed: " + "9" * 5_000, "cannot be read: Exceeds the limit"),
        (
            "seed: 0x" + "f" * 6_000,
            "`seed` is a whole number of about 7,224 digits: must be a",
        ),
        ("x" * 70_000, "cannot be read: has 70,000 bytes, more than 65,536"),
        (
            "seed: [" + "1, " * 9_000 + "]",
            "`seed` is [1, 1, 1, 1, 1, 1, ...]: must be a",
        ),
        ("preset: !!python/object/apply:os.system [touch owned]", "cannot be read: could not"),
        ('"\\e[31m": 1', "unknown key `\\x1b[31m`: must be one of"),
    ],
)
def test_settings_that_would_eat_memory_or_the_screen_are_one_short_line(
    run: Path, refused: Callable[..., str], text: str, said: str
) -> None:
    (run / "config.yaml").write_text(text)
    with quickly():
        line = refused(*resumed(run))
    assert said in line
    assert len(line) < 1_000
    assert line.isprintable()


def json_with(**changes: Any) -> Callable[[str], str]:
    return lambda before: json.dumps(json.loads(before) | changes)


@pytest.mark.parametrize(
    ("name", "spoilt", "said"),
    [
        ("result.json", json_with(seconds=None), "`seconds` is None: must be a number"),
        (
            "result.json",
            json_with(seconds=float("nan")),
            "`seconds` is nan: must be finite and >= 0",
        ),
        ("result.json", json_with(last_eval_score=[]), "`last_eval_score` is []: must be a number"),
        ("result.json", lambda _: "[" * 100_000, "is nested too deeply"),
        ("run.json", json_with(resumed=3), "`resumed` is 3: must be a list"),
        (
            "run.json",
            json_with(resumed=[{"command": 3}]),
            "`resumed[0].command` is 3: must be a list",
        ),
        ("run.json", json_with(versions=[[]]), "`versions` is [[]]: must be values by name"),
        ("incarnations.json", json_with(**{"learner/0": 2**40}), "must be <= 65,534"),
        ("incarnations.json", json_with(**{"../x/0": 1}), "must be a role and an index"),
        ("incarnations.json", lambda _: "{", "cannot be read"),
    ],
)
def test_json_of_another_shape_is_one_line_at_the_start(
    run: Path,
    refused: Callable[..., str],
    name: str,
    spoilt: Callable[[str], str],
    said: str,
) -> None:
    (run / name).write_text(spoilt((run / name).read_text()))
    line = refused(*resumed(run))
    assert line.startswith(f"{run / name}: ")
    assert said in line


def without(*names: str) -> Callable[[dict[str, Any]], None]:
    def remove(payload: dict[str, Any]) -> None:
        for name in names:
            del payload[name]

    return remove


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(payload: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for name in outer:
            payload = payload[name]
        payload[last] = value

    return change


CHECKPOINTS = [
    (without("rng"), "`rng` is missing"),
    (without("learner", "rng"), "`learner` is missing"),
    (put("rng", {"bit_generator": "PCG64"}), "Expect the state of a generator"),
    (put("rng", 3), "`rng` is 3: must be values by name"),
    (put("counters.agent_steps", -1), "`counters.agent_steps` is -1: must be >= 0"),
    (put("counters.episodes", 1.5), "`counters.episodes` is 1.5: must be a whole number"),
    (put("counters", []), "`counters` is []: must be values by name"),
    (put("learner.network", {}), "Expect the state of this configuration's network"),
    (put("learner.optimizer.name", "Sgd"), "Expect the state of optimizer Adam"),
    (put("learner.optimizer.state", {"square": [3]}), "must be a Tensor"),
    (put("spec.num_actions", 0), "cannot be used: `spec.num_actions` is 0: must be >= 1"),
    (put("format", 1), "is no checkpoint of format 2"),
    (put("format", torch.zeros(2)), "is no checkpoint of format 2"),
]


@pytest.mark.parametrize(("spoil", "said"), CHECKPOINTS)
def test_checkpoint_that_nobody_can_go_on_with_is_one_line_at_the_start(
    run: Path, refused: Callable[..., str], spoil: Callable[[dict[str, Any]], None], said: str
) -> None:
    for path in run.glob("checkpoints/checkpoint_*.pt"):
        payload = load(path)
        spoil(payload)
        save(path, payload)
    line = refused(*resumed(run))
    assert line.startswith(str(run / "checkpoints"))
    assert said in line


def test_weights_that_are_not_finite_are_passed_over(
    run: Path, refused: Callable[..., str]
) -> None:
    payload = load(newest(run))
    next(iter(payload["learner"]["network"].values())).fill_(float("nan"))
    save(newest(run), payload)
    assert "is not finite" in refused(*resumed(run))


def test_best_weights_under_the_name_of_a_checkpoint_are_passed_over_and_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = newest(run)
    payload = load(good)
    for part in ("learner", "rng"):
        del payload[part]
    del payload["counters"]["samples"], payload["counters"]["episodes"]
    payload["counters"] |= {"incarnation": 9, "save": 1}
    save(run / "checkpoints" / "checkpoint_0000099999.pt", payload | {"score": 500.0})
    assert main(list(resumed(run))) == 0
    said = capsys.readouterr().out
    assert f"resuming from {good}" in said
    assert (
        "skipped a checkpoint: " in said and "checkpoint_0000099999.pt: cannot be used: `" in said
    )


def test_archive_that_grows_when_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 100_000_000)
    with quickly(), pytest.raises(CheckpointError, match="it holds more than its own size"):
        load(path)
    assert CheckpointFolder(tmp_path, 1).newest() is None


def test_checkpoint_of_a_giant_network_makes_none(run: Path, refused: Callable[..., str]) -> None:
    payload = load(newest(run))
    payload["config"]["agent"]["hidden"] = [100_000, 100_000]
    save(newest(run), payload)
    with quickly():
        assert "the weights of this network" in refused("eval", run)


# --- the door itself -----------------------------------------------------------------------------


def test_file_is_measured_before_it_is_read(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with quickly(), pytest.raises(UnreadableFile, match=r"has 1,099,511,627,776 bytes, more than"):
        read_bytes(sparse, 1 << 20)


def test_depth_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 30 + "]" * 30)
    assert read_json(path, 1 << 20)
    path.write_text("[" * 40 + "]" * 40)
    with pytest.raises(UnreadableFile, match="is nested too deeply"):
        read_json(path, 1 << 20)


def test_values_are_shown_short_and_in_one_line() -> None:
    nested: Any = 0
    for _ in range(50):
        nested = [nested, nested]
    values = ["x" * 10**6, "\x1b[2J\n", 10**5_000, -(16**6_000), [1] * 10**6, nested, {1: {}}]
    for value in values:
        assert len(shown(value)) < 100 and shown(value).isprintable()


def test_kinds_are_exact() -> None:
    for value, kind in ((True, int), (1.0, int), ("1", float), (2**63, int), (b"x", str)):
        with pytest.raises(Misfit):
            fit(value, kind)
    assert fit([1, 2], tuple[float, ...]) == (1.0, 2.0)


def test_settings_through_a_link_of_the_user_s_own_are_read(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text("seed: 5\n")
    (tmp_path / "mine.yaml").symlink_to(tmp_path / "real.yaml")
    with pytest.raises(ConfigError, match="is no regular file"):
        read_file(tmp_path / "mine.yaml")
    command, problems = read_train(["--config", str(tmp_path / "mine.yaml")])
    assert (command.settings.seed, problems) == (5, [])
    assert Config().seed == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--actors", "1000000000"), "must be <= 100,000"),
        (("--actors", "90000"), "takes about 18,"),
        (("--agent.network", "mlp", "--agent.hidden", "1000000", "1000000"), "--agent.hidden"),
        (("--replay.capacity", "100000000000", "--replay.max-bytes", "1000000000"), "takes about"),
        (("--seed", "9" * 4_000), "--seed a whole number of about 4,000 digits: must be <="),
        (("--learner.batch-size", "9" * 4_000), "must be <= 10,000,000"),
        (("--replay.samples-per-insert", "1e300"), "must be <= 1e+06"),
        (("--health.hang-s", "1e300"), "must be <= "),
    ],
)
def test_what_no_machine_holds_is_one_line(
    refused: Callable[..., str], arguments: tuple[str, ...], said: str
) -> None:
    with quickly():
        assert said in refused("--preset", "cartpole", *arguments)


def test_home_is_meant_where_a_shell_leaves_the_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    assert str(tmp_path / "taken") in refused("--run-dir=~/taken")
    assert "nobody has such a home folder" in refused("--run-dir=~nobody-of-that-name/x")
    assert str(tmp_path / "none.yaml") in refused("--config", "~/none.yaml")


def test_real_process_with_a_stranger_s_run_ends_with_2_and_no_traceback(
    run: Path, tmp_path: Path
) -> None:
    (run / "payload.py").write_text(PAYLOAD)
    with_id(run, "run.payload:Evil-v0")
    done = launch("--resume", str(run), environment={"PYTHONPATH": str(run.parent)}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert not (run / "it ran").exists()


# --- what a file says of itself ------------------------------------------------------------------


def test_tensor_that_speaks_of_more_than_there_is_is_refused(
    run: Path, refused: Callable[..., str]
) -> None:
    for path in run.glob("checkpoints/checkpoint_*.pt"):
        payload = load(path)
        name = next(iter(payload["learner"]["network"]))
        payload["learner"]["network"][name] = torch.zeros(1).expand(10**5, 10**5)
        torch.save(payload, path)  # `save` refuses it, too
    with quickly():
        assert "bytes of its own" in refused(*resumed(run))


def test_archive_that_grows_is_no_checkpoint_for_whoever_asks_for_its_age(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_0000000001.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data.pkl", "w", force_zip64=True) as member:
            for _ in range(60):
                member.write(b"\0" * (1 << 24))
    code = (
        "import resource, sys; from learner.checkpoint import CheckpointFolder\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"CheckpointFolder({str(tmp_path)!r}, 1).newest()\n"
        "grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert grown_kb < 500_000, grown_kb"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_chunk_of_any_size_that_a_manifest_names_starts_empty_and_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in run.glob("checkpoints/replay_0/*.manifest"):
        manifest = unpack_manifest(path.read_bytes())
        runs = tuple(r._replace(chunk=r.chunk._replace(num_bytes=2**61)) for r in manifest.runs)
        path.write_bytes(b"".join(pack_manifest(manifest._replace(runs=runs))))
    assert main(list(resumed(run))) == 0
    assert "replay 0: starts empty: Expect a whole snapshot" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["\x1b[2J", "\ud800", "x" * 10_000])
def test_text_that_cannot_be_printed_is_no_setting(
    run: Path, refused: Callable[..., str], text: str
) -> None:
    settings = (run / "config.yaml").read_text()
    changed = settings.replace("preset: cartpole", f"preset: {json.dumps(text)}")
    (run / "config.yaml").write_text(changed)
    said = refused(*resumed(run))
    assert "`preset` is " in said and "must be printable text of <= 200 characters" in said


@pytest.mark.parametrize("text", ["\x1b[2J", "\ud800", "x" * 1_000_000])
def test_what_a_checkpoint_says_of_its_game_is_told_in_one_short_line(
    run: Path, capfd: pytest.CaptureFixture[str], text: str
) -> None:
    payload = load(newest(run))
    payload["spec"]["protocol"] = text
    save(newest(run), payload)
    assert main(["eval", str(run), "--episodes", "1"]) == 0
    said = capfd.readouterr().out
    assert "\x1b" not in said and len(said) < 3_000


def test_what_run_json_says_is_drawn_and_told_as_it_is(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["\x1b[2J", "\ud800", "$\\foo$", "x" * 1_000_000]
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(about | {"command": words}))
    renamed = run.rename(run.with_name("costs $\\foo$"))
    for arguments in ((str(renamed),), (str(renamed), str(renamed))):
        assert main(["plot", *arguments]) == 0
    said = capfd.readouterr().out
    assert "\x1b" not in said and len(said) < 12_000


def test_time_that_events_tell_does_not_lock_a_run(run: Path) -> None:
    with event_files(run)[-1].open("ab") as file:
        for wall_s in (1e300, float("nan"), 1.7e9):
            RecordWriter(file).write(event_pb2.Event(wall_time=wall_s).SerializeToString())
    assert main([*resumed(run)[:3], "--total-frames", "1150"]) == 0
    assert main(["plot", str(run), "--x", "minutes"]) == 0


def test_newest_state_is_newest_also_where_incarnations_could_not_be_kept(run: Path) -> None:
    """A full disk keeps `incarnations.json` from being written, and has room again later."""
    before = (run / "incarnations.json").read_bytes()
    assert main([*resumed(run), "--checkpoint.every-minutes", "0.05"]) == 0
    (run / "incarnations.json").write_bytes(before)
    more = ("--total-frames", "2600", "--checkpoint.every-minutes", "1")
    assert main([*resumed(run)[:3], *more]) == 0
    counters = load(CheckpointFolder(run / "checkpoints", 1).newest() or run)["counters"]
    assert counters["agent_steps"] >= 2600


# --- paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["loop", "~nobody-of-that-name/x"])
def test_path_that_leads_nowhere_is_one_line(
    run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(run.parent)
    Path("loop").symlink_to("loop")
    assert "nowhere" in refused("eval", run, "--checkpoint", path)
    assert path in refused("--config", path)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a b'\"$`\\", "-x", "\udc80\udcff", "~", "é"])
def test_hint_can_be_pasted_whatever_the_folder_is_called(
    run: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(run.parent)
    run.rename(run.parent / name)
    said = refused("--preset", "cartpole", f"--run-dir={Path(name).absolute()}")
    pasted = said.partition("--resume ")[2].removesuffix(", or name another")
    done = subprocess.run(["bash", "-c", f"printf %s {pasted}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(Path(name).absolute())


def test_what_a_killed_start_left_keeps_nobody_from_starting(tmp_path: Path) -> None:
    (tmp_path / ".troop-0123456789abcdef").write_text("half")
    arguments = [*NEW, "--total-frames", "1100", "--run-dir", str(tmp_path)]
    assert main(arguments) == 0
    assert not list(tmp_path.glob(".troop-*"))


def test_video_and_plots_are_written_past_whatever_has_their_names(run: Path) -> None:
    step = load(newest(run))["counters"]["learner_step"]
    video = run / "videos" / f"cartpole_v1_{step:010d}.mp4"
    os.mkfifo(video.with_suffix(".partial.mp4"))
    os.mkfifo(run / "plots" / "return.png")
    with quickly():
        assert main(["eval", str(run), "--episodes", "1", "--video"]) == 0
        assert main(["plot", str(run)]) == 0
    assert video.is_file() and (run / "plots" / "return.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("eval", "{run}", "--episodes", "1" + "0" * 18), "--episodes"),
        (("plot", "{run}", "--out", "/dev/null"), "/dev/null: cannot be written"),
        (("bench", "actor", "--json", "/nowhere/x.json"), "--json /nowhere/x.json: must be"),
        (("--env.noop-max", "2147483647"), "must be <= 100,000"),
        (("--actor.envs", "30000"), "--actor.envs 30000: takes about"),
        (("--preset", "cartpole", "--agent.hidden", *["1"] * 101), "must be at most 100 widths"),
    ],
)
def test_what_no_command_can_do_is_one_line(
    run: Path, refused: Callable[..., str], arguments: tuple[str, ...], said: str
) -> None:
    with quickly():
        assert said in refused(*(word.format(run=run) for word in arguments))
