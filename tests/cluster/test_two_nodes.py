"""A cluster whose hosts come and go: `--address` joins it, and every role finds its place."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import ON_THE_PATH, PATIENCE_S, ROOT, STOP_S, launch, result_of, started
from ray_cluster import RayCluster, children, ray_cluster
from unhurried import GAME

from driver.about import About
from driver.run_folder import RunFolder
from driver.view.events import read_scalars

pytestmark = pytest.mark.ray
ENDLESS = ("--preset", "cartpole", "--env", GAME, "--total-frames", "100_000_000")

ROLES = ("Actor", "Learner", "Replay", "WeightStore", "Evaluator")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def head(cluster: RayCluster) -> int:
    """The raylet of the learner's host."""
    return cluster.add(4, learner_host=1)


def test_actors_wait_for_hosts_that_come_and_go_and_play_apart_from_the_learner(
    cluster: RayCluster, head: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = (*ENDLESS, "--actors", "3", "--address", cluster.address, "--run-dir", str(run))
    with started(*flags, environment=ON_THE_PATH) as launched:
        launched.wait_for("0 of 3 actors play, 3 wait for a host with 1 CPU and actor_host")
        assert children(head, "Actor") == 0, "there is room for one, but not for it"
        small = cluster.add(2, actor_host=2)
        launched.wait_for("2 of 3 actors play, 1 wait for a host")
        assert "limited by learning" not in launched.said.partition("1 wait for a host")[0]
        cluster.end(small)
        launched.wait_until(lambda: launched.said.count("died, starting it again") == 2, "deaths")
        large = cluster.add(3, actor_host=3)
        launched.wait_for("every process has found a host")
        launched.wait_for("every actor has pushed")
        assert {role: (children(head, role), children(large, role)) for role in ROLES} == {
            "Actor": (0, 3),
            "Learner": (1, 0),
            "Replay": (1, 0),
            "WeightStore": (1, 0),
            "Evaluator": (1, 0),
        }
        launched.wait_until(lambda: "learner/td_loss" in read_scalars(run), "learner step")
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said
    assert result_of(run)["learner_steps"] > 0
    hosts = json.loads((run / "run.json").read_text())["hosts"]
    assert [host["name"] for host in hosts] == [socket.gethostname()] * 3
    assert {host["resources"]["CPU"] for host in hosts} == {4, 2, 3}, (
        "one that went away is told of"
    )
    assert RunFolder.of_run(run).read_json("run.json", About)["hosts"] == hosts
    # The cluster lives on, the run's processes must not.
    deadline_s = time.monotonic() + STOP_S
    while any(left := [children(raylet, role) for raylet in (head, large) for role in ROLES]):
        assert time.monotonic() < deadline_s, left
        time.sleep(0.2)
    cluster.end(large)


@pytest.fixture
def with_another_lz4(tmp_path: Path) -> dict[str, str]:
    """The environment of a host on which another version of lz4 is installed."""
    about = tmp_path / "packages" / "lz4-0.0.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lz4\nVersion: 0.0.1\n")
    return {"PYTHONPATH": f"{about.parent}:{ON_THE_PATH['PYTHONPATH']}"}


def test_a_host_with_other_code_ends_a_start_and_is_avoided_by_a_run_that_plays(
    cluster: RayCluster, head: int, with_another_lz4: dict[str, str], tmp_path: Path
) -> None:
    joins = (*ENDLESS, "--actors", "2", "--evaluator.no-enabled", "--address", cluster.address)
    difference = f"on {socket.gethostname()}: this host has lz4 0.0.1, the driver "
    odd = cluster.add(2, actor_host=2, environment=with_another_lz4)
    done = launch(*joins, "--run-dir", str(tmp_path / "refused"), environment=ON_THE_PATH)
    assert done.returncode == 2, done.stdout
    assert re.fullmatch(rf"launch\.py: actor \d {difference}[^\n]*\n", done.stderr), done.stderr
    assert not (tmp_path / "refused" / "run.json").exists()
    cluster.end(odd)

    run = tmp_path / "run"
    sound = cluster.add(1, actor_host=1)
    with started(*joins, "--run-dir", str(run), environment=ON_THE_PATH) as launched:
        launched.wait_for("1 of 2 actors play, 1 wait for a host")
        odd = cluster.add(1, actor_host=1, environment=with_another_lz4)
        launched.wait_for("nothing more is started on a host that is not fit: actor ")
        assert difference in launched.said
        launched.wait_until(
            lambda: launched.said.count("1 of 2 actors play, 1 wait for a host") == 2, "waiting"
        )
        another = cluster.add(1, actor_host=1)
        launched.wait_for("every actor has pushed")
        assert [children(node, "Actor") for node in (sound, odd, another)] == [1, 0, 1]
        assert (
            len(re.findall(rf"died, starting it again .*: actor \d {difference}", launched.said))
            == 1
        )
        launched.interrupt()
        assert launched.wait(STOP_S).returncode == 130, launched.said
    for node in (sound, odd, another):
        cluster.end(node)


def test_a_gpu_that_the_cluster_has_not_is_refused_in_one_line(
    cluster: RayCluster, head: int, tmp_path: Path
) -> None:
    flags = (*ENDLESS, "--address", cluster.address, "--learner.device", "cuda")
    done = launch(*flags, "--run-dir", str(tmp_path / "run"), environment=ON_THE_PATH)
    assert done.returncode == 2, done.stdout
    hosts = rf"\({socket.gethostname()}: .*\b4 CPU, 1 learner_host\b.*\)"
    refusal = f"launch.py: --learner.device cuda: the cluster has no GPU {hosts}; use auto or cpu\n"
    assert re.fullmatch(refusal, done.stderr), done.stderr


def test_a_run_folder_that_is_not_on_the_learners_host_is_refused_in_one_line(
    cluster: RayCluster, head: int, tmp_path: Path
) -> None:
    # A driver whose folder and processes nobody else sees, as on another host.
    hide = ["unshare", "--mount", "--pid", "--fork"]
    hide += ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']
    apart = tmp_path / "apart"
    apart.mkdir()
    if subprocess.run([*hide, str(apart), "true"]).returncode:
        pytest.skip("needs the right to mount")
    run = apart / "run"
    flags = (*ENDLESS, "--address", cluster.address, "--run-dir", str(run))
    done = subprocess.run(
        [*hide, str(apart), sys.executable, str(ROOT / "launch.py"), *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, **ON_THE_PATH},
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr == (
        f"launch.py: the run folder {run}, in which learner and replay save, is not on their host, "
        f"{socket.gethostname()}; start the command there, or name a folder that both hosts share\n"
    )
    assert list(apart.iterdir()) == []


@pytest.mark.slow  # Ray itself retries for 20 s
def test_a_run_with_a_wrong_token_is_refused(
    cluster: RayCluster, head: int, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = (*ENDLESS, "--address", cluster.address, "--run-dir", str(run))
    with started(*flags, environment={"RAY_AUTH_TOKEN": "0" * 64, **ON_THE_PATH}) as launched:
        done = launched.wait(PATIENCE_S)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.exists()
