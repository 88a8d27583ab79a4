"""RAY SHELL: what Ray's own start lacks: patience, ports that are known, and silence.

Ray has no options for these; each context puts back what it changes.
"""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from ray._private import node, parameter, services

# How long Ray's processes may take to come up, while they live: with 40 busy processes on two cores
# it was more than a minute.
_PATIENCE_S = 180.0
_STEP_MS = 2000
_AGENTS_PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)
# Below those that Linux gives to whoever asks for any.
_PORTS = (10_000, 32_768)

# Modules whose names are changed: to mypy they are not for that.
_node: Any = node
_parameter: Any = parameter
_services: Any = services


@contextlib.contextmanager
def patience(expect_living: Callable[[], None]) -> Iterator[None]:
    """Wait for Ray's processes for as long as they live and a busy machine may need.

    Ray itself waits 30 s for each, whether it lives or not.

    Args:
      expect_living: raises what is no RuntimeError when one of them has ended.
    """
    is_up, port_is_known = _services.get_node, _node.wait_for_persisted_port

    def ask_for_port(*arguments: Any, **options: Any) -> Any:
        return port_is_known(*arguments, **{**options, "timeout_ms": _STEP_MS})

    _services.get_node = _patient(is_up, expect_living)
    _node.wait_for_persisted_port = _patient(ask_for_port, expect_living)
    try:
        yield
    finally:
        _services.get_node, _node.wait_for_persisted_port = is_up, port_is_known


def _patient(ask: Callable[..., Any], expect_living: Callable[[], None]) -> Callable[..., Any]:
    """Return what asks again as long as the answer may still come."""

    def answer(*arguments: Any, **options: Any) -> Any:
        deadline_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return ask(*arguments, **options)
            except RuntimeError:
                expect_living()
                if time.monotonic() > deadline_s:
                    raise

    return answer


@contextlib.contextmanager
def known_ports() -> Iterator[None]:
    """Choose the ports of raylet's agents for them: where it must ask, it ends after 30 s."""
    make = _parameter.RayParams
    ports = dict(zip(_AGENTS_PORTS, _free_ports(len(_AGENTS_PORTS)), strict=True))

    def make_with_ports(**settings: Any) -> Any:
        return make(**{**settings, **ports})

    _parameter.RayParams = make_with_ports
    try:
        yield
    finally:
        _parameter.RayParams = make


def _free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens at, and nobody gets who asks for any."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(*_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray from telling at length what its exception, and so the run, tells in a line."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
