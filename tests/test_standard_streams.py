"""Commands whose output is closed, full, gone or ASCII: real processes, as shells start them."""

from __future__ import annotations

import os
import pty
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launching import PATIENCE_S, ROOT, launch, result_of

TRAIN = ("--preset", "cartpole", "--serial", "--total-frames", "1200", "--evaluator.no-enabled")
# What a shell does with an output: `>&-`, `| true` and `> /dev/full`.
CLOSED, GONE, FULL = "closed", "gone", "full"


def run(
    arguments: tuple[str, ...],
    stdout: str,
    stderr: str | None = None,
    script: str = str(ROOT / "launch.py"),
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run launch.py, or another script, with outputs that cannot be written."""
    outputs: list[int] = []
    for what in (stdout, stderr):
        if what == FULL:
            outputs.append(os.open("/dev/full", os.O_WRONLY))
        elif what == GONE:
            reader, writer = os.pipe()
            os.close(reader)
            outputs.append(writer)
        else:
            outputs.append(-1)

    def close() -> None:
        for descriptor, what in ((1, stdout), (2, stderr)):
            if what == CLOSED:
                os.close(descriptor)

    try:
        return subprocess.run(
            [sys.executable, script, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=outputs[0] if outputs[0] >= 0 else subprocess.PIPE,
            stderr=outputs[1] if outputs[1] >= 0 else subprocess.PIPE,
            preexec_fn=close,
            env={**os.environ, **environment},
            text=True,
            timeout=PATIENCE_S,
        )
    finally:
        for descriptor in outputs:
            if descriptor >= 0:
                os.close(descriptor)


@pytest.fixture(scope="module")
def finished(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that commands may draw and play."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("finished") / "run"))


# Each command in a fork of its own, so that the modules, some seconds, are imported once.
COMMANDS = """
import os, runpy, shlex, sys
root, how, *commands = sys.argv[1:]
sys.path.insert(0, root)
import driver.plot_command, launch
for command in commands:
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(2, b"[%d]" % code)
        continue
    if how == "closed":
        os.close(1)  # not before the modules: what one of them opens would be taken for it
    sys.argv = ["launch.py", *shlex.split(command)]
    runpy.run_path(root + "/launch.py", run_name="__main__")
"""


def run_each(
    folder: Path, how: str, *commands: str, **environment: str
) -> tuple[str, list[tuple[str, str]]]:
    """Return what the commands print, and each one's standard error and exit code."""
    script = folder / "commands.py"
    script.write_text(COMMANDS)
    stdout = how if how in (GONE, FULL) else ""
    done = run((str(ROOT), how, *commands), stdout, script=str(script), **environment)
    assert done.returncode == 0, done
    said = re.split(r"\[(\d+)\]", done.stderr)
    return done.stdout or "", list(zip(said[:-1:2], said[1::2], strict=True))


@pytest.mark.parametrize("how", [CLOSED, GONE, FULL])
def test_command_whose_output_is_lost_says_one_line_or_nothing(
    tmp_path: Path, finished: Path, how: str
) -> None:
    done = ("--help", f"eval {finished} --episodes 1", f"plot {finished}")
    _, (*said, (refusal, code)) = run_each(tmp_path, how, *done, "--x 1")
    full = "launch.py: standard output: cannot be written: No space left on device\n"
    assert said == [(full if how == FULL else "", "0")] * len(done)
    assert code == "2"
    assert "Traceback" not in refusal


@pytest.mark.parametrize("how", [CLOSED, GONE, FULL])
def test_run_whose_outputs_are_lost_goes_on_with_its_log(tmp_path: Path, how: str) -> None:
    path = tmp_path / "run"
    assert run((*TRAIN, "--run-dir", str(path)), how, how).returncode == 0
    assert result_of(path)["end_reason"] == "done"
    log = (path / "log.txt").read_text()
    assert "saved learner step" in log
    assert "Traceback" not in log
    assert log.count("the output is gone") == (0 if how == CLOSED else 1)
    for file in path.iterdir():  # none of them was the standard output
        assert file.is_dir() or b"run folder" not in file.read_bytes() or file.name == "log.txt"


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from driver.view.standard_streams import take_standard_streams
take_standard_streams()
"""


def test_what_the_shell_closed_is_nothing_that_is_opened_later(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(root=str(ROOT))
        + "import subprocess\n"
        + "file = open(sys.argv[1], 'w')\n"
        + "print('not for the file', flush=True)\n"
        + "subprocess.run(['sh', '-c', 'echo neither; echo this >&2'], check=True)\n"
        + "file.write(str(file.fileno() > 2))\n"
    )
    done = run((str(tmp_path / "file"),), CLOSED, CLOSED, script=str(script))
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "True"


def test_pipe_that_does_not_wait_for_its_reader_loses_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT)) + "print('x' * 1_000_000, end='')\n")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen([sys.executable, str(script)], stdout=writer) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            assert pipe.read() == b"x" * 1_000_000
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("encoding", "said"), [("ascii", "l\\xe4uf-\\u8dd1"), ("utf-8", "läuf-\u8dd1")]
)
def test_name_that_the_encoding_does_not_know_is_escaped(
    tmp_path: Path, finished: Path, encoding: str, said: str
) -> None:
    path = tmp_path / "läuf-\u8dd1"
    path.symlink_to(finished)
    shown, (drawn, (refusal, code)) = run_each(
        tmp_path, "", f"plot {path}", f"plot {path}-", PYTHONIOENCODING=encoding
    )
    assert drawn == ("", "0")
    assert code == "2"
    assert said in shown
    assert said in refusal
    assert len(refusal.splitlines()) == 1


def test_folder_whose_name_is_no_text_can_be_trained_in_and_drawn(tmp_path: Path) -> None:
    name = os.fsdecode(b"run-\xff")
    assert launch(*TRAIN, "--run-dir", name, cwd=tmp_path).returncode == 0
    done = launch("plot", name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run-\\udcff/plots/return.png" in done.stdout


@pytest.mark.parametrize(
    "environment",
    [{"COLUMNS": "0"}, {"COLUMNS": "1"}, {"COLUMNS": "x", "NO_COLOR": "1", "TERM": "dumb"}],
)
def test_terminal_of_any_size_and_kind_shows_the_help(environment: dict[str, str]) -> None:
    shown = on_terminal(("eval", "--help"), {"TERM": "xterm", **environment})
    words = re.sub(r"\x1b\[[0-9;]*m", "", shown).split()
    assert words[:3] == ["usage:", "launch.py", "eval"]


@pytest.mark.parametrize("environment", [{"COLUMNS": "0"}, {"COLUMNS": "1"}])
def test_terminal_of_any_size_shows_the_run(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = (*TRAIN, "--run-dir", str(tmp_path / "run"))
    shown = on_terminal(arguments, {"TERM": "xterm", **environment})
    assert "done: {'frames': 1200" in shown


def on_terminal(arguments: tuple[str, ...], environment: dict[str, str]) -> str:
    """Return what launch.py shows on a terminal of its own; it must end with 0."""
    terminal, side = pty.openpty()

    def limit() -> None:  # a loop without end would take all memory
        resource.setrlimit(resource.RLIMIT_CPU, (120, 120))

    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        stdin=side,
        stdout=side,
        stderr=side,
        preexec_fn=limit,
        env={**os.environ, **environment},
    )
    os.close(side)
    shown = b""
    try:
        while data := os.read(terminal, 65_536):
            shown += data
    except OSError:  # the last one has closed it
        pass
    os.close(terminal)
    assert process.wait(PATIENCE_S) == 0, shown.decode(errors="replace")
    return shown.decode(errors="replace")
