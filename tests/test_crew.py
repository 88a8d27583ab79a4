"""Crew with real processes of Ray's, of a kind made for it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray

from common.heartbeat import Alive
from driver import crew as crew_module
from driver.crew import Crew
from driver.supervisor import WorkerName
from driver.view.console import Console

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
NOWHERE = {"no_such_host": 1}


class Idling:
    """Answers, and does nothing else until it is told to stop."""

    def alive(self) -> Alive:
        return Alive(process=None, idle_s=0.0, place="")

    def run(self) -> None:
        time.sleep(600.0)


Idler: Any = ray.remote(Idling)


def make_crew(options: Callable[[WorkerName], dict[str, Any]], said: io.StringIO) -> Crew:
    def create(name: WorkerName, incarnation: int) -> Any:
        return Idler.options(num_cpus=0, max_concurrency=2, **options(name)).remote()

    return Crew(
        create=create,
        asks=lambda name: "no_such_host",
        avoid=lambda host: False,
        on_death=lambda name: None,
        incarnations={},
        hang_s=1.0,
        console=Console(stream=said, log_file=None, clock=time.monotonic),
        is_local=False,
    )


def test_who_waits_for_a_host_is_told_of_and_never_taken_for_hung(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crew_module, "_FIRST_SIGN_S", 1.0)
    monkeypatch.setattr(crew_module, "_WAIT_TOLD_S", 0.5)
    said = io.StringIO()
    crew = make_crew(lambda name: {"resources": NOWHERE if name[1] else {}}, said)
    names = [("actor", 0), ("actor", 1), ("actor", 2), ("evaluator", 1)]
    try:
        for name in names:
            crew.start(name)
        end_s = time.monotonic() + 4.0
        while time.monotonic() < end_s:
            crew.supervise()
            time.sleep(0.1)
        assert "died" not in said.getvalue()
        assert "1 of 3 actors play, 2 wait for a host with no_such_host" in said.getvalue()
        assert said.getvalue().count("evaluator 1 waits for a host with no_such_host") == 1
        assert crew.playing() == 1
        assert len(crew.runs("actor")) == 1
    finally:
        for role in ("actor", "evaluator"):
            for handle in crew.living(role).values():
                ray.kill(handle)
