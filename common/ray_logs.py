"""What Ray's processes complained of before they ended, read from their logs."""

from __future__ import annotations

import re
from pathlib import Path

# An error in the logs of Ray or of its gRPC: what follows the place in the source. Those of
# logging.cc are stack traces.
_ERROR = re.compile(
    r"^(?:\[[^]]* [EC] \d+ \d+\] .*?|E\d{4} .*?)(?!logging)\b\w+\.cc:\d+[]:]\s*(\S.*?)\s*$", re.M
)


def errors(folder: Path, name: str) -> list[str]:
    """Return the errors that a process of Ray's has written down, in order, one line each.

    Args:
      folder: Ray's temporary one.
      name: of the process: raylet, gcs_server.
    """
    logs = (folder / "session_latest" / "logs").glob(f"{name}.err")
    found = [error for log in logs for error in _ERROR.findall(log.read_text(errors="replace"))]
    return [error.rpartition("Check failed: ")[2] for error in found]
