"""docs/cluster/kuberay.yaml: fields that KubeRay knows, and what Ray's autoscaler reads there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "docs" / "cluster" / "kuberay.yaml"

Manifest = dict[str, Any]

# The fields that the manifest uses, with their types, as in KubeRay 1.7.0
# (helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml, version v1, commit 59d663a), which is too
# large to lie here. "!" marks what is required, "*" stands for any name. A quantity may also be an
# integer there; here it is a string, as in all of Kubernetes' own examples.
STRINGS = {"*": str}
CONTAINER = {
    "name!": str,
    "image": str,
    "workingDir": str,
    "env": [{"name!": str, "value": str}],
    "resources": {"limits": STRINGS, "requests": STRINGS},
    "volumeMounts": [{"name!": str, "mountPath!": str}],
}
TEMPLATE = {
    "spec": {
        "restartPolicy": str,
        "securityContext": {"fsGroup": int},
        "containers!": [CONTAINER],
        "volumes": [{"name!": str, "persistentVolumeClaim": {"claimName!": str}}],
    }
}
GROUP = {"resources": STRINGS, "rayStartParams": STRINGS, "template!": TEMPLATE}
RAY_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "backoffLimit": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": str, "secretName": str},
            "enableInTreeAutoscaling": bool,
            "autoscalerOptions": {"version": str, "idleTimeoutSeconds": int},
            "headGroupSpec!": GROUP,
            "workerGroupSpecs": [
                {
                    "groupName!": str,
                    "replicas": int,
                    "minReplicas!": int,
                    "maxReplicas!": int,
                    **GROUP,
                }
            ],
        },
    },
}


def load() -> tuple[Manifest, Manifest]:
    """Return the volume's claim and the job."""
    claim, job = yaml.safe_load_all(MANIFEST.read_text())
    return claim, job


def misfits(value: Any, form: Any, where: str = "") -> list[str]:
    """Return where a value has another form than the one given, in words."""
    if isinstance(form, list):
        if not isinstance(value, list):
            return [f"{where}: must be a list"]
        return [m for i, item in enumerate(value) for m in misfits(item, form[0], f"{where}[{i}]")]
    if not isinstance(form, dict):
        return [] if type(value) is form else [f"{where}: must be {form.__name__}: {value!r}"]
    if not isinstance(value, dict):
        return [f"{where}: must be a mapping"]
    forms = {name.rstrip("!"): inner for name, inner in form.items()}
    found = [
        f"{where}.{name[:-1]} is missing"
        for name in form
        if name.endswith("!") and name[:-1] not in value
    ]
    for name, inner in value.items():
        if name in forms or "*" in forms:
            found += misfits(inner, forms.get(name, forms.get("*")), f"{where}.{name}")
        else:
            found.append(f"{where}.{name} is unknown")
    return found


def problems(claim: Manifest, job: Manifest) -> list[str]:
    """Return everything that is wrong with the manifest, in words."""
    if found := misfits(job, RAY_JOB):
        return found
    spec = job["spec"]["rayClusterSpec"]
    head = spec["headGroupSpec"]["template"]["spec"]
    containers = [*head["containers"]]
    for group in spec["workerGroupSpecs"]:
        containers += group["template"]["spec"]["containers"]
    found = []
    cluster_yaml = (ROOT / "cluster.yaml").read_text()
    if f"ray[default]=={spec['rayVersion']}'" not in cluster_yaml:
        found.append(f"Ray {spec['rayVersion']} is not the one of cluster.yaml")
    if spec.get("authOptions", {}) != {"mode": "token", "secretName": "troop-token"}:
        found.append("the token is not asked for, or not the Secret's")
    if len({container["image"] for container in containers}) != 1:
        found.append("hosts have different images, so perhaps different code")
    env = {entry["name"]: entry["value"] for entry in containers[0]["env"]}
    found += [
        f"{name}={value}: cluster.yaml says otherwise"
        for name, value in env.items()
        if "health_check" in name and f"{name}={value}" not in cluster_yaml
    ]
    if sum("health_check" in name for name in env) != 3:
        found.append("a health check's setting is missing")
    volumes = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in head["volumes"]}
    mounts = {m["mountPath"]: m["name"] for m in containers[0]["volumeMounts"]}
    if volumes.get(mounts.get("/runs", "")) != claim["metadata"]["name"]:
        found.append("/runs is not on the claimed volume, so a run would go with its pod")
    return found


def test_kuberay_yaml_has_no_problems() -> None:
    assert problems(*load()) == []


def test_kuberay_yaml_holds_no_token() -> None:
    """The Secret is made by a command; a file with one would sooner or later be committed."""
    kinds = [document["kind"] for document in load()]
    assert kinds == ["PersistentVolumeClaim", "RayJob"]


def test_command_is_the_one_of_the_documentation() -> None:
    _, job = load()
    entrypoint = job["spec"]["entrypoint"]
    assert entrypoint == "python launch.py --address auto --actors 32 --run-dir /runs/first"


def test_autoscaler_of_ray_reads_places_for_learner_and_actors() -> None:
    _, job = load()
    cluster = {
        "metadata": {"name": "troop", "namespace": "default"},
        "spec": job["spec"]["rayClusterSpec"],
    }
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    head, actors = config["available_node_types"].values()
    assert config["idle_timeout_minutes"] == 10
    assert (head["resources"]["GPU"], head["resources"]["learner_host"]) == (1, 1)
    assert "actor_host" not in head["resources"]
    assert (actors["min_workers"], actors["max_workers"]) == (0, 8)
    assert actors["resources"]["actor_host"] == 1
    assert not {"GPU", "learner_host"} & set(actors["resources"])
    # As many actors as the command asks for find room.
    assert actors["resources"]["CPU"] * actors["max_workers"] >= 32


def cluster_of(job: Manifest) -> Manifest:
    """Return what the job says of its cluster."""
    found: Manifest = job["spec"]["rayClusterSpec"]
    return found


def head_container(job: Manifest) -> Manifest:
    """Return the container of Ray's head."""
    found: Manifest = cluster_of(job)["headGroupSpec"]["template"]["spec"]["containers"][0]
    return found


KNOWN_BAD: list[tuple[Callable[[Manifest], Any], str]] = [
    (lambda j: cluster_of(j).update(enableAutoscaling=True), "enableAutoscaling is unknown"),
    (lambda j: head_container(j).update(command="ray start"), "command is unknown"),
    (lambda j: cluster_of(j).pop("headGroupSpec"), "headGroupSpec is missing"),
    (lambda j: cluster_of(j)["workerGroupSpecs"][0].update(maxReplicas="8"), "must be int"),
    (lambda j: head_container(j)["env"][0].update(value=1000), "must be str"),
    (lambda j: head_container(j).update(env={}), "must be a list"),
    (lambda j: cluster_of(j).update(rayVersion="2.52.0"), "not the one of cluster.yaml"),
    (lambda j: cluster_of(j).pop("authOptions"), "token is not asked for"),
    (lambda j: cluster_of(j)["authOptions"].update(mode="disabled"), "token is not asked for"),
    (lambda j: head_container(j).update(image="other"), "different images"),
    (lambda j: head_container(j)["env"][0].update(value="3000"), "says otherwise"),
    (lambda j: head_container(j)["env"].pop(0), "health check's setting is missing"),
    (lambda j: head_container(j).update(volumeMounts=[]), "not on the claimed volume"),
]


@pytest.mark.parametrize(("change", "expected"), KNOWN_BAD)
def test_known_bad_manifest_is_rejected(change: Callable[[Manifest], Any], expected: str) -> None:
    claim, job = load()
    bad = copy.deepcopy(job)
    change(bad)
    found = problems(claim, bad)
    assert any(expected in problem for problem in found), found
