"""RAY SHELL: the cluster's hosts, as Ray knows them: what they have, and who runs where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from ray._private import state


class Host(NamedTuple):
    """One host of the cluster.

    Fields:
      name: what it calls itself.
      address: its address among the cluster's hosts.
      resources: what it has in all, e.g. {"CPU": 32.0, "actor_host": 1.0}.
    """

    name: str
    address: str
    resources: dict[str, float]


def cluster_resources() -> dict[str, float]:
    """Return what the cluster has in all, e.g. {"CPU": 2.0}."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources


def living_hosts() -> dict[str, Host]:
    """Return the cluster's living hosts by Ray's number of each."""
    return {
        node["NodeID"]: Host(
            node["NodeManagerHostname"], node["NodeManagerAddress"], dict(node["Resources"])
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }


def may_have(resource: str) -> bool:
    """Return whether a host of the cluster has a resource, or may once the cluster grows."""
    grown = state.state.get_max_resources_from_cluster_config() or {}
    return max(cluster_resources().get(resource, 0.0), grown.get(resource, 0.0)) >= 1


def hosts_in_words() -> str:
    """Return which hosts there are and what places they have: "head: 4 CPU, 1 learner_host"."""
    return "; ".join(
        f"{host.name}: {', '.join(f'{n:g} {name}' for name, n in places_of(host)) or 'nothing'}"
        for host in living_hosts().values()
    )


def places_of(host: Host) -> list[tuple[str, float]]:
    """Return what a host offers beside memory, without Ray's own bookkeeping."""
    return [
        (name, number)
        for name, number in sorted(host.resources.items())
        if not re.search("memory$|^node:|_group_|^accelerator_type:", name)
    ]


def hosts_of(handles: Mapping[Any, Any]) -> dict[Any, str]:
    """Return on which host, by Ray's number, each of these processes was begun.

    One for which no host has room is missing, and so is one whose process is yet to be made.

    Args:
      handles: Ray's handles of the processes, by any key.
    """
    # One call for all of them. A process that never was has no number of the operating system's.
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    table = state.actors(job_id=job)
    begun = {number: actor for number, actor in table.items() if actor["Pid"]}
    return {
        key: begun[number]["Address"]["NodeID"]
        for key, handle in handles.items()
        if (number := handle._actor_id.hex()) in begun
    }
