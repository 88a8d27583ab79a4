"""Run folders that somebody changed at random: a line or a run, soon, and no code of theirs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from driver.view.curve_sources import load_curves
from driver.view.provenance import provenance
from launch import main
from learner.checkpoint import CheckpointError, load, save

# How many folders are tried; more with TROOP_FUZZ=2000.
EXAMPLES = int(os.environ.get("TROOP_FUZZ", "30"))
# Of a processor, which a machine that others use, too, does not stretch; and until what waits for
# something that never comes counts as hung.
QUICK_S = 5.0
HANG_S = 60.0

NEW = ("--preset", "cartpole", "--serial", "--seed", "7", "--evaluator.episodes", "1")

NUMBERS = st.one_of(
    st.integers(-2, 2),
    st.sampled_from([2**31, 2**40, 2**63, -(2**63), 10**400, 10**4_299]),
    st.floats(),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20), st.just("x" * 100_000))
JSON = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
DEEP = st.integers(0, 3_000).map(lambda depth: "[" * depth + "]" * depth)
IDS = st.sampled_from(
    ["run.payload:Evil-v0", "payload:Evil-v0", "os:system", ":", "CartPole-v1:", "x"]
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A short run that ended well; each example changes a copy."""
    path = tmp_path_factory.mktemp("trained") / "run"
    threads = torch.get_num_threads()
    assert main([*NEW, "--total-frames", "1100", "--run-dir", str(path)]) == 0
    yield path
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


# --- what may be changed -------------------------------------------------------------------------

Change = Callable[[Path], None]


def put_somewhere(content: Any, where: list[int], value: Any) -> Any:
    """Return plain content with something in it replaced; `where` chooses, level by level."""
    if not where or not isinstance(content, dict | list) or not content:
        return value
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[where[0] % len(keys)]
    changed = content.copy()
    changed[key] = put_somewhere(content[key], where[1:], value)
    return changed


PLACES = st.lists(st.integers(0, 100), max_size=4)


def raw(data: st.DataObject, path: Path) -> None:
    """Change bytes."""
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "more", "other", "deep"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif kind == "flip" and content:
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "more":
        content += data.draw(st.binary(max_size=99))
    elif kind == "other":
        content = bytearray(data.draw(st.binary(max_size=99)))
    else:
        content = bytearray(data.draw(DEEP).encode())
    path.write_bytes(content)


def replaced(data: st.DataObject, path: Path) -> None:
    """Put something in its place that is no file, or another one."""
    kind = data.draw(
        st.sampled_from(["fifo", "folder", "zero", "link", "hard link", "copy", "gone"])
    )
    others = sorted(other for other in path.parent.iterdir() if other.is_file())
    other = data.draw(st.sampled_from(others))
    content = other.read_bytes()
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("zero", "link"):
        path.symlink_to("/dev/zero" if kind == "zero" else path.parents[1] / "precious")
    elif kind == "hard link" and other != path:
        path.hardlink_to(other)
    elif kind == "copy":
        path.write_bytes(content)


def in_json(data: st.DataObject, path: Path) -> None:
    content = json.loads(path.read_text())
    content = put_somewhere(content, data.draw(PLACES), data.draw(JSON))
    path.write_text(json.dumps(content))


def in_yaml(data: st.DataObject, path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    value = data.draw(JSON | IDS)
    if data.draw(st.booleans()):
        content["env"]["id"] = data.draw(IDS)
    path.write_text(yaml.safe_dump(put_somewhere(content, data.draw(PLACES), value)))


def in_checkpoint(data: st.DataObject, path: Path) -> None:
    tensors = st.sampled_from(
        [torch.zeros(3), torch.full((2, 2), float("nan")), torch.zeros(0), torch.ones(4).int()]
    )
    value = data.draw(PLAIN | IDS | tensors | st.lists(st.integers(), max_size=2))
    save(path, put_somewhere(load(path), data.draw(PLACES), value))


def in_manifest(data: st.DataObject, path: Path) -> None:
    content = path.read_bytes()
    magic, layout, length = struct.unpack_from("<4sIQ", content)
    plain = json.loads(content[16 : 16 + length])
    text = json.dumps(put_somewhere(plain, data.draw(PLACES), data.draw(JSON))).encode()
    rest = bytearray(content[16 + length : -4])
    if data.draw(st.booleans()) and rest:
        rest[data.draw(st.integers(0, len(rest) - 1))] ^= data.draw(st.integers(1, 255))
    body = struct.pack("<4sIQ", magic, layout, len(text)) + text + rest
    path.write_bytes(body + struct.pack("<I", zlib.crc32(body)))


def in_events(data: st.DataObject, path: Path) -> None:
    length = data.draw(st.sampled_from([0, 5, 2**31, 2**40, 2**63 - 1, 2**64 - 5]))
    header = struct.pack("<Q", length)
    record = header + struct.pack("<I", masked_crc32c(header)) + data.draw(st.binary(max_size=40))
    path.write_bytes(path.read_bytes() + record)


SUFFIXES: dict[str, Callable[[st.DataObject, Path], None]] = {
    ".json": in_json,
    ".yaml": in_yaml,
    ".pt": in_checkpoint,
    ".manifest": in_manifest,
}


def change(data: st.DataObject, run: Path) -> None:
    """Change one file of a run."""
    files = sorted(
        path
        for path in run.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size
    )
    path = data.draw(st.sampled_from(files))
    known = in_events if "tfevents" in path.name else SUFFIXES.get(path.suffix, raw)
    # What was changed before may not be readable any more, to be changed again.
    with suppress(CheckpointError, ValueError, struct.error, LookupError, yaml.YAMLError):
        data.draw(st.sampled_from([known, known, raw, replaced]))(data, path)


# --- what must come of it ------------------------------------------------------------------------


@contextmanager
def quickly() -> Iterator[None]:
    def too_long(number: int, frame: object) -> None:
        raise AssertionError(f"took {QUICK_S} s of a processor, or hung")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, QUICK_S)}
    timers[signal.SIGALRM] = (signal.ITIMER_REAL, HANG_S)
    before = {number: signal.signal(number, too_long) for number in timers}
    for timer, limit_s in timers.values():
        signal.setitimer(timer, limit_s)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


def command(*arguments: str) -> int:
    """Run a command and return its exit code; anything else that it raises is a failure."""
    try:
        with quickly():
            return main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == 30,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_changed_run_is_refused_in_a_line_or_goes_on(
    data: st.DataObject,
    trained: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    place = tmp_path_factory.mktemp("changed")
    try:
        run = Path(shutil.copytree(trained, place / "run"))
        for folder in (place, run):
            (folder / "payload.py").write_text(
                "from pathlib import Path\nPath(__file__).with_name('it ran').touch()\n"
            )
        (place / "precious").write_text("precious")
        for _ in range(data.draw(st.integers(1, 3))):
            change(data, run)
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(place))
            assert command("eval", str(run), "--episodes", "1") in (0, 2)
            assert command("--resume", str(run), "--serial", "--total-frames", "1150") in (0, 2)
            try:
                with quickly():
                    for curves in load_curves([run]):
                        provenance(curves)
            except ValueError as error:
                assert "\n" not in str(error)
        assert (place / "precious").read_text() == "precious"
        assert not list(place.rglob("it ran"))
    finally:
        shutil.rmtree(place)
