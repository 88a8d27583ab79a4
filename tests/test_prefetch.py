"""Prefetch: order, bounds, errors and shutdown; the CUDA path where there is CUDA."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from common.types import Batch
from learner.prefetch import Prefetcher, SynchronousFetcher

CPU = torch.device("cpu")
PATIENCE_S = 20.0


def make_batch(number: int, rows: int = 3) -> Batch:
    """A batch whose every field tells its number."""
    return Batch(
        ids=np.arange(rows, dtype=np.int64) + 100 * number,
        weight=np.full(rows, 0.5, np.float32),
        s_tm1=np.full((rows, 2, 6, 6), number % 256, np.uint8),
        a_tm1=np.full(rows, number, np.int64),
        r_t=np.full(rows, number, np.float32),
        discount_t=np.full(rows, 0.9, np.float32),
        s_t=np.full((rows, 2, 6, 6), (number + 1) % 256, np.uint8),
    )


class Source:
    """Counts its calls; returns batches 0, 1, 2, ... and None in between."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.made = 0
        self.threads: set[str] = set()
        self._nothing = True

    def __call__(self) -> Batch | None:
        self.threads.add(threading.current_thread().name)
        self._nothing = not self._nothing
        if self._nothing or self.made == self.limit:
            return None
        self.made += 1
        return make_batch(self.made - 1)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        threading.Event().wait(0.005)


def test_batches_come_in_order_and_unchanged() -> None:
    source = Source(5)
    prefetcher = Prefetcher(fetch=source, device=CPU, depth=2)
    try:
        for number in range(5):
            fetched = prefetcher.get(PATIENCE_S)
            assert fetched is not None
            ids, batch = fetched
            expected = make_batch(number)
            assert np.array_equal(ids, expected.ids)
            for name in batch._fields:
                assert np.array_equal(getattr(batch, name).numpy(), getattr(expected, name)), name
                assert str(getattr(batch, name).numpy().dtype) == str(getattr(expected, name).dtype)
    finally:
        prefetcher.close()
    assert source.threads == {"prefetch"}


def test_no_batch_in_time_gives_none() -> None:
    prefetcher = Prefetcher(fetch=lambda: None, device=CPU, depth=1)
    try:
        assert prefetcher.get(0.02) is None
        assert prefetcher.get(0.0) is None
    finally:
        prefetcher.close()


def test_no_more_than_depth_batches_wait_and_one_is_in_the_making() -> None:
    source = Source(100)
    prefetcher = Prefetcher(fetch=source, device=CPU, depth=3)
    try:
        wait_until(lambda: source.made == 4)
        threading.Event().wait(0.05)
        assert source.made == 4
        assert prefetcher.get(PATIENCE_S) is not None
        wait_until(lambda: source.made == 5)
    finally:
        prefetcher.close()


def test_fetch_runs_beside_the_learner() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def fetch() -> Batch:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return make_batch(1)

    prefetcher = Prefetcher(fetch=fetch, device=CPU, depth=1)
    try:
        assert begun.wait(PATIENCE_S)  # without any call of `get`
        go_on.set()
        assert prefetcher.get(PATIENCE_S) is not None
    finally:
        prefetcher.close()


def test_error_of_the_thread_is_raised_by_get_after_the_batches_before_it() -> None:
    numbers = iter([make_batch(0)])

    def fetch() -> Batch:
        try:
            return next(numbers)
        except StopIteration:
            raise KeyError("replay is gone") from None

    prefetcher = Prefetcher(fetch=fetch, device=CPU, depth=4)
    try:
        assert prefetcher.get(PATIENCE_S) is not None
        for _ in range(2):  # every time, not only once
            with pytest.raises(KeyError, match="replay is gone"):
                prefetcher.get(PATIENCE_S)
    finally:
        prefetcher.close()


def test_error_wakes_a_get_that_is_waiting() -> None:
    fail = threading.Event()

    def fetch() -> Batch | None:
        if fail.wait(0.005):
            raise RuntimeError("shard 3 died")
        return None

    prefetcher = Prefetcher(fetch=fetch, device=CPU, depth=1)
    try:
        threading.Timer(0.05, fail.set).start()
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="shard 3 died"):
            prefetcher.get(PATIENCE_S)
        assert time.monotonic() - start < PATIENCE_S / 2
    finally:
        prefetcher.close()


def test_close_ends_the_thread_even_when_everything_is_full() -> None:
    source = Source(100)
    prefetcher = Prefetcher(fetch=source, device=CPU, depth=1)
    wait_until(lambda: source.made == 2)
    prefetcher.close()
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())
    made = source.made
    assert prefetcher.get(0.0) is None
    assert source.made == made
    prefetcher.close()  # twice does no harm


def test_read_only_arrays_are_accepted() -> None:
    batch = make_batch(7)
    for array in batch:
        array.flags.writeable = False  # as Ray hands them over
    fetched = SynchronousFetcher(fetch=lambda: batch, device=CPU).get(0.0)
    assert fetched is not None
    assert torch.equal(fetched[1].a_tm1, torch.full((3,), 7))


def test_arrays_are_used_where_they_lie_on_the_cpu() -> None:
    batch = make_batch(7)
    fetched = SynchronousFetcher(fetch=lambda: batch, device=CPU).get(0.0)
    assert fetched is not None
    assert fetched[1].s_tm1.data_ptr() == batch.s_tm1.ctypes.data


def test_synchronous_fetcher_fetches_when_asked_and_only_then() -> None:
    source = Source(10)
    fetcher = SynchronousFetcher(fetch=source, device=CPU)
    assert source.made == 0
    fetched = fetcher.get(0.0)
    assert fetched is not None
    assert np.array_equal(fetched[0], make_batch(0).ids)
    assert source.made == 1
    assert fetcher.get(PATIENCE_S) is None  # at once: the source had nothing
    assert source.threads == {threading.current_thread().name}
    fetcher.close()


def test_depth_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match="Expect `depth` >= 1, actually: 0"):
        Prefetcher(fetch=lambda: None, device=CPU, depth=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_reach_the_cuda_device_in_order_and_unchanged() -> None:
    source = Source(20)
    prefetcher = Prefetcher(fetch=source, device=torch.device("cuda:0"), depth=2)
    try:
        sums = []
        for number in range(20):  # more than the staging slots: each is reused
            fetched = prefetcher.get(PATIENCE_S)
            assert fetched is not None
            ids, batch = fetched
            assert batch.s_tm1.is_cuda
            assert batch.s_tm1.dtype == torch.uint8
            assert np.array_equal(ids, make_batch(number).ids)
            sums.append((batch.s_tm1.long().sum(), batch.s_t.long().sum(), batch.r_t.sum()))
        for number, (s_tm1, s_t, r_t) in enumerate(sums):
            expected = make_batch(number)
            assert s_tm1.item() == expected.s_tm1.sum()
            assert s_t.item() == expected.s_t.sum()
            assert r_t.item() == expected.r_t.sum()
    finally:
        prefetcher.close()
