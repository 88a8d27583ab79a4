"""RAY SHELL: an actor, which plays, pushes and polls for weights; and the evaluator."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray
import torch

from actors.assembly import make_actor_loop
from actors.evaluator import make_evaluation
from common.config import Config
from common.heartbeat import Alive, Heartbeat
from common.reports import EvaluationResult
from common.seeding import derive_seed
from common.source import Source, expect_source
from common.types import EnvironmentSpec, Weights, WeightsVersion
from replay.assembly import make_writer
from replay.client import RayHandle

# The weight store answers at once; one that is silent so long is gone.
_ANSWER_S = 60.0
# The driver puts another store in the place of a dead one within seconds.
_NEXT_STORE_S = 2.0
# Until the learner is up there is nothing to act on; asking more often would only disturb it.
_FIRST_WEIGHTS_POLL_S = 0.1


class WeightsPoller:
    """Asks the weight store for newer weights without waiting.

    The loop it lives in:

        every now and then: poller.ask()
        every step:         weights = poller.poll()     # None: nothing newer is here

    The same weights are newer where they were published again, at more agent steps.

    At most one question or one transfer is under way, and none for longer than it takes: weights
    are as old as the question, not as the one before. A question that dies with the store is
    forgotten; the driver puts another store in its place.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._question: Any = None
        self._transfer: Any = None
        self._latest: tuple[WeightsVersion, int] | None = None  # with the run's agent steps
        self._taken: tuple[WeightsVersion, int] | None = None

    def replace(self, store: Any) -> None:
        """Ask `store` from now on; any thread may call this."""
        self._store = store

    def ask(self) -> None:
        """Ask for the newest weights, unless an answer is under way."""
        if self._transfer is None and self._question is None:
            self._question = self._store.latest.remote()

    def poll(self) -> Weights | None:
        """Return newer weights if they have arrived."""
        try:
            return self._poll()
        except ray.exceptions.RayError:
            self._question = self._transfer = None
            return None

    def _poll(self) -> Weights | None:
        if self._transfer is not None and _is_here(self._transfer):
            assert self._latest is not None
            buffer = ray.get(self._transfer, timeout=_ANSWER_S)
            self._taken, self._transfer = self._latest, None
            version, agent_steps = self._taken
            return Weights(version, buffer, agent_steps)
        if self._question is not None and _is_here(self._question):
            latest = ray.get(self._question, timeout=_ANSWER_S)
            self._question = None
            newest = (latest.version, latest.agent_steps)
            if latest.version is not None and newest != self._taken:
                self._latest, self._transfer = newest, latest.buffer[0]
        return None


def _is_here(ref: Any) -> bool:
    ready, _ = ray.wait([ref], timeout=0)
    return bool(ready)


class ActorProcess:
    """Turns an ActorLoop until it is told to stop."""

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        servers: list[Any],
        store: Any,
        actor: int,
        incarnation: int,
        source: Source,
    ) -> None:
        expect_source(source, f"actor {actor}")
        torch.set_num_threads(1)
        self._config = config
        self._spec = spec
        self._actor = actor
        self._incarnation = incarnation
        self._shards = [RayHandle(server, index) for index, server in enumerate(servers)]
        self._writer = make_writer(config, shards=self._shards, actor=actor, clock=time.monotonic)
        self._poller = WeightsPoller(store)
        self._heartbeat = Heartbeat()
        self._stop = threading.Event()

    def run(self) -> None:
        """Play until `stop`.

        Raises:
          EnvironmentFailed: an environment raised, or answered what it may not.
        """
        # Not in the constructor: of what that raises Ray tells the text alone, and until it returns
        # nobody can ask where a slow environment is.
        self._loop = make_actor_loop(
            self._config,
            self._spec,
            actor=self._actor,
            incarnation=self._incarnation,
            heartbeat=self._heartbeat,
        )
        # No sign of life yet: that an actor is back means that it plays.
        while not self._take_weights() and not self._stop.wait(_FIRST_WEIGHTS_POLL_S):
            self._poller.ask()
        vector_steps_per_poll = max(
            1, self._config.actor.weights_poll_agent_steps // self._config.actor.envs
        )
        step = 0
        while not self._stop.is_set():
            self._heartbeat.beat()
            segments = self._loop.collect(1)
            if segments:
                with self._loop.pushing():
                    games, phases = self._loop.drain_episodes(), self._loop.drain_phases()
                    self._writer.push(segments, games, phases, self._loop.epsilon)
            # Also without a new push: one that was refused keeps its turn by being offered again.
            with self._loop.waiting():
                while not self._stop.is_set() and not self._writer.has_room():
                    self._heartbeat.beat()
                    self._writer.wait(0.1)
            step += 1
            if step % vector_steps_per_poll == 0:
                self._poller.ask()
            self._take_weights()

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Make `run` return soon."""
        self._stop.set()

    @ray.method(concurrency_group="control")
    def alive(self) -> Alive:
        """Return who this is and when it last did something."""
        return self._heartbeat.alive()

    @ray.method(concurrency_group="control")
    def replace(self, role: str, index: int, handle: Any) -> None:
        """Talk to another process from now on: a replay shard's, or the weight store's."""
        if role == "replay":
            self._shards[index].replace(handle)
        else:
            self._poller.replace(handle)

    def _take_weights(self) -> bool:
        weights = self._poller.poll()
        if weights is None:
            return False
        self._loop.take(weights)
        return True


class EvaluatorProcess:
    """Plays whole games with the newest weights, on its own schedule."""

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        store: Any,
        first_in_s: float,
        incarnation: int,
        source: Source,
    ) -> None:
        expect_source(source, "evaluator")
        self._next_s = time.monotonic() + first_in_s
        torch.set_num_threads(1)
        self._config = config
        self._spec = spec
        self._incarnation = incarnation
        self._store = store
        self._heartbeat = Heartbeat()
        self._stop = threading.Event()
        self._finish = threading.Event()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._results: list[tuple[EvaluationResult, Weights]] = []

    def run(self) -> None:
        """Evaluate every so many minutes, until `stop` or `finish`.

        Raises:
          EnvironmentFailed: an environment raised, or answered what it may not.
        """
        seed = derive_seed(self._config.seed, "evaluator", self._incarnation)
        # Not in the constructor, as in ActorProcess.
        self._evaluation = make_evaluation(self._config, self._spec, seed, self._heartbeat)
        period_s = self._config.evaluator.every_minutes * 60.0
        while not self._stop.is_set():
            self._sleep_until(self._next_s)
            finishing = self._finish.is_set()
            self._next_s = time.monotonic() + period_s
            weights = self._newest()
            if weights is None:
                self._next_s = time.monotonic() + min(period_s, _NEXT_STORE_S)
            elif not self._stop.is_set():
                self._evaluate(weights)
            if finishing:
                return

    @ray.method(concurrency_group="control")
    def take_results(self) -> list[tuple[EvaluationResult, Weights]]:
        """Return the evaluations since the last call, each with the weights that played."""
        with self._lock:
            results, self._results = self._results, []
        return results

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Make `run` return soon, also in the middle of a game."""
        self._stop.set()
        self._wake.set()

    @ray.method(concurrency_group="control")
    def alive(self) -> Alive:
        """Return who this is and when it last did something."""
        return self._heartbeat.alive()

    @ray.method(concurrency_group="control")
    def replace(self, role: str, index: int, handle: Any) -> None:
        """Talk to another weight store from now on; the shards are none of its affairs."""
        del index
        if role == "weight_store":
            self._store = handle

    @ray.method(concurrency_group="control")
    def finish(self) -> None:
        """Make `run` evaluate the newest weights once more and return."""
        self._finish.set()
        self._wake.set()

    def _sleep_until(self, wake_s: float) -> None:
        while (left_s := wake_s - time.monotonic()) > 0.0 and not self._wake.is_set():
            self._heartbeat.beat()
            self._wake.wait(min(left_s, 1.0))

    def _should_stop(self) -> bool:
        self._heartbeat.beat()
        return self._stop.is_set()

    def _newest(self) -> Weights | None:
        """Return the newest weights, or None: there are none yet, or the store is gone."""
        try:
            latest = ray.get(self._store.latest.remote(), timeout=_ANSWER_S)
            if latest.version is None:
                return None
            buffer = ray.get(latest.buffer[0], timeout=_ANSWER_S)
        except ray.exceptions.RayError:
            return None
        return Weights(latest.version, buffer, latest.agent_steps)

    def _evaluate(self, weights: Weights) -> None:
        result = self._evaluation.evaluate(
            weights, self._config.evaluator.episodes, self._should_stop
        )
        if result is None:
            return
        with self._lock:
            self._results.append((result, weights))


_shell: Any = ray.remote  # its overloads do not know concurrency groups
Actor = _shell(concurrency_groups={"control": 1})(ActorProcess)
Evaluator = _shell(concurrency_groups={"control": 1})(EvaluatorProcess)
