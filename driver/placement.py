"""RAY SHELL: which host a run's processes go to, and what they reserve there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, assert_never

import ray

from common.config import Config
from common.endings import RunEnded
from driver.supervisor import WorkerName


class Placement:
    """Learner, weight store and replay together on one host, actors wherever there is room.

    Hosts may say by Ray's custom resources `learner_host` and `actor_host` whom they are for.
    """

    def __init__(self, config: Config, *, is_local: bool) -> None:
        """Reserve a host for the learner.

        Args:
          config: the run.
          is_local: Ray runs for this run alone, on this machine.

        Raises:
          RunEnded: torch sees a GPU and Ray does not.
        """
        cluster = cluster_resources()
        self._config = config
        self._is_local = is_local
        match config.learner.device:
            case "auto":
                self._cuda = cluster.get("GPU", 0) >= 1
            case "cpu" | "cuda" as device:
                self._cuda = device == "cuda"
            case device:
                assert_never(device)
        if is_local and self._cuda and cluster.get("GPU", 0) < 1:
            raise RunEnded("torch sees a CUDA device, but Ray sees no GPU on this machine")
        self._cpus = self._cpu_share(cluster.get("CPU", 1.0))
        self._away = {"actor_host": 0.001} if "actor_host" in cluster else {}
        self._home = {"learner_host": 0.001} if "learner_host" in cluster else {}
        home = {"CPU": self._cpus, **self._home}
        gpu = {"GPU": 1} if self._cuda else {}
        self._bundles = [home | gpu, *[dict(home)] * config.replay.shards]
        self._group = ray.util.placement_group(self._bundles, strategy="STRICT_PACK")

    def wait(self, is_cancelled: Callable[[], bool], note: Callable[[str], None]) -> bool:
        """Wait for a host that has room for learner and replay; return False when cancelled.

        Args:
          is_cancelled: asked once a second.
          note: told what is waited for, once it takes long.
        """
        ready = self._group.ready()
        waited_s = 0
        while not ray.wait([ready], timeout=1.0)[0]:
            if is_cancelled():
                return False
            waited_s += 1
            if waited_s == 10:
                note(
                    f"waiting for a host with {self._bundles} for learner and replay; the cluster "
                    f"has {cluster_resources()}"
                )
        return True

    def options(self, name: WorkerName) -> dict[str, Any]:
        """Return Ray's options for a process."""
        # Ray would send a record of every call to its control service, which keeps 100,000: at some
        # hundred calls a second, a process that grows by a megabyte a second for minutes.
        return {"enable_task_events": False, **self._place(name)}

    def _place(self, name: WorkerName) -> dict[str, Any]:
        role, index = name
        if role == "weight_store":
            return self._beside_learner(0, num_cpus=0)
        if role == "learner":
            return self._beside_learner(0, num_cpus=self._cpus, num_gpus=int(self._cuda))
        if role == "replay":
            return self._beside_learner(1 + index, num_cpus=self._cpus)
        if role == "evaluator":
            return {"num_cpus": self._cpus, "resources": self._home}
        asked = self._config.actor.cpus
        return {"num_cpus": self._cpus if asked == "auto" else asked, "resources": self._away}

    @property
    def neighbours(self) -> int:
        """How many busy processes share the learner's host: actors only if all is local."""
        return self._config.replay.shards + (self._config.actor.count if self._is_local else 0)

    def _cpu_share(self, cores: float) -> float:
        """CPUs for each process: whole ones on a cluster, a share of the cores on one machine."""
        config = self._config
        if not self._is_local:
            return 1.0
        processes = config.actor.count + config.replay.shards + 1 + int(config.evaluator.enabled)
        return min(1.0, math.floor(cores / processes * 1000) / 1000)

    def _beside_learner(self, bundle: int, **options: Any) -> dict[str, Any]:
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            self._group, placement_group_bundle_index=bundle
        )
        return {"scheduling_strategy": strategy, **options}


def cluster_resources() -> dict[str, float]:
    """Return what the cluster has in all, e.g. {"CPU": 2.0}."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources
