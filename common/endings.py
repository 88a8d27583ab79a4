"""Exceptions that end a run."""

from __future__ import annotations


class RunEnded(Exception):
    """The run cannot go on, or could not be saved; the text is the reason."""


class EnvironmentFailed(RunEnded):
    """An environment raised, or answered what none may; the text is one line with its own words.

    Attributes:
      details: its traceback for the log, "" where it raised nothing.
    """

    def __init__(self, line: str, details: str = "") -> None:
        super().__init__(line)
        self.details = details

    def __reduce__(self) -> tuple[type[EnvironmentFailed], tuple[str, str]]:
        """Carry the traceback from process to process, too."""
        return EnvironmentFailed, (str(self), self.details)


class HostUnfit(RunEnded):
    """A host lacks what the run needs of it: the driver's code, say, or the run's folder."""

    details = ""


class Interrupted(KeyboardInterrupt):
    """Raised by a signal, and so by nobody's code that we call."""
