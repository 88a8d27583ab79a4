"""RAY SHELL: the learner in a process of its own."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import ray
import torch

from common.config import Config
from common.reports import LearnerReport
from common.source import expect_source
from common.types import EnvironmentSpec, Weights
from learner.assembly import (
    checkpoint_payload,
    load_checkpoint,
    make_learner,
    resolve_device,
    resolve_threads,
)
from learner.checkpoint import CheckpointFolder
from learner.learner import tune_allocator
from learner.learner_loop import LearnerLoop
from learner.prefetch import Prefetcher
from replay.assembly import make_sampler
from replay.client import RayShard
from replay.sampler import ROWS_PER_CALL, PriorityUpdater

# Requests to replay and priority updates that may be under way.
_SAMPLES_IN_FLIGHT = 2
_UPDATES_IN_FLIGHT = 16
_REPORT_S = 1.0


class LearnerProcess:
    """Turns a LearnerLoop until it is told to stop."""

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        servers: list[Any],
        store: Any,
        run_dir: str,
        incarnation: int,
        resume_from: str,
        neighbours: int,
        source: str,
    ) -> None:
        """Build the learner and restore it.

        Args:
          config: the run.
          spec: its environment.
          servers: the replay shards' handles.
          store: the weight store's handle.
          run_dir: the run's folder, where checkpoints go.
          incarnation: how many times the run's learner was started before.
          resume_from: path of a checkpoint, "" for a fresh start.
          neighbours: the run's other busy processes on this host.
          source: the driver's source hash.
        """
        expect_source(source, "learner")
        tune_allocator()
        device = resolve_device(config.learner.device)
        torch.set_num_threads(resolve_threads(config.learner.threads, neighbours))
        self._config = config
        self._spec = spec
        self._store = store
        self._learner = make_learner(config, spec, device=device, serial=False)
        agent_steps, episodes, samples = 0, 0, 0
        if resume_from:
            payload = load_checkpoint(Path(resume_from))
            self._learner.load_state_dict(payload["learner"])
            agent_steps = payload["counters"]["agent_steps"]
            episodes = payload["counters"]["episodes"]
            samples = payload["counters"]["samples"]
        shards = [RayShard(server, index) for index, server in enumerate(servers)]
        self._sampler = make_sampler(
            config,
            spec,
            shards=shards,
            in_flight=_SAMPLES_IN_FLIGHT,
            rows_per_request=ROWS_PER_CALL,
        )
        updater = PriorityUpdater(
            shards=shards, window=_UPDATES_IN_FLIGHT, rows_per_call=ROWS_PER_CALL
        )
        self._prefetcher = Prefetcher(
            fetch=self._sampler.fetch, device=device, depth=config.learner.prefetch_batches
        )
        self._loop = LearnerLoop(
            learner=self._learner,
            fetcher=self._prefetcher,
            send_priorities=updater.update,
            send_weights=self._publish,
            agent_steps=lambda: agent_steps + self._sampler.inserts,
            episodes=lambda: episodes + self._sampler.episodes,
            incarnation=incarnation,
            publish_period_learner_steps=config.learner.publish_period_learner_steps,
            samples=samples,
            clock=time.monotonic,
        )
        self._sampler.learner_step = self._learner.learner_step
        self._folder = CheckpointFolder(Path(run_dir) / "checkpoints", config.checkpoint.keep)
        self._last_checkpoint = ""
        self._published: Any = None
        self._stop = threading.Event()
        self._report = self._loop.report("")

    @ray.method(concurrency_group="control")
    def describe(self) -> str:
        """Return one sentence on where and how it learns."""
        device = self._learner.device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
        threads = torch.get_num_threads()
        return f"learning on {where} with {threads} torch thread{'s' if threads > 1 else ''}"

    def run(self) -> None:
        """Learn until `stop`; save at the end."""
        self._loop.publish()
        self._learner.warm_up()
        reported_s = saved_s = time.monotonic()
        try:
            while not self._stop.is_set():
                self._loop.run_step(timeout_s=0.2)
                self._sampler.learner_step = self._learner.learner_step
                now_s = time.monotonic()
                if now_s - reported_s >= _REPORT_S:
                    self._report = self._loop.report(self._last_checkpoint)
                    reported_s = now_s
                if now_s - saved_s >= self._config.checkpoint.every_minutes * 60.0:
                    self._save()
                    saved_s = now_s
        except FloatingPointError:
            raise  # these weights are worth nothing
        except Exception:
            self._save()  # replay or the weight store died, the weights are sound
            raise
        finally:
            self._prefetcher.close()
        self._save()
        self._loop.publish()
        ray.get(self._published, timeout=60.0)  # the last evaluation plays these

    @ray.method(concurrency_group="control")
    def report(self) -> LearnerReport:
        """Return the report of the last second."""
        return self._report

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        """Make `run` save and return soon."""
        self._stop.set()

    def _publish(self, weights: Weights) -> None:
        if self._published is not None:
            ray.get(self._published, timeout=60.0)  # the one before, at least a second ago
        self._published = self._store.publish.remote(weights)

    def _save(self) -> None:
        """Write a checkpoint, unless the report refuses the numbers."""
        self._report = self._loop.report(self._last_checkpoint)
        payload = checkpoint_payload(self._config, self._spec, self._learner, self._loop)
        path = self._folder.save(payload, self._learner.learner_step)
        self._last_checkpoint = str(path)
        self._report = self._report._replace(last_checkpoint=self._last_checkpoint)


_shell: Any = ray.remote  # its overloads do not know concurrency groups
LearnerServer = _shell(concurrency_groups={"control": 1})(LearnerProcess)
