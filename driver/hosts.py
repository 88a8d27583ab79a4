"""RAY SHELL: the cluster's hosts, as Ray knows them: what they have, and who runs where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from ray._private import state

# Memory, and what Ray keeps account of by resources of its own.
_NO_PLACE = re.compile("memory$|^node:|_group_|^accelerator_type:")


class Host(NamedTuple):
    """One host of the cluster.

    Fields:
      name: what it calls itself.
      address: its address among the cluster's hosts.
      resources: what it has in all beside memory, e.g. {"CPU": 32.0, "actor_host": 1.0}.
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
            node["NodeManagerHostname"],
            node["NodeManagerAddress"],
            {k: n for k, n in sorted(node["Resources"].items()) if not _NO_PLACE.search(k)},
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }


def hosts_in_words() -> str:
    """Return which hosts there are and what places they have: "head: 4 CPU, 1 learner_host"."""
    found = []
    for host in living_hosts().values():
        places = ", ".join(f"{number:g} {name}" for name, number in host.resources.items())
        found.append(f"{host.name}: {places or 'nothing'}")
    return "; ".join(found)


def hosts_of(handles: Mapping[Any, Any]) -> dict[Any, str]:
    """Return on which host, by Ray's number, each of these processes was begun.

    One for which no host has room is missing, and so is one whose process is yet to be made. Of one
    that died before it had a host the number is "".

    Args:
      handles: Ray's handles of the processes, by any key.
    """
    # One call for all of them. A process that never was has no number of the operating system's.
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    table = state.actors(job_id=job)
    found = {}
    for key, handle in handles.items():
        actor = table.get(handle._actor_id.hex(), {"Pid": 0, "State": ""})
        if actor["Pid"]:
            found[key] = actor["Address"]["NodeID"]
        elif actor["State"] == "DEAD":
            found[key] = ""
    return found
