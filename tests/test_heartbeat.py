"""Heartbeat: what it tells before and after the loop has turned."""

from __future__ import annotations

import os

import pytest
from fakes import FakeClock

from common.heartbeat import Alive, Heartbeat
from common.process import Process


def test_loop_that_never_turned_is_getting_ready() -> None:
    assert Heartbeat().alive() == Alive(Process.of(os.getpid()), None, "")


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


def test_slow_call_is_named_while_it_lasts_and_its_end_is_a_beat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    monkeypatch.setattr("common.heartbeat.time.monotonic", clock)
    heartbeat = Heartbeat()
    heartbeat.enter("in the environment's reset")
    assert heartbeat.alive() == Alive(Process.of(os.getpid()), None, "in the environment's reset")
    heartbeat.leave()
    assert heartbeat.alive() == Alive(Process.of(os.getpid()), None, "")  # it has not worked yet
    heartbeat.beat()
    heartbeat.enter("in the environment's step 3")
    clock.now_s = 40.0
    assert heartbeat.alive() == Alive(Process.of(os.getpid()), 40.0, "in the environment's step 3")
    heartbeat.leave()
    assert heartbeat.alive() == Alive(Process.of(os.getpid()), 0.0, "")
