"""Signals that ask the run to end: the first to save and end, the second to end at once."""

from __future__ import annotations

import math
import os
import queue
import select
import signal
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType

from common.endings import Interrupted

# Ctrl-C; what batch systems, containers and `kill` send; a lost terminal; and the two that batch
# systems send as a warning, as told (`sbatch --signal`) or by default (SGE, LSF).
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Python takes these even where a script's `&` ignores SIGINT; of the others `nohup` must be obeyed.
_EVEN_IF_IGNORED = (signal.SIGINT, signal.SIGTERM)

# Wrappers such as `timeout` pass on what the terminal has sent already; that is no second wish.
ECHO_S = 1.0

# How long the main thread may take to answer a second signal.
DEAF_S = 10.0

# Write end of the pipe that tells `_end_if_deaf` of signals (their numbers) and answers (a 0).
_pipe: int | None = None


def end_at_once(exit_code: int) -> None:
    """Make a signal end this process on the spot: nothing is started yet, or all is done.

    Nothing is raised: in the middle of an import an exception may be lost, or be printed.
    """
    for number in _wanted():
        signal.signal(number, lambda number, frame: os._exit(exit_code))


def raise_at_signals() -> None:
    """Make a signal raise KeyboardInterrupt, and a second end even a process that is deaf to them.

    Python's handlers run in the main thread alone, and not while that is inside of a call into C,
    such as an environment's step, which may never return. So another thread hears of signals, too.
    """
    for number in _wanted():
        signal.signal(number, _raise)
    global _pipe
    if _pipe is None:
        reader, _pipe = os.pipe()
        os.set_blocking(_pipe, False)
        signal.set_wakeup_fd(_pipe, warn_on_full_buffer=False)
        threading.Thread(target=_end_if_deaf, args=(reader,), daemon=True).start()


def _wanted() -> list[signal.Signals]:
    return [
        number
        for number in _SIGNALS
        if number in _EVEN_IF_IGNORED or signal.getsignal(number) != signal.SIG_IGN
    ]


def _raise(number: int, frame: FrameType | None) -> None:
    del number, frame
    _answer()
    raise Interrupted


def _answer() -> None:
    """Tell, from a handler, that the main thread came to it."""
    if _pipe is not None:
        with suppress(BlockingIOError):  # full of signals: nobody counts these
            os.write(_pipe, b"\0")


def _end_if_deaf(reader: int) -> None:
    """End the process once a second signal, or a later one, gets no answer in DEAF_S.

    What comes within ECHO_S of the first is taken for its echo. A first one alone ends nothing: the
    main thread may be busy, saving for one.
    """
    first_s = deadline_s = math.inf
    while (now_s := time.monotonic()) < deadline_s:
        left_s = None if deadline_s == math.inf else deadline_s - now_s
        if not select.select([reader], [], [], left_s)[0]:
            continue
        for number in os.read(reader, 4096):  # a signal always comes before its answer
            if number == 0:
                deadline_s = math.inf
            elif number in _SIGNALS:
                first_s = min(first_s, time.monotonic())
                if time.monotonic() - first_s >= ECHO_S:
                    deadline_s = min(deadline_s, time.monotonic() + DEAF_S)
    with suppress(OSError):
        os.write(2, b"launch.py: forced to stop: the main thread does not answer\n")
    os._exit(130)


def _forget_pipe() -> None:
    global _pipe
    if _pipe is not None:
        signal.set_wakeup_fd(-1)
        _pipe = None


# What a child does with its signals is no answer of ours.
os.register_at_fork(after_in_child=_forget_pipe)


class Request:
    """A flag that a signal handler may set while the main thread looks at it.

    `threading.Event` is no such thing: its lock is not reentrant, so a handler that interrupts the
    main thread inside `wait` or `is_set` may wait for that very thread, for ever. Any thread may
    call it.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._tokens: queue.SimpleQueue[None] = queue.SimpleQueue()  # its `put` is reentrant

    def set(self) -> None:
        """Set the flag, for good, and wake whoever waits."""
        self._is_set = True
        self._tokens.put(None)

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return self._is_set

    def wait(self, timeout_s: float) -> bool:
        """Return whether the flag is set, after at most `timeout_s` if it is not."""
        if not self._is_set:
            try:
                self._tokens.get(timeout=timeout_s)
            except queue.Empty:
                return self._is_set
            self._tokens.put(None)  # for the next one who waits
        return True


class Interrupts:
    """Context in which the first signal sets `requested` and a later one raises KeyboardInterrupt.

    What comes within `echo_s` of the first is taken for its echo, and ignored.

    Enter it in the main thread, after Ray has set its own handlers; `claim` takes the signals back
    if Ray takes them later.
    """

    def __init__(self, echo_s: float = ECHO_S) -> None:
        """Prepare to take the signals.

        Args:
          echo_s: signals within so many seconds of the first are taken for its echo.
        """
        self.requested = Request()
        """Set by the first signal."""
        self._echo_s = echo_s
        self._requested_s = 0.0

    def __enter__(self) -> Interrupts:
        """Take the signals."""
        self._before = {number: signal.getsignal(number) for number in _wanted()}
        self.claim()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            # None: it was not Python that had set it, so Python cannot set it again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def claim(self) -> None:
        """Take the signals."""
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        _answer()
        now_s = time.monotonic()
        if self.requested.is_set() and now_s - self._requested_s >= self._echo_s:
            raise Interrupted
        if not self.requested.is_set():
            self._requested_s = now_s
            self.requested.set()
