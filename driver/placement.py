"""RAY SHELL: which host a run's processes go to, and what they reserve there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, assert_never

import ray

from common.config import Config
from common.endings import HostUnfit, RunEnded
from driver.hosts import cluster_resources, hosts_in_words
from driver.supervisor import WorkerName

# So little of a host's mark is taken that it bounds nobody's number.
_A_LITTLE = 0.001


class Placement:
    """Learner, weight store and replay together on one host, actors wherever there is room.

    Hosts may say by Ray's custom resources `learner_host` and `actor_host` whom they are for. A
    cluster with a host for the learner has some for actors, too, or will: they are started when
    somebody asks.
    """

    def __init__(self, config: Config, *, is_local: bool) -> None:
        """Reserve a host for the learner.

        Args:
          config: the run.
          is_local: Ray runs for this run alone, on this machine.

        Raises:
          RunEnded: torch sees a GPU and Ray does not.
          HostUnfit: a GPU is asked for, and the cluster with its host for the learner has none.
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
        has_hosts = "learner_host" in cluster  # else one with a GPU may yet be started
        if config.learner.device == "cuda" and has_hosts and cluster.get("GPU", 0) < 1:
            raise HostUnfit(
                f"--learner.device cuda: the cluster has no GPU ({hosts_in_words()}); use auto or "
                "cpu"
            )
        self._cpus = self._cpu_share(cluster.get("CPU", 1.0))
        self._home = {"learner_host": _A_LITTLE} if has_hosts else {}
        self._away = {"actor_host": _A_LITTLE} if has_hosts or "actor_host" in cluster else {}
        self._unfit: list[str] = []  # numbers of hosts that actors and evaluator must not go to
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
                note(f"waiting for {self._home_in_words()}; the cluster has {hosts_in_words()}")
        return True

    def asks(self, name: WorkerName) -> str:
        """Return what a process needs of a host, in words: "1 CPU and actor_host"."""
        options = self._place(name)
        parts = [f"{options['num_cpus']:g} CPU", f"{options.get('num_gpus', 0):g} GPU"]
        wanted = [part for part in parts if not part.startswith("0 ")]
        return " and ".join([*wanted, *options.get("resources", self._home)]) or "room"

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
            return {"num_cpus": self._cpus, "resources": self._home, **self._elsewhere()}
        asked = self._config.actor.cpus
        cpus = self._cpus if asked == "auto" else asked
        return {"num_cpus": cpus, "resources": self._away, **self._elsewhere()}

    def avoid(self, host: str) -> bool:
        """Let no actor and no evaluator go to a host from now on; return whether that is new.

        Args:
          host: Ray's number of it.
        """
        is_new = host not in self._unfit
        if is_new:
            self._unfit.append(host)
        return is_new

    def _home_in_words(self) -> str:
        shards = self._config.replay.shards
        needs = [f"{self._cpus * (1 + shards):g} CPU", *["1 GPU"] * self._cuda, *self._home]
        return f"a host with {' and '.join(needs)} for learner and replay"

    @property
    def has_gpu(self) -> bool:
        """Whether a GPU is reserved for the learner."""
        return self._cuda

    def _elsewhere(self) -> dict[str, Any]:
        hosts = ",".join(self._unfit)
        return {"label_selector": {"ray.io/node-id": f"!in({hosts})"}} if hosts else {}

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
