"""Why a run cannot go on."""

from __future__ import annotations


class RunEnded(Exception):
    """The run cannot go on, or could not be saved; the text is the reason."""
