"""What a person reads who has not installed what is needed, or started another Python."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType

_ROOT = Path(__file__).resolve().parent.parent
_OURS = ("actors", "common", "driver", "learner", "replay")


def tell_in_one_line(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print one line for what went wrong in an import; set `sys.excepthook` to it meanwhile.

    A fault in our own modules, one that is not there among them, is told as any other.
    """
    raised_in = Path(traceback.extract_tb(trace)[-1].filename)
    is_fault = any(raised_in.is_relative_to(_ROOT / name) for name in ("launch.py", *_OURS))
    if isinstance(error, ImportError):
        is_fault = (error.name or "").partition(".")[0] in ("", *_OURS)
    if is_fault:
        sys.__excepthook__(kind, error, trace)
        return
    said = " ".join(str(error).split()) or kind.__name__
    print(
        f"launch.py: cannot start: {said}; `pip install -e .` in {_ROOT} installs what is needed "
        f"for {sys.executable}",
        file=sys.stderr,
    )
