"""One save at a time, in a thread of its own: files are written beside the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from common.reports import NEVER_SAVED, SaveStatus


class SaveThread:
    """Runs saves one after the other in a thread of their own, and tells how the newest went.

        if not saver.start(capture): ...      # the one before is not done
        saver.status

    An OSError of a save (a full disk, say) is told in the status. So is whatever else it raises, a
    fault of ours; the next call raises that, too. One thread calls.
    """

    def __init__(self, name: str) -> None:
        """Prepare; `name` is the thread's."""
        self._name = name
        self._thread: threading.Thread | None = None
        self._status = NEVER_SAVED
        self._error: BaseException | None = None

    @property
    def status(self) -> SaveStatus:
        """How it goes."""
        return self._status

    @property
    def is_busy(self) -> bool:
        """Whether a save runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, capture: Callable[[], Callable[[], str]]) -> bool:
        """Start a save, or return False: one runs.

        Args:
          capture: takes hold of what is to be saved, while the caller waits, and returns what
            writes it, and returns the path of what it wrote.

        Raises:
          BaseException: what the save before ended with, but for OSError; or `capture` did.
        """
        if self.is_busy:
            return False
        self.wait()
        started_s = time.monotonic()
        save = capture()
        held_s = time.monotonic() - started_s
        # Not a daemon: a process that ends waits for what it writes.
        self._thread = threading.Thread(target=self._run, args=(save, held_s), name=self._name)
        self._thread.start()
        return True

    def wait(self) -> None:
        """Wait until no save runs.

        Raises:
          BaseException: what it ended with, but for OSError.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, save: Callable[[], str], held_s: float) -> None:
        started_s = time.monotonic()
        path, trouble = self._status.path, ""
        try:
            path = save()
        except OSError as error:
            trouble = str(error) or type(error).__name__
        except BaseException as error:  # noqa: B036 - it is raised in the caller's thread
            self._error = error
            trouble = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - started_s
        self._status = SaveStatus(self._status.attempts + 1, path, trouble, held_s, seconds)
