"""Every call into an environment: whatever it raises is one kind of failure."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any

from common.endings import EnvironmentFailed, Interrupted
from common.heartbeat import Heartbeat
from common.schema import one_line

# Of an environment's own words, in a line.
_MOST_WORDS = 400


class EnvironmentCalls:
    """The way into the environments of one id.

    All calls go through it: `with calls.into("reset"): ...`. Whatever an environment raises inside
    such a block becomes EnvironmentFailed, also what is no Exception: it may call `sys.exit`, and
    the run is not its own. One thread only, no block inside another.
    """

    def __init__(self, env_id: str, heartbeat: Heartbeat) -> None:
        """Take whose calls they are, and who is told in which call the thread is."""
        self._env_id = env_id
        self._heartbeat = heartbeat
        self._call = ""

    def into(self, call: str) -> EnvironmentCalls:
        """Return the context of a call, e.g. "reset" or "step 17"."""
        self._call = call
        return self

    def __enter__(self) -> None:
        """Say where the thread is."""
        self._heartbeat.enter(f"in the environment's {self._call}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Turn what was raised into EnvironmentFailed, but for what a signal raised."""
        self._heartbeat.leave()
        if error is None or isinstance(error, EnvironmentFailed | Interrupted):
            return
        words = in_a_line("".join(traceback.format_exception_only(error)))
        details = "".join(traceback.format_exception(error))
        raise self.failed(f"raised {words}", details) from error

    def failed(self, what: str, details: str = "") -> EnvironmentFailed:
        """Return the failure: that the environment did `what` in the call it is in."""
        line = f"the environment {self._env_id}, in {self._call}, {what}"
        return EnvironmentFailed(line, details)


def in_a_line(words: Any) -> str:
    """Return somebody else's words in one line that is no longer than a message may be."""
    return one_line(" ".join(str(words).split()), _MOST_WORDS)
