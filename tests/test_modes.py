"""`--serial` and Ray are made of the same parts with the same settings; only the wire differs.

Both are really built, and what is constructed on the way is written down: its class, and those of
its arguments that are plain values.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import actors
import launch
import learner
import learner.assembly
import replay
from actors.environments import resolve
from actors.worker import ActorProcess, EvaluatorProcess
from common.config import AgentConfig, LearnerConfig
from common.machine import total_memory_bytes
from common.presets import PRESETS
from common.source import own_source
from learner import worker as learner_worker
from learner.learner_loop import LearnerLoop
from learner.worker import LearnerProcess
from replay.server import ReplayProcess

pytestmark = pytest.mark.usefixtures("torch_is_left_as_it_was")

CONFIG = PRESETS["cartpole"].config
SHELLS = {
    "actors.worker",
    "learner.weight_store",
    "learner.worker",
    "replay.client",
    "replay.server",
}
# What carries messages: calls in one process, or Ray; a thread that fetches ahead, or none.
WIRE = {"Done", "LocalHandle", "SerialReplay", "SynchronousFetcher", "Prefetcher"}
# What launch.py itself holds in both modes.
DRIVER = {"BestWeights"}
# How much is under way at once is a matter of the wire.
WINDOWS = {
    ("ReplaySampler", "in_flight"),
    ("ReplaySampler", "rows_per_request"),
    ("PriorityUpdater", "window"),
    ("PriorityUpdater", "rows_per_call"),
}


class Part(NamedTuple):
    """One construction of a core class.

    Fields:
      name: of the class.
      settings: (argument, value) of those that are plain values, sorted.
    """

    name: str
    settings: tuple[tuple[str, Any], ...]


def core_classes() -> list[type]:
    """Return the public classes with a constructor of their own in the plain files."""
    found = []
    for package in (actors, learner, replay):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name not in SHELLS:
                members = vars(importlib.import_module(module.name)).values()
                found += [m for m in members if is_core(m) and m.__module__ == module.name]
    return found


def is_core(member: object) -> bool:
    return (
        inspect.isclass(member)
        and "__init__" in vars(member)
        and not member.__name__.startswith("_")
        and not issubclass(member, Exception)
        and not getattr(member, "_is_protocol", False)
    )


@contextmanager
def parts_of(built: set[Part]) -> Any:
    """Write into `built` whatever is constructed meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for core in core_classes():
            patch.setattr(core, "__init__", recording(core.__init__, built))  # type: ignore[misc]
        yield


def recording(construct: Callable[..., None], built: set[Part]) -> Callable[..., None]:
    """Return the constructor, made to write down what it is called with."""
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def record(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        name = type(self).__name__
        settings = [
            (argument, value)
            for argument, value in sorted(given.items())
            if isinstance(value, (int, float, str, AgentConfig, LearnerConfig, type(None)))
            and (name, argument) not in WINDOWS
        ]
        built.add(Part(name, tuple(settings)))
        construct(self, *args, **kwargs)

    return record


def parts_of_serial(run: Path) -> set[Part]:
    """Run in one process, a little."""
    built: set[Part] = set()
    flags = ("--preset", "cartpole", "--serial", "--total-frames", "1200", "--run-dir", str(run))
    with parts_of(built):
        assert launch.main(flags) == 0
    return {part for part in built if part.name not in WIRE | DRIVER}


def parts_of_ray(run: Path, monkeypatch: pytest.MonkeyPatch) -> set[Part]:
    """Construct what would run inside each Ray process, without Ray."""
    built: set[Part] = set()
    spec, source, nobody = resolve(CONFIG.env), own_source(), object()
    # It would hold for this whole process.
    monkeypatch.setattr(learner_worker, "tune_allocator", lambda: None)
    with parts_of(built):
        ReplayProcess(
            CONFIG, spec, 0, 0, total_memory_bytes() // 2, run / "snapshots", (0, 0), source
        )
        actor: Any = ActorProcess(CONFIG, spec, [nobody], nobody, 0, 0, source)
        process = LearnerProcess(
            CONFIG, spec, [nobody], nobody, run / "checkpoints", "", 0, 0, 0, True, 0, False, source
        )
        process._prefetcher.close()
        evaluator: Any = EvaluatorProcess(CONFIG, spec, nobody, 0.0, 0, source)
        for player in (actor, evaluator):  # these make their environments when they run
            player.stop()
            player.run()
    return {part for part in built if part.name not in WIRE | DRIVER}


def test_serial_and_ray_build_the_same_cores_with_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial = parts_of_serial(tmp_path / "serial")
    ray = parts_of_ray(tmp_path / "ray", monkeypatch)
    assert serial == ray
    # And those are what does the work: a wrapper that records nothing would be content too.
    assert {part.name for part in ray} >= {
        "ActorLoop",
        "EpsilonGreedyPolicy",
        "EvaluationLoop",
        "GymnasiumEnvironments",
        "Learner",
        "LearnerLoop",
        "NStepAccumulator",
        "PrioritizedReplay",
        "RateLimiter",
        "ReplaySampler",
        "ReplayShard",
        "ReplayWriter",
        "SegmentStorage",
        "SegmentWriter",
        "SumTree",
    }


@pytest.mark.parametrize("changed", ["class", "setting"])
def test_another_core_or_setting_in_one_mode_is_noticed(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OtherLoop(LearnerLoop):
        pass

    def other_samples(**kwargs: Any) -> LearnerLoop:
        return LearnerLoop(**{**kwargs, "samples": 1})

    with monkeypatch.context() as patch:
        other = OtherLoop if changed == "class" else other_samples
        patch.setattr(learner.assembly, "LearnerLoop", other)
        serial = parts_of_serial(tmp_path / "s")
    differing = serial ^ parts_of_ray(tmp_path / "r", monkeypatch)
    expected = {"OtherLoop", "LearnerLoop"} if changed == "class" else {"LearnerLoop"}
    assert {part.name for part in differing} == expected
