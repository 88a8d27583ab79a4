"""Ctrl-C and SIGTERM: the first asks the run to save and end, the second forces it."""

from __future__ import annotations

import os
import queue
import signal
import time
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

# Wrappers such as `timeout` pass on what the terminal has sent already; that is no second wish.
ECHO_S = 1.0


def end_at_once(exit_code: int) -> None:
    """Make a signal end this process on the spot: nothing is started yet, or all is done.

    Nothing is raised: in the middle of an import an exception may be lost, or be printed.
    """
    for number in _SIGNALS:
        signal.signal(number, lambda number, frame: os._exit(exit_code))


def raise_at_signals() -> None:
    """Make a signal raise KeyboardInterrupt, SIGTERM too."""
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler)


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
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
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
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        now_s = time.monotonic()
        if self.requested.is_set() and now_s - self._requested_s >= self._echo_s:
            raise KeyboardInterrupt
        if not self.requested.is_set():
            self._requested_s = now_s
            self.requested.set()
