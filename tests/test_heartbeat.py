"""Heartbeat: what it tells before and after the loop has turned."""

from __future__ import annotations

import os

import pytest
from fakes import FakeClock

from common.heartbeat import Heartbeat
from common.process import Process


def test_loop_that_never_turned_is_getting_ready() -> None:
    assert Heartbeat().alive() == (Process.of(os.getpid()), None)


def test_idle_time_counts_from_the_newest_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("common.heartbeat.time.monotonic", clock)
    heartbeat = Heartbeat()
    heartbeat.beat()
    clock.now_s = 7.0
    assert heartbeat.alive().idle_s == 7.0
    heartbeat.beat()
    clock.now_s = 7.5
    assert heartbeat.alive().idle_s == 0.5
