"""An environment that raised, or answered what no environment may."""

from __future__ import annotations

from common.run_ended import RunEnded


class EnvironmentFailed(RunEnded):
    """An environment cannot be played on; the text is one line with its own words.

    Attributes:
      details: its traceback for the log, "" where it raised nothing.
    """

    def __init__(self, line: str, details: str = "") -> None:
        super().__init__(line)
        self.details = details

    def __reduce__(self) -> tuple[type[EnvironmentFailed], tuple[str, str]]:
        """Carry the traceback from process to process, too."""
        return EnvironmentFailed, (str(self), self.details)
