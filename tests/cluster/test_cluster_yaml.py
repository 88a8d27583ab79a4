"""cluster.yaml: valid for Ray, explicit about versions, closed but for SSH. No cloud is asked."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cluster_files import Config, read_cluster, replace_in
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.aws.config import _create_default_inbound_rules
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ALLOWED = {r.name.lower(): r.specifier for r in map(Requirement, PROJECT["dependencies"])}
COMMAND_LISTS = ("head_setup_commands", "worker_setup_commands")
HEALTH_CHECKS = (
    "RAY_health_check_period_ms",
    "RAY_health_check_timeout_ms",
    "RAY_health_check_failure_threshold",
)


def load() -> Config:
    """Return cluster.yaml as it is."""
    return read_cluster("cluster.yaml")


def problems(config: Config) -> list[str]:
    """Return everything that is wrong with a cluster configuration, in words."""
    try:
        full = prepare_config(copy.deepcopy(config))  # Ray's defaults filled in
        validate_config(full)  # Ray's schema; node_config is free-form there
    except Exception as error:  # whatever Ray meets: ValidationError, KeyError, ValueError
        return [f"Ray refuses it: {type(error).__name__}: {error}"]
    return [
        *_problems_of_hosts(full),
        *_problems_of_doors(full),
        *_problems_of_token(full),
        *_problems_of_versions(full),
        *_problems_of_start(config, full),
    ]


def _problems_of_hosts(full: Config) -> list[str]:
    found = []
    head = full["head_node_type"]
    for name, node in full["available_node_types"].items():
        image = str(node["node_config"].get("ImageId", ""))
        if not re.match(r"ami-(?!0+$)[0-9a-f]{8,}$|resolve:ssm:/aws/service/", image):
            found.append(f"{name}: no image is named, or not by Amazon: {image!r}")
        wanted = "learner_host" if name == head else "actor_host"
        if [key for key in node["resources"] if key.endswith("_host")] != [wanted]:
            found.append(f"{name}: must offer `{wanted}` and no other role's place")
        spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if spot != (name != head):
            found.append(f"{name}: actor hosts are spot instances, the head is not")
    return found


def _problems_of_doors(full: Config) -> list[str]:
    """Look at the rules that Ray would give the security group, and at what would bypass them."""
    found = []
    added = full["provider"].get("security_group", {}).get("IpPermissions", [])
    for rule in _create_default_inbound_rules({"sg-of-the-cluster"}, added):
        sources = ("IpRanges", "Ipv6Ranges", "PrefixListIds")
        from_outside = [range_ for source in sources for range_ in rule.get(source, [])]
        ports = (rule.get("FromPort"), rule.get("ToPort"), rule["IpProtocol"])
        if from_outside and ports != (22, 22, "tcp"):
            found.append(f"port {ports[0]}-{ports[1]} is open to {from_outside}")
    for name, node in full["available_node_types"].items():
        for key in ("SecurityGroupIds", "SecurityGroups", "NetworkInterfaces"):
            if key in node["node_config"]:
                found.append(f"{name}: {key} would bypass the security group that is checked here")
    for command in full["head_start_ray_commands"]:
        if "ray start" in command and "--dashboard-host=127.0.0.1" not in command:
            found.append("the dashboard must listen on 127.0.0.1 only")
    return found


def _problems_of_token(full: Config) -> list[str]:
    found = []
    if not any("export RAY_AUTH_MODE=token" in command for command in full["setup_commands"]):
        found.append("RAY_AUTH_MODE=token is not set on every host")
    if "RAY_AUTH_MODE=disabled" in yaml.safe_dump(full):
        found.append("RAY_AUTH_MODE=disabled somewhere")
    home = f"/home/{full['auth']['ssh_user']}"
    if full["file_mounts"].get(f"{home}/.ray/auth_token") != "~/.ray/auth_token":
        found.append("the token is not carried to the hosts")
    return found


def _problems_of_versions(full: Config) -> list[str]:
    found = []
    pins: dict[str, set[str]] = {"ray": set(), "torch": set(), "numpy": set()}
    for commands in COMMAND_LISTS:
        text = "\n".join(full[commands])
        for name, versions in pins.items():
            here = set(re.findall(rf"'{name}(?:\[\w+\])?==([\w.]+)'", text))
            versions |= here
            if not here:
                found.append(f"{commands}: {name} is not pinned")
        if "pip install -q -e ~/troop " not in text:
            found.append(f"{commands}: Troop itself is not installed, editable")
    for name, versions in pins.items():
        if len(versions) > 1:
            found.append(f"{name} differs between hosts: {sorted(versions)}")
        for version in versions:
            if version not in ALLOWED[name]:
                found.append(f"{name} {version} is outside pyproject's {ALLOWED[name]}")
    minors = set(re.findall(r"python(3\.\d+)", "\n".join(full["setup_commands"])))
    if len(minors) != 1:
        found.append(f"one Python minor version must be named, actually: {sorted(minors)}")
    found += [
        f"Python {minor} is outside pyproject's {PROJECT['requires-python']}"
        for minor in minors
        if f"{minor}.99" not in SpecifierSet(PROJECT["requires-python"])
    ]
    return found


def _problems_of_start(config: Config, full: Config) -> list[str]:
    found = [
        f"{key} is not given, so Ray's default applies: {full[key]}"
        for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
        if key not in config
    ]
    start = next((c for c in full["head_start_ray_commands"] if "ray start --head" in c), "")
    before = start.partition("ray start")[0]
    if "unset OMP_NUM_THREADS" not in before:
        found.append("OMP_NUM_THREADS=1, which `ray up` exports, throttles the learner")
    found += [
        f"{name} is not set before Ray starts on the head"
        for name in HEALTH_CHECKS
        if not re.search(rf"{name}=\d+", before)
    ]
    found += [
        f"rsync_exclude lacks {pattern}"
        for pattern in ("**/.git/**", "**/.git", "**/runs")
        if pattern not in full.get("rsync_exclude", [])
    ]
    return found


def test_cluster_yaml_has_no_problems() -> None:
    assert problems(load()) == []


def test_cluster_yaml_scales_actor_hosts_from_none() -> None:
    full = prepare_config(load())
    actors = full["available_node_types"]["actors"]
    assert actors["min_workers"] == 0
    assert 0 < actors["max_workers"] <= full["max_workers"]


@pytest.mark.parametrize("key", [key for key in load() if key.endswith("_commands")])
def test_commands_are_bash(key: str) -> None:
    for command in load()[key]:
        result = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def test_settings_reach_a_host_once(tmp_path: Path) -> None:
    """The first setup command, run twice on a host of one file, its ~/.bashrc."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    (tmp_path / ".bashrc").write_text("return  # as Ubuntu's does in a shell without a terminal\n")
    command = load()["setup_commands"][0]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for _ in range(2):
        subprocess.run(["bash", "-euc", command], env=environment, check=True)
    text = (tmp_path / ".bashrc").read_text()
    assert text.count("RAY_AUTH_MODE=token") == 1
    assert text.splitlines()[0].startswith("export RAY_AUTH_MODE=token")
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync, as `ray up` does")
def test_hosts_get_the_source_and_the_name_of_its_commit_and_nothing_else_of_git(
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "common").mkdir(parents=True)
    for name in ("common/types.py", "runs/first/run.json", "secret.env", ".venv/bin/python"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    (here / ".gitignore").write_text("secret.env\n")

    def git(folder: Path, *arguments: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(folder)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    git(here, "init", "-q")
    git(here, "add", ".gitignore", "common")
    git(here, "commit", "-qm", "first")
    config = load()
    excludes = [word for pattern in config["rsync_exclude"] for word in ("--exclude", pattern)]
    filters = [w for name in config["rsync_filter"] for w in ("--filter", f"dir-merge,- {name}")]
    rsync = ["rsync", "-a", *excludes, *filters, f"{here}/", f"{there}/"]  # as Ray calls it
    subprocess.run(rsync, check=True)
    for packs_refs in (False, True):
        assert git(there, "rev-parse", "HEAD") == git(here, "rev-parse", "HEAD")
        if not packs_refs:
            git(here, "pack-refs", "--all")
            shutil.rmtree(there)
            subprocess.run(rsync, check=True)
    files = {str(p.relative_to(there)) for p in there.rglob("*") if p.is_file()}
    assert files == {".gitignore", "common/types.py", ".git/HEAD", ".git/packed-refs"}


def edited(change: Callable[[Config], None]) -> Config:
    """Return cluster.yaml with one thing changed."""
    config = load()
    change(config)
    return config


def node(config: Config, name: str) -> Config:
    """Return what a node type asks of EC2."""
    found: Config = config["available_node_types"][name]["node_config"]
    return found


def open_port(port: int) -> Callable[[Config], None]:
    """Return a change that opens a port to everybody."""
    rule: Config = {"FromPort": port, "ToPort": port, "IpProtocol": "tcp"}
    rule["IpRanges"] = [{"CidrIp": "0.0.0.0/0"}]
    return lambda config: config["provider"].update(security_group={"IpPermissions": [rule]})


KNOWN_BAD: list[tuple[Callable[[Config], None], str]] = [
    (lambda c: c.pop("provider"), "Ray refuses"),
    (lambda c: c.update(learning_rate=0.1), "Ray refuses"),
    (lambda c: c.update(head_node_type="nobody"), "Ray refuses"),
    (lambda c: c["available_node_types"]["actors"].pop("resources"), "Ray refuses"),
    (lambda c: c["available_node_types"]["actors"].update(min_workers=9), "Ray refuses"),
    (lambda c: node(c, "actors").pop("ImageId"), "actors: no image"),
    (lambda c: node(c, "learner").update(ImageId="ami-00000000000000000"), "learner: no image"),
    (lambda c: node(c, "learner").update(ImageId="resolve:ssm:/golden"), "not by Amazon"),
    (lambda c: node(c, "actors").pop("InstanceMarketOptions"), "spot"),
    (lambda c: c["available_node_types"]["learner"].update(resources={}), "learner_host"),
    (
        lambda c: c["available_node_types"]["learner"]["resources"].update(actor_host=1),
        "no other role's place",
    ),
    (open_port(8265), "port 8265"),
    (open_port(6379), "port 6379"),
    (lambda c: node(c, "learner").update(SecurityGroupIds=["sg-1"]), "bypass"),
    (replace_in("head_start_ray_commands", "=127.0.0.1", "=0.0.0.0"), "dashboard"),
    (replace_in("setup_commands", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"), "disabled"),
    (lambda c: c["file_mounts"].pop("/home/ubuntu/.ray/auth_token"), "token is not carried"),
    (replace_in("worker_setup_commands", "==2.60.0", "==2.61.0"), "ray differs"),
    (replace_in("worker_setup_commands", "'torch==2.13.0'", "torch"), "torch is not pinned"),
    (replace_in("head_setup_commands", "torch==2.13.0", "torch==1.13.0"), "outside pyproject"),
    (replace_in("setup_commands", "python3.12", "python3.10"), "Python 3.10 is outside"),
    (replace_in("head_setup_commands", "-e ~/troop", ""), "not installed"),
    (replace_in("head_start_ray_commands", "unset OMP_NUM_THREADS;", ""), "OMP_NUM_THREADS"),
    (replace_in("head_start_ray_commands", "RAY_health_check_timeout_ms=2000", ""), "timeout_ms"),
    (lambda c: c.pop("worker_start_ray_commands"), "Ray's default applies"),
    (lambda c: c["rsync_exclude"].remove("**/runs"), "rsync_exclude"),
]


@pytest.mark.parametrize(("change", "expected"), KNOWN_BAD)
def test_known_bad_cluster_yaml_is_rejected(
    change: Callable[[Config], None], expected: str
) -> None:
    found = problems(edited(change))
    assert any(expected in problem for problem in found), found
