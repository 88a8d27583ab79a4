"""Keeps batches ready on the device, off the learner's critical path."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.types import Batch
from learner.device_batch import DeviceBatch

# Pause after a `fetch` that had nothing; also how fast `close` is noticed then.
_IDLE_S = 0.01
# How long `close` waits for a `fetch` that is under way.
_CLOSE_S = 5.0


class _Ready(NamedTuple):
    """A batch that waits for the learner.

    Fields:
      ids: int64[B].
      batch: on the device, or on its way there.
      copied: set once it has arrived; None on the CPU.
    """

    ids: NDArray[np.int64]
    batch: DeviceBatch
    copied: torch.cuda.Event | None


class Prefetcher:
    """Calls `fetch` in a thread of its own and hands over batches in that order.

    On CUDA a batch goes through page-locked staging memory, which is reused, and over a side
    stream, so that the copy runs beside the step before; uint8 pixels travel as they are. `get`
    makes the current stream wait for the copy and the CPU for nothing. On the CPU the arrays are
    used where they lie.

    At most `depth` batches are ready and one more is being fetched. `get` and `close` belong to one
    thread, `fetch` to the Prefetcher's.
    """

    def __init__(
        self, *, fetch: Callable[[], Batch | None], device: torch.device, depth: int
    ) -> None:
        """Start the thread.

        Args:
          fetch: returns a batch, or None for "nothing yet"; whatever it raises, `get` raises.
          device: where batches go.
          depth: most batches ready at once, >= 1.
        """
        if depth < 1:
            raise ValueError(f"Expect `depth` >= 1, actually: {depth}")
        self._fetch = fetch
        self._depth = depth
        self._mover = _CudaMover(device, slots=depth + 1) if device.type == "cuda" else None
        self._ready: deque[_Ready] = deque()
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def get(self, timeout_s: float) -> tuple[NDArray[np.int64], DeviceBatch] | None:
        """Return the next batch and its ids, or None: none came in time, or this is closed.

        Raises:
          BaseException: what `fetch` ended with, once the batches before it are handed out; every
            time from then on.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready or self._error or self._closing.is_set(), timeout_s
            )
            if not self._ready:
                if self._error is not None:
                    raise self._error
                return None
            ready = self._ready.popleft()
            self._changed.notify_all()
        if ready.copied is not None:
            stream = torch.cuda.current_stream(ready.batch.weight.device)
            stream.wait_event(ready.copied)
            for tensor in ready.batch:
                # The memory was allocated on the side stream: do not reuse it before the step is
                # done with it.
                tensor.record_stream(stream)
        return ready.ids, ready.batch

    def close(self) -> bool:
        """Stop fetching and drop what is ready; wait at most 5 s for a `fetch` that hangs.

        Returns:
          Whether it has ended.
        """
        self._closing.set()
        with self._changed:
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(_CLOSE_S)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                batch = self._fetch()
                if batch is None:
                    self._closing.wait(_IDLE_S)
                    continue
                self._hand_over(self._move(batch))
        except BaseException as error:  # noqa: B036 - it is raised in the caller's thread
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _move(self, batch: Batch) -> _Ready:
        if self._mover is None:
            return _Ready(batch.ids, _as_tensors(batch), None)
        moved, copied = self._mover.move(_as_tensors(batch))
        return _Ready(batch.ids, moved, copied)

    def _hand_over(self, ready: _Ready) -> None:
        """Wait for room, then for the learner to come."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) < self._depth or self._closing.is_set())
            if not self._closing.is_set():
                self._ready.append(ready)
                self._changed.notify_all()


class SynchronousFetcher:
    """A Prefetcher without a thread, for runs that must be reproducible bit for bit."""

    def __init__(self, *, fetch: Callable[[], Batch | None], device: torch.device) -> None:
        """Keep the arguments.

        Args:
          fetch: returns a batch, or None for "nothing yet".
          device: where batches go.
        """
        self._fetch = fetch
        self._device = device

    def get(self, timeout_s: float) -> tuple[NDArray[np.int64], DeviceBatch] | None:
        """Return the next batch and its ids, or None, at once: nobody else could bring one."""
        del timeout_s
        batch = self._fetch()
        if batch is None:
            return None
        tensors = _as_tensors(batch)
        return batch.ids, DeviceBatch(*(tensor.to(self._device) for tensor in tensors))

    def close(self) -> None:
        """Do nothing; there is no thread."""


class _CudaMover:
    """Copies batches over a side stream, through page-locked memory that is reused in turn."""

    def __init__(self, device: torch.device, slots: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._slots: deque[tuple[DeviceBatch, torch.cuda.Event] | None] = deque([None] * slots)

    def move(self, batch: DeviceBatch) -> tuple[DeviceBatch, torch.cuda.Event]:
        """Start the copy; return where it goes and the event that says it has arrived."""
        slot = self._slots.popleft()
        if slot is not None:
            slot[1].synchronize()  # the copy out of this memory, `slots` batches ago
        staging = _staging(None if slot is None else slot[0], batch)
        for pinned, source in zip(staging, batch, strict=True):
            pinned.copy_(source)
        with torch.cuda.stream(self._stream):
            moved = DeviceBatch(*(pinned.to(self._device, non_blocking=True) for pinned in staging))
            copied = torch.cuda.Event()
            copied.record(self._stream)
        self._slots.append((staging, copied))
        return moved, copied


def _staging(old: DeviceBatch | None, batch: DeviceBatch) -> DeviceBatch:
    """Return page-locked memory of the batch's shapes: the old one if it fits; locking is slow."""
    if old is not None and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(old, batch, strict=True)
    ):
        return old
    return DeviceBatch(
        *(torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in batch)
    )


def _as_tensors(batch: Batch) -> DeviceBatch:
    """Return the arrays as tensors on the same memory."""
    return DeviceBatch(
        weight=_as_tensor(batch.weight),
        s_tm1=_as_tensor(batch.s_tm1),
        a_tm1=_as_tensor(batch.a_tm1),
        r_t=_as_tensor(batch.r_t),
        discount_t=_as_tensor(batch.discount_t),
        s_t=_as_tensor(batch.s_t),
    )


def _as_tensor(array: NDArray) -> Tensor:
    # Torch has no read-only tensors, and Ray's arrays are read-only: those are copied.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))
