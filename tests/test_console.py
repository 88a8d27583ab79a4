"""Console: a live block on a terminal, plain lines elsewhere, and the log."""

from __future__ import annotations

import io
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from disks import SmallDisk, files_no_longer_than

from driver.view import console as console_module
from driver.view.console import Console
from driver.view.quantities import (
    format_bytes,
    format_count,
    format_duration,
    format_percent,
    format_score,
)
from driver.view.status import RunStatus, status_block, status_line

ROOT = Path(__file__).parents[1]
NAN = math.nan
STATUS = RunStatus(
    frames=12_400_000,
    total_frames=50_000_000,
    episodes=1_630,
    total_episodes=None,
    eta_s=24_060.0,
    frames_per_s=1563.2,
    learner_steps_per_s=24.13,
    train_return=-3.21,
    eval_score=12.41,
    human_normalized=0.912,
    samples_per_insert=8.021,
    replay_fill=0.6,
    replay_bytes=3.41e9,
    policy_lag=120.4,
    limiting_stage="acting",
    elapsed_s=7980.0,
)
UNKNOWN = RunStatus(
    frames=0,
    total_frames=50_000_000,
    episodes=0,
    total_episodes=None,
    eta_s=NAN,
    frames_per_s=NAN,
    learner_steps_per_s=NAN,
    train_return=NAN,
    eval_score=NAN,
    human_normalized=NAN,
    samples_per_insert=NAN,
    replay_fill=0.0,
    replay_bytes=0,
    policy_lag=NAN,
    limiting_stage="starting",
    elapsed_s=0.0,
)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and shows what one would."""

    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        """Return what is on the screen: colours dropped, cursor moves and erased lines obeyed."""
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", self.getvalue()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif part == "\x1b[2K":
                rows[row] = ""
            elif re.fullmatch(r"\x1b\[\d+A", part):
                row -= int(part[2:-1])
            elif part.endswith("m") and part.startswith("\x1b"):
                pass
            else:
                assert not part.startswith("\x1b"), f"unknown control {part!r}"
                rows[row] = rows[row][:column] + part + rows[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in rows]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    return Terminal()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (24.13, "24.1"),
        (999.4, "999"),
        (999.5, "1.0k"),
        (99_940, "99.9k"),
        (99_950, "100k"),
        (999_500, "1.0M"),
        (5e15, "5000T"),
        (-1_500, "-1.5k"),
        (NAN, "-"),
        (math.inf, "-"),
    ],
)
def test_counts_are_short_and_never_show_a_thousand_of_a_unit(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (59.6, "1 min"),
        (605, "10 min 5 s"),
        (24_060, "6 h 41 min"),
        (86_400 + 59, "1 d"),
        (math.inf, "-"),
    ],
)
def test_durations_show_their_two_largest_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_bytes_scores_and_shares_for_people() -> None:
    assert [format_bytes(value) for value in (812, 3.41e9, NAN)] == ["812 B", "3.4 GB", "-"]
    assert [format_score(value) for value in (-3.21, 12_345.6, NAN)] == ["-3.2", "12,346", "-"]
    assert [format_percent(share) for share in (0.604, 1.3, NAN)] == ["60%", "130%", "-"]


def test_status_line_tells_every_number_in_ascii() -> None:
    line = status_line(STATUS._replace(total_episodes=2_000))
    for number in (
        *("12.4M", "50.0M", "1,630", "2,000", "(82%)", "6 h 41 min", "1.6k", "24.1", "-3.2"),
        *("12.4", "91%", "8.02", "60%", "3.4 GB", "120", "acting"),
    ):
        assert number in line
    assert line.isascii() and "\n" not in line
    assert "nan" not in status_line(UNKNOWN).lower()


def test_piped_output_gets_a_line_at_most_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    console = Console(stream=stream, log_file=None, clock=clock)
    for second in range(21):
        clock.now_s = 100.0 + second
        console.update(STATUS._replace(frames=second))
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0].split()[-1] for line in lines] == ["0", "10", "20"]
    assert "\x1b" not in stream.getvalue()
    console.close()
    assert stream.getvalue().splitlines() == lines, "the last status was out already"


def test_closing_prints_the_last_status_where_it_was_not_out_yet() -> None:
    stream, clock = io.StringIO(), Clock()
    with Console(stream=stream, log_file=None, clock=clock) as console:
        console.update(STATUS._replace(frames=1))
        console.update(STATUS._replace(frames=2))
    assert len(stream.getvalue().splitlines()) == 2
    console.close()
    assert len(stream.getvalue().splitlines()) == 2


def test_notes_are_printed_at_once_and_word_for_word() -> None:
    stream = io.StringIO()
    text = "run folder: [bold]/very/long[/bold] :smile: " + "x" * 300
    Console(stream=stream, log_file=None, clock=Clock()).note(text)
    assert stream.getvalue() == text + "\n"


def test_nothing_is_printed_by_a_console_that_was_told_nothing() -> None:
    stream = io.StringIO()
    with Console(stream=stream, log_file=None, clock=Clock()):
        pass
    assert stream.getvalue() == ""


def test_log_gets_notes_and_a_status_line_a_minute_with_the_time(tmp_path: Path) -> None:
    log, clock = tmp_path / "log.txt", Clock()
    log.write_text("from the run before\n")
    console = Console(stream=io.StringIO(), log_file=log, clock=clock)
    for second in range(121):
        clock.now_s = 100.0 + second
        console.update(STATUS._replace(frames=second))
    console.note("actor 3 restarted")
    console.update(STATUS._replace(frames=500))
    console.close()
    first, *lines = log.read_text().splitlines()
    assert first == "from the run before"
    stamps, texts = zip(*(re.split(r"(?<=[+-]\d\d:\d\d) ", line) for line in lines), strict=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", s) for s in stamps)
    assert [text.split("/")[0] for text in texts] == ["0", "60", "120", "actor 3 restarted", "500"]


def test_terminal_shows_one_block_with_notes_and_prints_above_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    with Console(stream=terminal, log_file=None, clock=Clock()) as console:
        console.note("before")
        for frames in (1_000, 2_000, 3_000):
            console.update(STATUS._replace(frames=frames))
            console.note(f"note at {frames}")
            print(f"print at {frames}")
        console.update(STATUS)
    assert sys.stdout is terminal
    print("after")
    rows = terminal.rows()
    above = [f"{how} at {frames}" for frames in (1_000, 2_000, 3_000) for how in ("note", "print")]
    assert rows[:7] == ["before", *above]
    assert rows[7].startswith("╭─ Troop ─") and rows[-3].startswith("╰─")
    assert rows[-2:] == ["after", ""]
    assert "12.4M" in "\n".join(rows[8:-3]), "the newest status"
    assert "\n".join(rows).count("Troop") == 1


@pytest.mark.parametrize("columns", [20, 200])
def test_block_keeps_its_height_and_fits_at_any_width(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with Console(stream=terminal, log_file=None, clock=Clock()) as console:
        console.update(UNKNOWN)
        console.update(STATUS)
        console.update(STATUS._replace(total_episodes=2_000))
    rows = terminal.rows()
    assert len(rows) == 8 + 1
    assert max(map(len, rows)) <= min(columns, 100)


def test_terminal_is_given_back_after_ctrl_c(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    with (
        pytest.raises(KeyboardInterrupt),
        Console(stream=terminal, log_file=None, clock=Clock()) as console,
    ):
        console.update(STATUS)
        raise KeyboardInterrupt
    assert sys.stdout is terminal
    assert terminal.rows()[-1] == "", "the block ends with a line of its own"


def test_cursor_is_never_hidden_so_that_even_a_killed_run_leaves_it(terminal: Terminal) -> None:
    with Console(stream=terminal, log_file=None, clock=Clock()) as console:
        console.update(STATUS)
    assert "\x1b[?25" not in terminal.getvalue()


def test_note_from_within_an_update_is_not_a_deadlock(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(stream=terminal, log_file=None, clock=Clock())

    def interrupted(status: RunStatus) -> object:  # as a signal handler would
        console.note("signal")
        return status_block(status)

    monkeypatch.setattr(console_module, "status_block", interrupted)
    console.update(STATUS)
    console.update(STATUS)
    console.close()
    assert terminal.rows().count("signal") == 2


def test_dumb_terminal_gets_plain_lines(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    with Console(stream=terminal, log_file=None, clock=Clock()) as console:
        console.update(STATUS)
    (line,) = terminal.getvalue().splitlines()
    assert status_line(STATUS) in line


def test_errors_sent_to_a_file_stay_there(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    with Console(stream=terminal, log_file=None, clock=Clock()) as console:
        console.update(STATUS)
        print("oh", file=sys.stderr)
    assert errors.getvalue() == "oh\n"


SCRIPT = """
import sys, time
from pathlib import Path
from driver.view.console import Console
from driver.view.status import RunStatus
STATUS = RunStatus(*[1] * 14, "acting", 1)
with Console(stream=sys.stdout, log_file=Path(sys.argv[1]), clock=time.monotonic) as console:
    console.note("naïve")
    sys.stdin.readline()
    console.update(STATUS)
    console.note("second")
    print("third", flush=True)
"""


def test_run_goes_on_with_the_log_alone_when_nobody_reads_its_output(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(log)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"na\\xefve\n"
        process.stdout.close()
        process.stdin.write(b"\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0
    logged = log.read_text()
    assert "the output is gone ([Errno 32] Broken pipe)" in logged
    assert "second" in logged


def test_terminal_that_hangs_up_is_let_go(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal)
    log = tmp_path / "log.txt"
    with Console(stream=terminal, log_file=log, clock=Clock()) as console:
        console.update(STATUS)

        def hung_up(text: str) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(terminal, "write", hung_up)
        console.update(STATUS)
        assert sys.stdout is terminal, "prints no longer pass through the block"
        console.note("still here")
    assert "the output is gone ([Errno 5] Input/output error)" in log.read_text()
    assert "still here" in log.read_text()


def test_log_that_cannot_be_written_is_said_once_and_goes_on_when_it_can(
    tmp_path: Path, small_disk: SmallDisk
) -> None:
    log, stream = small_disk.path / "log.txt", io.StringIO()

    def logged() -> list[str]:
        return [line.split(" ", 2)[2] for line in log.read_text().split("\n") if line]

    with Console(stream=stream, log_file=log, clock=Clock()) as console:
        console.note("one")
        with log.open("a") as file:  # of the file's page, too, nothing is left
            file.write("\n" * (os.sysconf("SC_PAGE_SIZE") - log.stat().st_size))
        small_disk.fill()
        console.note("two")
        console.note("three")
        console.update(STATUS)
        assert logged() == ["one"]
        small_disk.free()
        console.note("four")
        small_disk.set_read_only(read_only=True)
        console.note("five")
        small_disk.set_read_only(read_only=False)
    warning = f"{log}: cannot be written ({{}}); until it can, what is said here is not logged"
    assert stream.getvalue().splitlines() == [
        "one",
        "two",
        warning.format("No space left on device"),
        "three",
        f"[{format_duration(STATUS.elapsed_s)}] {status_line(STATUS)}",
        "four",
        "five",
        warning.format("Read-only file system"),
    ]
    assert logged() == ["one", "(could not be written before this: 3)", "four"]


def test_log_never_holds_a_part_of_a_line(tmp_path: Path) -> None:
    log, stream = tmp_path / "log.txt", io.StringIO()
    with Console(stream=stream, log_file=log, clock=Clock()) as console:
        console.note("one")
        whole = log.read_bytes()
        with files_no_longer_than(len(whole) + 10):
            console.note("two")
        assert log.read_bytes() == whole
        console.note("three")
    assert [line.split(" ", 2)[2] for line in log.read_text().splitlines()] == [
        "one",
        "(could not be written before this: 1)",
        "three",
    ]


def test_neither_output_nor_log_is_missed_by_the_run(tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    log = tmp_path / "removed" / "log.txt"
    with Console(stream=Gone(), log_file=log, clock=Clock()) as console:
        console.note("unheard")
        console.update(STATUS)
        log.parent.mkdir()
        console.note("heard")
    lines = [line.split(" ", 2)[2] for line in log.read_text().splitlines()]
    assert lines[1] == "heard"
