"""RAY SHELL: the learner in a process of its own."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import torch

from common.config import Config
from common.endings import HostUnfit
from common.heartbeat import Alive, Heartbeat
from common.process import descendants
from common.reports import LearnerReport
from common.save_thread import SaveThread
from common.source import Source, expect_source
from common.types import EnvironmentSpec, Weights
from learner.assembly import make_learner, make_learner_loop, resolve_device, resolve_threads
from learner.checkpoint import CheckpointError, CheckpointFolder
from learner.learner import tune_allocator
from learner.payload import checkpoint_payload, expect_resumable
from learner.prefetch import Prefetcher
from replay.assembly import make_sampler
from replay.client import RayHandle
from replay.handles import ROWS_PER_CALL
from replay.priority_updater import PriorityUpdater

# Requests to replay and priority updates that may be under way.
_SAMPLES_IN_FLIGHT = 2
_UPDATES_IN_FLIGHT = 16
_REPORT_S = 1.0
# For the shards to say where they stand. One that is away sets in later.
_CATCH_UP_S = 10.0
_STORE_ANSWER_S = 5.0
# Half of what a process has until its first sign of work: one that hangs in a compiler would be
# killed then, and hang again.
_COMPILE_S = 300.0


class LearnerProcess:
    """Turns a LearnerLoop until it is told to stop."""

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        servers: list[Any],
        store: Any,
        checkpoints: os.PathLike[str],
        resume_from: str,
        agent_steps_before: int,
        episodes_before: int,
        incarnation: int,
        is_first: bool,
        neighbours: int,
        has_gpu: bool,
        source: Source,
    ) -> None:
        """Build the learner and restore it.

        Args:
          config: the run.
          spec: its environment.
          servers: the replay shards' handles.
          store: the weight store's handle.
          checkpoints: folder of the run's checkpoints.
          resume_from: the newest that the driver knows of, "" for none.
          agent_steps_before: agent steps accepted before this start of the run.
          episodes_before: training games that ended before it.
          incarnation: how many times the run's learner was started before.
          is_first: of this start of the run; one that takes the place of another says from where it
            goes on.
          neighbours: the run's other busy processes on this host.
          has_gpu: Ray reserves one for it.
          source: the driver's.
        """
        expect_source(source, "learner")
        tune_allocator()
        device = resolve_device(config.learner.device)
        without = "" if torch.cuda.is_available() else f"torch {torch.__version__} can use no GPU"
        if device.type == "cuda" and without:
            raise HostUnfit(
                f"learner on {socket.gethostname()}: --learner.device cuda: {without} here; "
                "install its CUDA build and NVIDIA's driver, or use auto or cpu"
            )
        torch.set_num_threads(resolve_threads(config.learner.threads, neighbours))
        self._config, self._spec = config, spec
        self._folder = CheckpointFolder(checkpoints, config.checkpoint.keep)
        self._said = f", though one is reserved here: {without}" if has_gpu and without else ""
        self._store = store
        self._learner = make_learner(config, spec, device=device, serial=False)
        self._shards = [RayHandle(server, index) for index, server in enumerate(servers)]
        self._sampler = make_sampler(
            config,
            spec,
            shards=self._shards,
            in_flight=_SAMPLES_IN_FLIGHT,
            rows_per_request=ROWS_PER_CALL,
        )
        # The driver may not have heard of the newest yet: what counts is what is on the disk.
        sound = self._folder.newest_sound(expect_resumable)
        if sound is None and resume_from:
            raise CheckpointError(f"{resume_from}: is gone, and there is no other checkpoint")
        if sound is not None and not is_first:
            passed_over = "".join(f"; passed over {line}" for line in sound.skipped)
            self._said += f"; goes on from {sound.path}{passed_over}"
        if sound is None and incarnation > 0:
            self._said += "; no checkpoint yet: learns anew from the start"
        self._updater = PriorityUpdater(
            shards=self._shards, window=_UPDATES_IN_FLIGHT, rows_per_call=ROWS_PER_CALL
        )
        self._loop = make_learner_loop(
            config,
            learner=self._learner,
            sampler=self._sampler,
            saved=None if sound is None else sound.payload,
            catch_up_s=_CATCH_UP_S,
            make_fetcher=self._start_fetching,
            send_priorities=self._updater.update,
            send_weights=self._publish,
            counts=self._sampler,
            agent_steps_before=agent_steps_before,
            episodes_before=episodes_before,
            incarnation=incarnation,
            clock=time.monotonic,
        )
        self._saver = SaveThread("checkpoint")
        self._published: Any = None
        self._heartbeat = Heartbeat()
        self._stop = threading.Event()
        self._is_warm = threading.Event()
        self._save = threading.Event()
        self._take_report()

    @ray.method(concurrency_group="description")
    def describe_once_warm(self) -> str:
        """Wait until it has tried to compile, then return as `describe`."""
        self._is_warm.wait()
        return self.describe()

    def describe(self) -> str:
        """Return one sentence on where and how it learns."""
        device = self._learner.device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        threads = torch.get_num_threads()
        on = f"learning on {where} with {threads} torch thread{'s' if threads > 1 else ''}"
        return on + self._said

    def run(self) -> None:
        """Learn until `stop`; save at the end.

        Raises:
          FloatingPointError: numbers are no longer finite; nothing was saved since.
          OSError: the last checkpoint could not be written.
          RunEnded: what `learner.compile on` asks for does not work here.
        """
        self._loop.publish()
        try:
            if not self._stop.is_set():
                self._warm_up()
        finally:
            self._is_warm.set()
        reported_s = -float("inf")
        try:
            while not self._stop.is_set():
                self._heartbeat.beat()
                self._loop.run_step(timeout_s=0.2)
                self._loop.publish_if_due()
                self._sampler.version = self._loop.version
                now_s = time.monotonic()
                if now_s - reported_s >= _REPORT_S:
                    self._take_report()
                    self._keep_published()
                    reported_s = now_s
                if self._save.is_set() and self._start_saving():
                    self._save.clear()
        finally:
            has_closed = self._prefetcher.close()
        if has_closed:  # and does not fetch any more, from a shard that hangs
            # Actors stand still by now: what they played last counts, too.
            self._sampler.refresh(_REPORT_S)
        self._saver.wait()
        self._start_saving()
        self._saver.wait()
        self._take_report()
        self._keep_published(_STORE_ANSWER_S)
        self._loop.publish()
        self._keep_published(_STORE_ANSWER_S)  # the last evaluation plays these
        if self._saver.status.trouble:
            raise OSError(self._saver.status.trouble)

    @ray.method(concurrency_group="control")
    def report(self) -> LearnerReport:
        """Return the report of the last second."""
        return self._report

    @ray.method(concurrency_group="control")
    def alive(self) -> Alive:
        """Return who this is and when it last did something."""
        return self._heartbeat.alive()

    @ray.method(concurrency_group="control")
    def save(self) -> None:
        """Make `run` save soon, beside the learning; reports tell how it went."""
        self._save.set()

    @ray.method(concurrency_group="control")
    def replace(self, role: str, index: int, handle: Any) -> None:
        """Talk to another process from now on: a replay shard's, or the weight store's."""
        if role == "replay":
            self._shards[index].replace(handle)
        else:
            self._store = handle

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Make `run` save and return soon."""
        self._stop.set()

    def _start_fetching(self) -> Prefetcher:
        self._prefetcher = Prefetcher(
            fetch=self._sampler.fetch,
            device=self._learner.device,
            depth=self._config.learner.prefetch_batches,
        )
        return self._prefetcher

    def _warm_up(self) -> None:
        """Compile, half a minute and more; meanwhile actors hear how far the run has come.

        A compiler that takes five minutes is ended, which counts as an error of its own.

        Raises:
          RunEnded: as `Learner.warm_up`.
        """
        is_warm = threading.Event()

        def tell() -> None:
            waited_s = 0.0  # of a process that stood still itself, nothing
            while not is_warm.wait(_REPORT_S):
                self._loop.republish()
                waited_s += _REPORT_S
                if waited_s >= _COMPILE_S:
                    for process in descendants():  # they may hold its pipes open
                        process.kill()

        with ThreadPoolExecutor(1, "republish") as pool:
            telling = pool.submit(tell)
            try:
                if why := self._learner.warm_up():
                    self._said += f"; {why}"
            finally:
                is_warm.set()
            telling.result()

    def _publish(self, weights: Weights) -> None:
        """Send weights, unless those before are still under way; the next ones will be newer."""
        if self._keep_published():
            self._published = (self._store, weights, self._store.publish.remote(weights))

    def _keep_published(self, timeout_s: float = 0.0) -> bool:
        """Send the newest weights again if their store died; return whether nothing is under way.

        Args:
          timeout_s: how long to wait for what is under way.
        """
        if self._published is None:
            return True
        store, weights, answer = self._published
        if store is not self._store:  # the one before is gone, and what it held
            store, answer = self._store, self._store.publish.remote(weights)
            self._published = (store, weights, answer)
        return bool(ray.wait([answer], timeout=timeout_s)[0])

    def _take_report(self) -> None:
        """Report, unless the numbers are refused."""
        self._report = self._loop.report(
            dropped_priority_updates=self._updater.dropped, save=self._saver.status
        )

    def _start_saving(self) -> bool:
        """Start to write a checkpoint; False while the one before is being written."""
        return self._saver.start(self._capture)

    def _capture(self) -> Callable[[], str]:
        self._take_report()
        step = self._learner.learner_step
        payload = checkpoint_payload(
            self._config, self._spec, self._learner, self._loop, self._sampler.rng_state
        )
        return lambda: str(self._folder.save(payload, step))


_shell: Any = ray.remote  # its overloads do not know concurrency groups
LearnerServer = _shell(concurrency_groups={"control": 1, "description": 1})(LearnerProcess)
