"""Scalars as lines of JSON, for jq, pandas and whatever else does not read TensorBoard's events."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import open_in_place
from driver.view.record_file import RecordFile

_NAME = "scalars.jsonl"  # also in driver.run_folder.SCALARS
# Longer than any line of ours.
_MOST_LINE_BYTES = 2**20


class JsonLines(RecordFile):
    """Appends rows to `scalars.jsonl` in a run's folder, one JSON object a line.

        {"frames": 0, "time_s": 1795770000.125, "start": true}
        {"frames": 4000, "time_s": 1795770005.131, "throughput/env_frames_per_s": 812.5, ...}

    Each line has `frames` and `time_s` (seconds since 1970), and the tags and values that
    TensorBoard gets, unrounded. A NaN, which means "nothing to tell", is left out; an infinite
    value, for which JSON has no number, is null. Lines stand in the order in which they were
    written. Several may have the same frames, which EventWriter has to tell apart; and an
    evaluation, which stands where its weights stood, has fewer than lines above it.

    Each start of the run writes a line with `start`, at the frames it goes on from: lines above it
    with more frames were played again by a run that crashed after its checkpoint. Whoever reads
    the file drops them; `plot` and TensorBoard do the same with events.

    One thread at a time writes rows.
    """

    def __init__(self, *, folder: os.PathLike[str], flush_s: float, first_frames: int) -> None:
        """Make the file, or go on at the end of the run's.

        Args:
          folder: the run's.
          flush_s: a row is in the file after at most so many seconds.
          first_frames: 0 for a new run; the checkpoint's frame count when resuming.

        Raises:
          OSError: it cannot be opened or written; it is a link, or no regular file.
        """
        self._newest_frames = first_frames
        super().__init__(folder=folder, flush_s=flush_s)

    def scalars(self, values: Mapping[str, float], frames: int) -> None:
        """Write one row; nothing where all of its values are NaN."""
        row = {
            tag: float(value) if math.isfinite(value) else None
            for tag, value in values.items()
            if not math.isnan(value)
        }
        if row:
            self._newest_frames = max(self._newest_frames, frames)
            self.append(_line(frames, row))

    def _open_file(self, folder: Path) -> tuple[str, int]:
        """Open it behind its last whole line: a process that was killed may have left a half."""
        fd = open_in_place(folder / _NAME, os.O_RDWR)
        try:
            size = os.fstat(fd).st_size
            start = max(0, size - _MOST_LINE_BYTES)
            whole = start + os.pread(fd, size - start, start).rfind(b"\n") + 1
            if whole < size:
                os.ftruncate(fd, whole)
        except BaseException:
            os.close(fd)
            raise
        return _NAME, fd

    def _head(self) -> bytes:
        """Return the line that says where the run goes on, also in a file that was cut since."""
        return _line(self._newest_frames, {"start": True})


def _line(frames: int, row: Mapping[str, Any]) -> bytes:
    whole = {"frames": frames, "time_s": round(time.time(), 3), **row}
    return json.dumps(whole, allow_nan=False).encode() + b"\n"
