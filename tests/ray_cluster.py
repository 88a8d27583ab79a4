"""A cluster of several nodes on this machine, whose nodes come and go as a test says."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
from launching import ON_THE_PATH, title_of

# In a process of its own, since a test's may have joined the session's Ray. Reads {"cpus": ...,
# "resources": ..., "environment": ...} for each node to add, a number for one to end, and answers
# each line.
_CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cluster, nodes = Cluster(), {}
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, dict):
        node = cluster.add_node(
            num_cpus=asked["cpus"], resources=asked["resources"], include_dashboard=False,
            object_store_memory=150 * 2**20, env_vars=asked["environment"],
        )
        raylet = node.all_processes["raylet"][0].process.pid
        nodes[raylet] = node
        print(json.dumps({"raylet": raylet, "address": cluster.address}), flush=True)
    else:
        cluster.remove_node(nodes.pop(asked), allow_graceful=False)
        print("{}", flush=True)
cluster.shutdown()
"""


class RayCluster:
    """A running cluster, told what to do; the first node is its head."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = ""

    def add(
        self, cpus: int, *, environment: Mapping[str, str] | None = None, **resources: int
    ) -> int:
        """Add a node with these CPUs and custom resources; return its raylet's process id."""
        asked = {"cpus": cpus, "resources": resources, "environment": environment or {}}
        answer = self._ask(asked)
        self.address = answer["address"]
        return int(answer["raylet"])

    def end(self, raylet: int) -> None:
        """End a node at once, as a host that loses its power."""
        self._ask(raylet)

    def _ask(self, what: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(what)}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextlib.contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """Run a cluster without nodes; whatever it has then is ended with it."""
    # Its token is the session's, as is everything else of the environment that conftest sets.
    with subprocess.Popen(
        [sys.executable, "-c", _CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **ON_THE_PATH},
    ) as process:
        assert process.stdin is not None
        try:
            yield RayCluster(process)
            process.stdin.close()
            process.wait(60)
        finally:
            for one in psutil.process_iter():
                if _is_of_session(one, process.pid):
                    one.kill()


def children(raylet: int, name: str) -> int:
    """Return how many workers of a kind a raylet has."""
    workers = psutil.Process(raylet).children()
    return sum(title_of(worker).startswith(f"ray::{name}") for worker in workers)


def _is_of_session(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session
    except OSError:
        return False
