"""What a person sees of a run: a live block on a terminal, plain lines elsewhere, and `log.txt`."""

from __future__ import annotations

import atexit
import errno
import math
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from types import TracebackType
from typing import NamedTuple, TextIO

import rich.console
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from driver.view.log_file import LogFile
from driver.view.standard_streams import StandardStream, point_at_null

# Seconds between two status lines where output is piped, and between two in `log.txt`.
PLAIN_PERIOD_S = 10.0
LOG_PERIOD_S = 60.0

# The block is no wider than this: on a wide terminal its columns would drift apart.
_MAX_WIDTH = 100

_HINTS = {
    "acting": "more actors, on more cores, would make the run faster",
    "learning": "a faster device, or fewer samples per insert, would make the run faster",
    "replay": "more shards would make the run faster",
}


class RunStatus(NamedTuple):
    """Everything the status block shows. NaN (or None) wherever there is nothing to tell yet.

    Fields:
      frames: emulator frames that replay has accepted.
      total_frames: where the run ends.
      episodes: training games that ended.
      total_episodes: where the run ends if that comes first; None: by frames alone.
      eta_s: seconds until either.
      frames_per_s: emulator frames per second, lately.
      learner_steps_per_s: gradient updates per second, lately.
      train_return: mean raw return of the latest training games.
      eval_score: mean raw return of the latest evaluation.
      human_normalized: the same with random play 0 and human play 1; None for a game without
        published scores.
      samples_per_insert: times a transition is trained on, so far.
      replay_fill: live transitions over the capacity, from 0 to 1.
      replay_bytes: compressed bytes of the live segments.
      policy_lag: learner steps between the weights that act and the newest.
      limiting_stage: what limits the run now: "acting", "replay" or "learning", or another reason
        in a few words.
      elapsed_s: seconds since this run (or its resumption) started.
    """

    frames: int
    total_frames: int
    episodes: int
    total_episodes: int | None
    eta_s: float
    frames_per_s: float
    learner_steps_per_s: float
    train_return: float
    eval_score: float
    human_normalized: float | None
    samples_per_insert: float
    replay_fill: float
    replay_bytes: float
    policy_lag: float
    limiting_stage: str
    elapsed_s: float


def format_count(value: float) -> str:
    """Return a count or rate for people: 950, 24.1, 1.2M; "-" for NaN."""
    return _scaled(value, ("", "k", "M", "B", "T"))


def format_bytes(value: float) -> str:
    """Return bytes for people, in powers of 1000: 812 B, 3.4 GB; "-" for NaN."""
    return _scaled(value, (" B", " kB", " MB", " GB", " TB"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    if not math.isfinite(value):
        return "-"
    power = 0
    # 999.5 and not 1000, since that is what rounds to 1000: "1000k" never shows.
    while abs(value) >= 999.5 and power < len(units) - 1:
        value /= 1000
        power += 1
    if power == 0:
        return f"{value:.3g}{units[0]}"
    return f"{value:.{1 if abs(value) < 99.95 else 0}f}{units[power]}"


def format_duration(seconds: float) -> str:
    """Return a time span by its two largest units: 45 s, 6 h 41 min; "-" for NaN or infinity."""
    if not math.isfinite(seconds):
        return "-"
    left = max(0, round(seconds))
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    largest = next((i for i, (_, size) in enumerate(units) if left >= size), len(units) - 1)
    parts: list[str] = []
    for unit, size in units[largest : largest + 2]:
        count, left = divmod(left, size)
        if count or not parts:
            parts.append(f"{count} {unit}")
    return " ".join(parts)


def format_score(value: float) -> str:
    """Return a game's score for people: -3.2, 12,346; "-" for NaN."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def format_percent(share: float | None) -> str:
    """Return a share as per cent: 60%; "-" for NaN or None."""
    return "-" if share is None or not math.isfinite(share) else f"{100 * share:.0f}%"


def status_line(status: RunStatus) -> str:
    """Return the status as one line of ASCII, for pipes and logs."""
    return ", ".join(
        (
            f"{format_count(status.frames)}/{format_count(status.total_frames)} frames"
            f"{_games(status)} ({format_percent(_done(status))})",
            f"ETA {format_duration(status.eta_s)}",
            f"{format_count(status.frames_per_s)} frames/s",
            f"{format_count(status.learner_steps_per_s)} learner steps/s",
            f"return {format_score(status.train_return)}",
            f"eval {_evaluation(status)}",
            f"samples/insert {format_count(status.samples_per_insert)}",
            f"replay {_replay(status)}",
            f"policy lag {format_count(status.policy_lag)}",
            f"limited by {status.limiting_stage}",
        )
    )


def status_block(status: RunStatus) -> RenderableType:
    """Return the status as a framed block for a terminal."""
    progress = Table.grid(padding=(0, 1), expand=True)
    progress.add_column(no_wrap=True)
    progress.add_column(ratio=1)
    progress.add_column(no_wrap=True, justify="right")
    progress.add_column(no_wrap=True, justify="right")
    progress.add_row(
        Text.assemble(
            (format_count(status.frames), "bold"),
            f" of {format_count(status.total_frames)} frames{_games(status)}",
        ),
        ProgressBar(total=1.0, completed=_done(status)),
        format_percent(_done(status)),
        Text.assemble(("ETA ", "dim"), (format_duration(status.eta_s), "bold")),
    )
    grid = Table.grid(padding=(0, 1), expand=True)
    for ratio in (9, 11):
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis")
    lag = format_count(status.policy_lag)
    rows = (
        ("elapsed", format_duration(status.elapsed_s), "return", format_score(status.train_return)),
        (
            "acting",
            f"{format_count(status.frames_per_s)} frames/s",
            "evaluation",
            _evaluation(status),
        ),
        (
            "learning",
            f"{format_count(status.learner_steps_per_s)} steps/s",
            "samples/insert",
            format_count(status.samples_per_insert),
        ),
        ("replay", _replay(status), "policy lag", lag if lag == "-" else f"{lag} learner steps"),
    )
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    stage = status.limiting_stage
    limit = Text.assemble(
        ("limited by ", "dim"), (stage, "bold yellow"), no_wrap=True, overflow="ellipsis"
    )
    if stage in _HINTS:
        limit.append(f": {_HINTS[stage]}", "dim")
    return Panel(
        Group(progress, grid, limit),
        title="Troop",
        title_align="left",
        border_style="cyan",
        width=_MAX_WIDTH,
    )


def _done(status: RunStatus) -> float:
    shares = [status.frames / max(1, status.total_frames)]
    if status.total_episodes is not None:
        shares.append(status.episodes / max(1, status.total_episodes))
    return min(1.0, max(shares))


def _games(status: RunStatus) -> str:
    if status.total_episodes is None:
        return ""
    return f", {status.episodes:,}/{status.total_episodes:,} games"


def _evaluation(status: RunStatus) -> str:
    share = format_percent(status.human_normalized)
    return format_score(status.eval_score) + ("" if share == "-" else f" ({share} of human)")


def _replay(status: RunStatus) -> str:
    return f"{format_percent(status.replay_fill)} full, {format_bytes(status.replay_bytes)}"


class _Screen(rich.console.Console):
    """A rich console that leaves the cursor alone: a run killed outright must not take it along."""

    def show_cursor(self, show: bool = True) -> bool:
        """Do nothing."""
        return False

    def on_broken_pipe(self) -> None:
        """Say so; rich itself would exit here."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class Console:
    """Shows a run's status and events.

        with Console(stream=sys.stdout, log_file=log_file, clock=time.monotonic) as console:
            console.note("actor 3 restarted")   # above the block, and into the log
            console.update(status)              # as often as one likes, about once a second

    On a terminal the status is one block that stays at the bottom, and whatever else the process
    prints appears above it. Elsewhere it is a line, at most every PLAIN_PERIOD_S. Losing the output
    (a pager that was quit, a `tee` that took the same Ctrl-C) never ends a run: from then on there
    is the log alone. Nor does a log that cannot be written (a full disk): one line says so, and
    what comes until it can is on the screen alone.

    Any thread may call it, a signal handler too.
    """

    def __init__(
        self, *, stream: TextIO, log_file: os.PathLike[str] | None, clock: Callable[[], float]
    ) -> None:
        """Print nothing yet.

        Args:
          stream: where to print.
          log_file: file that gets each note and, every LOG_PERIOD_S, the status; None for no log.
          clock: seconds from any origin, never going back.
        """
        if isinstance(stream, TextIOWrapper):
            # A path that ASCII cannot show ends no run.
            stream.reconfigure(errors="backslashreplace")
        self._stream = stream
        self._log_file = None if log_file is None else LogFile(log_file)
        self._clock = clock
        self._screen = _Screen(file=stream, markup=False, highlight=False, emoji=False)
        self._is_live = stream.isatty() and self._screen.is_interactive
        self._live: Live | None = None
        self._status: RunStatus | None = None
        self._next_plain_s = -math.inf
        self._next_log_s = -math.inf
        self._plain_is_current = True
        self._log_is_current = True
        self._stream_is_lost = False
        # Reentrant: a signal handler may note in the middle of an update.
        self._lock = threading.RLock()
        atexit.register(self.close)

    def update(self, status: RunStatus) -> None:
        """Show a newer status."""
        with self._lock:
            self._status = status
            now = self._clock()
            self._plain_is_current = self._log_is_current = False
            if self._is_live:
                self._show_block(status)
            elif now >= self._next_plain_s:
                self._next_plain_s = now + PLAIN_PERIOD_S
                self._print_status_line()
            if now >= self._next_log_s:
                self._next_log_s = now + LOG_PERIOD_S
                self._log_status_line()

    def note(self, text: str) -> None:
        """Print an event once, for good, and log it."""
        with self._lock:
            self._print(text)
            self._log(text)

    def log(self, text: str) -> None:
        """Put what is too long for a screen, a traceback, into the log alone."""
        with self._lock:
            if text:
                self._log(text)

    def close(self) -> None:
        """Show and log the last status and let go of the terminal.

        Closing twice is allowed, and so is a note afterwards.
        """
        with self._lock:
            atexit.unregister(self.close)
            if self._live is not None:
                live, self._live = self._live, None
                self._guard(live.stop)
            elif not self._plain_is_current:
                self._print_status_line()
            if not self._log_is_current:
                self._log_status_line()
            self._plain_is_current = self._log_is_current = True

    def __enter__(self) -> Console:
        """Return the console itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let go of the terminal, whatever happened."""
        self.close()

    def _show_block(self, status: RunStatus) -> None:
        block = status_block(status)
        if self._live is None:
            self._live = Live(
                block,
                console=self._screen,
                auto_refresh=False,
                # Only what would land on the terminal moves above the block: `2> file` stays so.
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=sys.stderr.isatty(),
            )
            self._guard(self._live.start)
        live = self._live
        self._guard(lambda: live.update(block, refresh=True))

    def _print_status_line(self) -> None:
        if self._status is not None and not self._is_live:
            self._plain_is_current = True
            self._print(f"[{format_duration(self._status.elapsed_s)}] {status_line(self._status)}")

    def _log_status_line(self) -> None:
        if self._status is not None:
            self._log_is_current = True
            self._log(status_line(self._status))

    def _print(self, text: str) -> None:
        def put() -> None:
            # soft_wrap: a long line stays one line, so that a command in it can be copied.
            self._screen.print(text, soft_wrap=True)
            self._stream.flush()

        self._guard(put)

    def _guard(self, put: Callable[[], None]) -> None:
        """Print by `put`, unless the stream is lost, or is now."""
        if self._stream_is_lost:
            return
        try:
            put()
            if isinstance(self._stream, StandardStream) and self._stream.lost is not None:
                raise self._stream.lost
        except OSError as error:
            self._stream_is_lost = True
            self._is_live = False
            live, self._live = self._live, None
            with suppress(OSError):  # it prints once more; what it must do is hand back sys.stdout
                if live is not None:
                    live.stop()
            with suppress(OSError):  # else each plain `print` there would raise
                point_at_null(self._stream.fileno())
            self._log(f"the output is gone ({error}); what comes is in this log alone")

    def _log(self, text: str) -> None:
        if self._log_file is not None and (trouble := self._log_file.append(text)):
            self._print(trouble)
