"""Ctrl-C and SIGTERM: the first asks the run to save and end, the second forces it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Context in which the first signal sets `requested` and the second raises KeyboardInterrupt.

    Enter it in the main thread, after Ray has set its own handlers; `claim` takes the signals back if Ray takes them
    later.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        """Set by the first signal."""

    def __enter__(self) -> Interrupts:
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self.claim()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def claim(self) -> None:
        """Take the signals."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.requested.is_set():
            raise KeyboardInterrupt
        self.requested.set()
