"""TensorBoard events: the writer, and the reader that plots use.

Stands on the `tensorboard` package alone, on its message classes and its record writer. Its
`EventFileWriter` is not used: it imports TensorFlow wherever that happens to be installed.
The x-axis of every tag is frames.
"""

from __future__ import annotations

import io
import math
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from common.files import UnreadableFile, open_new_fd, open_regular
from driver.view.record_file import RecordFile

_FILE_PREFIX = "events.out.tfevents."  # also in driver.run_folder.SCALARS
# Seconds since the epoch, until the year 5138; anything longer was not given by a clock.
_MOST_STAMP_DIGITS = 11
# Ten years of rows.
_MOST_BYTES = 1 << 36
_FILE_VERSION = "brain.Event:2"


class Series(NamedTuple):
    """One tag's values in the order they were written.

    Fields:
      frames: float64[n], strictly increasing.
      values: float64[n], as TensorBoard keeps them: rounded to float32.
      wall_s: float64[n], seconds since the epoch.
    """

    frames: NDArray[np.float64]
    values: NDArray[np.float64]
    wall_s: NDArray[np.float64]


class Session(NamedTuple):
    """When the run ran: one start of it, from its event file.

    Fields:
      start_s: wall time of the file's first event.
      end_s: of its last.
    """

    start_s: float
    end_s: float


class RunEvents(NamedTuple):
    """What a run's event files hold.

    Fields:
      scalars: tag -> values.
      sessions: one for each start of the run, in their order.
    """

    scalars: dict[str, Series]
    sessions: list[Session]


class EventWriter(RecordFile):
    """Writes one event file into a run's folder; a resumed run adds a file of its own.

        with EventWriter(folder=run_dir, flush_s=5.0, first_frames=0) as writer:
            writer.scalars({ENV_FRAMES_PER_S: 1234.5}, frames)

    TensorBoard's default reader keeps ONE value per tag and frame count: a second one silently
    replaces the first, and several games may well end between two looks at the frame counter. So a
    value that comes at a frame count its tag has passed is moved to the tag's next free frame. A
    game takes at least one frame, so this cannot run away.

    On opening, the writer states where it starts (a SessionLog START event): `read_scalars` then
    drops what older files hold from that frame on, the rest of a run that crashed after its last
    checkpoint. A resumed run starts one frame after its checkpoint's: what stands AT that frame,
    such as the last values of a run that ended well, remains. Of TensorBoard's two readers the slow
    one (`--load_fast=false`) does the same, if the folder's first file has such an event too; so
    every file has one. The fast one ignores it, but drops what a tag's older values overlap with
    its newer ones.

    One thread at a time writes values.
    """

    def __init__(self, *, folder: os.PathLike[str], flush_s: float, first_frames: int) -> None:
        """Create the file.

        Args:
          folder: where the event files of the run lie.
          flush_s: a value is in the file after at most so many seconds.
          first_frames: 0 for a new run; the checkpoint's frame count when resuming, and then this
            writer's values begin one frame later.

        Raises:
          OSError: the file cannot be made.
        """
        if first_frames < 0:
            raise ValueError(f"Expect `first_frames` >= 0, actually: {first_frames}")
        # Older files hold what came AT the checkpoint's frame; what is beyond it was played again.
        self._first_frames = first_frames + 1 if first_frames else 0
        self._last_frames: dict[str, int] = {}
        super().__init__(folder=folder, flush_s=flush_s)

    def scalars(self, values: Mapping[str, float], frames: int) -> None:
        """Write several tags' values at one frame count; NaNs are skipped."""
        at: dict[int, list[Any]] = {}
        for tag, value in values.items():
            if not math.isnan(value):
                message = summary_pb2.Summary.Value(tag=tag, simple_value=value)
                at.setdefault(self._free_frame(tag, frames), []).append(message)
        for step, messages in at.items():
            self._write_summary(messages, step)

    def summary(self, summary: summary_pb2.Summary, frames: int) -> None:
        """Write a message that is made already, as plugins of TensorBoard want theirs."""
        self._write_summary(list(summary.value), max(frames, self._first_frames))

    def _open_file(self, folder: Path) -> tuple[str, int]:
        """Make a file whose name sorts after all others: readers go by the order of the names."""
        second = int(time.time())
        for path in folder.glob(_FILE_PREFIX + "*"):
            stamp = path.name.removeprefix(_FILE_PREFIX).split(".")[0]
            # Also where the other file was written in this second, or by a clock that ran ahead.
            if stamp.isdecimal() and len(stamp) <= _MOST_STAMP_DIGITS:
                second = max(second, int(stamp) + 1)
        name = f"{_FILE_PREFIX}{second:010d}.{socket.gethostname()}.{os.getpid()}"
        return name, open_new_fd(folder / name)

    def _head(self) -> bytes:
        """Return what makes it an event file, and where its values begin."""
        now_s = time.time()
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        return _record(event_pb2.Event(wall_time=now_s, file_version=_FILE_VERSION)) + _record(
            event_pb2.Event(wall_time=now_s, step=self._first_frames, session_log=start)
        )

    def _free_frame(self, tag: str, frames: int) -> int:
        least = self._last_frames.get(tag, self._first_frames - 1) + 1
        self._last_frames[tag] = max(frames, least)
        return self._last_frames[tag]

    def _write_summary(self, messages: list[Any], step: int) -> None:
        summary = summary_pb2.Summary(value=messages)
        self.append(_record(event_pb2.Event(wall_time=time.time(), step=step, summary=summary)))


def _record(event: Any) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def event_files(folder: Path) -> list[Path]:
    """Return a folder's event files, oldest first."""
    return sorted(folder.glob(_FILE_PREFIX + "*"))


def read_scalars(folder: Path) -> dict[str, Series]:
    """Return every scalar tag of a run, as `read_events` finds them."""
    return read_events(folder).scalars


def read_events(folder: Path) -> RunEvents:
    """Return every scalar tag of a run, all its event files merged in the order they were written.

    What a writer states as its start (see EventWriter) drops older values from there on. A file
    that breaks off, as a killed run or one still going leaves it, is read up to its last whole
    record.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {}
    sessions: list[Session] = []
    for path in event_files(folder):
        session: Session | None = None
        for event in _events(path):
            start_s = event.wall_time if session is None else session.start_s
            session = Session(start_s, event.wall_time)
            if event.session_log.status == event_pb2.SessionLog.START:
                for tag, kept in rows.items():
                    rows[tag] = [row for row in kept if row[0] < event.step]
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    row = (event.step, value.simple_value, event.wall_time)
                    rows.setdefault(value.tag, []).append(row)
        if session is not None:
            sessions.append(session)
    scalars = {
        tag: Series(*np.array(kept, dtype=np.float64).T.copy())
        for tag, kept in rows.items()
        if kept
    }
    return RunEvents(scalars, sessions)


def running_seconds(
    wall_s: NDArray[np.float64], sessions: Sequence[Session]
) -> NDArray[np.float64]:
    """Return for each wall time how long the run had run by then.

    The time between an end of the run and its resumption does not count; the time that a crash made
    worthless does.

    Args:
      wall_s: float64[n], seconds since the epoch.
      sessions: the run's.

    Returns:
      float64[n], seconds.
    """
    ran_s = np.zeros(len(wall_s))
    for session in sessions:
        ran_s += np.clip(wall_s - session.start_s, 0.0, session.end_s - session.start_s)
    return ran_s


def _events(path: Path) -> Iterator[Any]:
    """Yield the file's whole events (TFRecord: length, its checksum, data, the data's checksum).

    Only the length's checksum is looked at: in pure Python the data's takes longer than all the
    rest together. Of what is no file that can be read there are none: a run is as good without.
    """
    try:
        file = open_regular(path, _MOST_BYTES)
    except (UnreadableFile, OSError):
        return
    with file:
        left = os.fstat(file.fileno()).st_size
        while len(header := file.read(12)) == 12:
            length, checksum = struct.unpack("<QI", header)
            left -= len(header) + length + 4
            if left < 0 or masked_crc32c(header[:8]) != checksum:
                return
            data = file.read(length + 4)
            try:
                event = event_pb2.Event.FromString(data[:length])
            except DecodeError:
                return
            if not math.isfinite(event.wall_time):  # nothing of ours
                return
            yield event
