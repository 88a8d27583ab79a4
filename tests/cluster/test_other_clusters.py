"""docs/cluster/local.yaml and gcp.yaml: valid for Ray, and otherwise the root's cluster.yaml."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from cluster_files import Config, read_cluster, replace_in
from ray.autoscaler._private.util import prepare_config, validate_config

NAMES = ("local", "gcp")

# What test_cluster_yaml.py holds of cluster.yaml, it so holds of the others: the source and the
# token on every host, what is not sent, who may speak to Ray, versions.
SAME = ("file_mounts", "rsync_exclude", "rsync_filter", "setup_commands", "worker_setup_commands")
PLACES = {"head": "learner_host", "worker": "actor_host"}
# What Ray's autoscaler on the head needs to speak to the provider.
CLIENT = {"local": "", "gcp": " google-api-python-client"}


def problems(name: str, config: Config) -> list[str]:
    """Return everything that is wrong with a cluster configuration, in words."""
    try:
        full = prepare_config(copy.deepcopy(config))  # Ray's defaults filled in
        validate_config(full)  # Ray's schema; node_config is free-form there
    except Exception as error:  # whatever Ray meets: ValidationError, KeyError, an abort of its own
        return [f"Ray refuses it: {type(error).__name__}: {error}"]
    root = read_cluster("cluster.yaml")
    found = [f"{key} is not as in cluster.yaml" for key in SAME if config.get(key) != root[key]]
    if config["head_setup_commands"] != [
        command.replace(" boto3", CLIENT[name]) for command in root["head_setup_commands"]
    ]:
        found.append("head_setup_commands is not as in cluster.yaml")
    if config["auth"]["ssh_user"] != root["auth"]["ssh_user"]:
        found.append("file_mounts are in another user's home")
    for kind, place in PLACES.items():
        key = f"{kind}_start_ray_commands"
        option = f""" --resources='{{"{place}": 1}}'""" if name == "local" else ""
        wanted = [f"{c}{option}" if "ray start" in c else c for c in root[key]]
        if config[key] != wanted:
            found.append(f"{key} is not as in cluster.yaml, with its place")
    if name == "local":
        hosts = len(config["provider"]["worker_ips"])
        if not config["min_workers"] == config["max_workers"] == hosts:
            found.append("a host would be left out, or be waited for in vain")
    else:
        found += _problems_of_hosts(full)
    return found


def _problems_of_hosts(full: Config) -> list[str]:
    found = []
    head = full["head_node_type"]
    for name, node in full["available_node_types"].items():
        wanted = PLACES["head" if name == head else "worker"]
        if [key for key in node["resources"] if key.endswith("_host")] != [wanted]:
            found.append(f"{name}: must offer `{wanted}` and no other role's place")
        if ("GPU" in node["resources"]) != (name == head):
            found.append(f"{name}: the head has the GPU")
        # Ray passes on what is written, without a look at the machine.
        if not node["node_config"]["machineType"].endswith(f"-{node['resources']['CPU']}"):
            found.append(f"{name}: CPU is not what the machine has")
        scheduling = node["node_config"]["scheduling"]
        if (scheduling.get("provisioningModel") == "SPOT") != (name != head):
            found.append(f"{name}: actor hosts are spot machines, the head is not")
        zone = full["provider"]["availability_zone"]
        for disk in node["node_config"]["disks"]:
            if not disk["initializeParams"]["diskType"].startswith(f"zones/{zone}/"):
                found.append(f"{name}: a disk is in another zone")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_cluster_has_no_problems(name: str) -> None:
    assert problems(name, read_cluster(f"docs/cluster/{name}.yaml")) == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_bash(name: str) -> None:
    config = read_cluster(f"docs/cluster/{name}.yaml")
    for key in (key for key in config if key.endswith("_commands")):
        for command in config[key]:
            done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_file_names_nobody_elses_machines(name: str) -> None:
    """Used as it lies there it must reach nothing: the values are no valid ones of anybody's."""
    provider = read_cluster(f"docs/cluster/{name}.yaml")["provider"]
    if name == "local":
        # A range that is kept free for documentation (RFC 5737).
        for address in (provider["head_ip"], *provider["worker_ips"]):
            assert address.startswith("192.0.2.")
    else:
        assert provider["project_id"] == "YOUR-PROJECT"  # a project's id is in small letters


def test_gcp_scales_actor_hosts_from_none() -> None:
    full = prepare_config(read_cluster("docs/cluster/gcp.yaml"))
    actors = full["available_node_types"]["actors"]
    assert actors["min_workers"] == 0
    assert 0 < actors["max_workers"] <= full["max_workers"]


def node(config: Config, name: str) -> Config:
    """Return a node type."""
    found: Config = config["available_node_types"][name]
    return found


TOKEN = "/home/ubuntu/.ray/auth_token"
BAD_IN_BOTH: list[tuple[Callable[[Config], Any], str]] = [
    (lambda c: c.update(learning_rate=0.1), "Ray refuses"),
    (lambda c: c["file_mounts"].pop(TOKEN), "file_mounts is not"),
    (lambda c: c["rsync_exclude"].remove("**/runs"), "rsync_exclude is not"),
    (lambda c: c["auth"].update(ssh_user="root"), "another user's home"),
    (replace_in("setup_commands", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"), "is not as in"),
    (replace_in("head_setup_commands", "==2.60.0", "==2.61.0"), "head_setup_commands is not"),
    (replace_in("worker_setup_commands", "'torch==2.13.0'", "torch"), "worker_setup_commands is"),
    (
        replace_in("head_start_ray_commands", "unset OMP_NUM_THREADS;", ""),
        "head_start_ray_commands is not",
    ),
]
KNOWN_BAD = [(name, *bad) for name in NAMES for bad in BAD_IN_BOTH] + [
    ("local", lambda c: c["provider"].pop("worker_ips"), "Ray refuses"),
    ("local", lambda c: c.update(available_node_types={"a": {}}), "Ray refuses"),
    ("local", lambda c: c["provider"]["worker_ips"].pop(), "left out"),
    (
        "local",
        replace_in("worker_start_ray_commands", "actor_host", "learner_host"),
        "worker_start_ray_commands is not",
    ),
    ("gcp", lambda c: c.update(head_node_type="nobody"), "Ray refuses"),
    ("gcp", lambda c: node(c, "actors").pop("resources"), "Ray refuses"),
    ("gcp", lambda c: node(c, "learner").update(resources={"CPU": 32, "GPU": 1}), "learner_host"),
    ("gcp", lambda c: node(c, "learner")["resources"].pop("GPU"), "has the GPU"),
    ("gcp", lambda c: node(c, "actors")["resources"].update(CPU=88), "what the machine has"),
    ("gcp", lambda c: node(c, "actors")["node_config"].update(scheduling={}), "spot"),
    ("gcp", lambda c: c["provider"].update(availability_zone="us-west1-a"), "another zone"),
]


@pytest.mark.parametrize(("name", "change", "expected"), KNOWN_BAD)
def test_known_bad_cluster_is_rejected(
    name: str, change: Callable[[Config], Any], expected: str
) -> None:
    config = read_cluster(f"docs/cluster/{name}.yaml")
    change(config)
    found = problems(name, config)
    assert any(expected in problem for problem in found), found
