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
from typing import TextIO

import rich.console
from rich.live import Live

from driver.view.log_file import LogFile
from driver.view.quantities import format_duration
from driver.view.standard_streams import StandardStream, point_at_null
from driver.view.status import RunStatus, status_block, status_line

# Seconds between two status lines where output is piped, and between two in `log.txt`.
PLAIN_PERIOD_S = 10.0
LOG_PERIOD_S = 60.0


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
        self._unprinted: RunStatus | None = None  # the newest, where it is not out yet
        self._unlogged: RunStatus | None = None
        self._next_plain_s = -math.inf
        self._next_log_s = -math.inf
        self._stream_is_lost = False
        # Reentrant: a signal handler may note in the middle of an update.
        self._lock = threading.RLock()
        atexit.register(self.close)

    def update(self, status: RunStatus) -> None:
        """Show a newer status."""
        with self._lock:
            now = self._clock()
            self._unlogged = status
            if self._is_live:
                self._show_block(status)
            else:
                self._unprinted = status
                if now >= self._next_plain_s:
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
            self._print_status_line()
            self._log_status_line()

    def __enter__(self) -> Console:
        """Return the console itself."""
        return self

    def __exit__(self, *_: object) -> None:
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
        status, self._unprinted = self._unprinted, None
        if status is not None:
            self._print(f"[{format_duration(status.elapsed_s)}] {status_line(status)}")

    def _log_status_line(self) -> None:
        status, self._unlogged = self._unlogged, None
        if status is not None:
            self._log(status_line(status))

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
            with suppress(OSError):  # it must hand back sys.stdout, and tries to print once more
                if live is not None:
                    live.stop()
            with suppress(OSError):  # so that no plain `print` to it raises
                point_at_null(self._stream.fileno())
            self._log(f"the output is gone ({error}); what comes is in this log alone")

    def _log(self, text: str) -> None:
        if self._log_file is not None and (trouble := self._log_file.append(text)):
            self._print(trouble)
