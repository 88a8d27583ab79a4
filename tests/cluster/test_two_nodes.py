"""A cluster of two nodes on one machine: `--address` joins it, and every role finds its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from launching import PATIENCE_S, STOP_S, result_of, started, title_of

pytestmark = pytest.mark.ray

# Starts head and node in a process of its own, since this one may have joined the session's Ray;
# says the address and the raylets' process ids; ends them when its standard input closes.
CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(
    initialize_head=True,
    head_node_args={
        "num_cpus": 4, "resources": {"learner_host": 1}, "object_store_memory": 150 * 2**20,
        "include_dashboard": False,
    },
)
cluster.add_node(num_cpus=8, resources={"actor_host": 8}, object_store_memory=150 * 2**20)
cluster.wait_for_nodes()
head, other = (
    node.all_processes["raylet"][0].process.pid
    for node in (cluster.head_node, *cluster.worker_nodes)
)
print(json.dumps({"address": cluster.address, "head": head, "other": other}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict]:
    """Start the cluster; {"address": HOST:PORT, "head" and "other": process ids of the raylets}."""
    # Its token is the session's, as is everything else of the environment that conftest sets.
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
            process.stdin.close()
            process.wait(60)
        finally:
            for one in psutil.process_iter():
                if is_of_session(one, process.pid):
                    one.kill()


def is_of_session(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session
    except OSError:
        return False


def children(raylet: int, name: str) -> int:
    """Return how many workers of a kind a raylet has."""
    workers = psutil.Process(raylet).children()
    return sum(title_of(worker).startswith(f"ray::{name}") for worker in workers)


def test_a_run_joins_the_cluster_and_actors_play_apart_from_the_learner(
    cluster: dict, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ("--preset", "cartpole", "--actors", "2", "--total-frames", "4000")
    with started(*flags, "--address", cluster["address"], "--run-dir", str(run)) as launched:
        launched.wait_for("every actor has pushed")
        places = {
            role: (children(cluster["head"], role), children(cluster["other"], role))
            for role in ("Actor", "Learner", "Replay", "WeightStore", "Evaluator")
        }
        done = launched.wait(PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert places == {
        "Actor": (0, 2),
        "Learner": (1, 0),
        "Replay": (1, 0),
        "WeightStore": (1, 0),
        "Evaluator": (1, 0),
    }
    result = result_of(run)
    assert result["end_reason"] == "done"
    assert result["frames"] >= 4000
    assert result["learner_steps"] > 0
    # The cluster lives on, the run's processes must not.
    deadline_s = time.monotonic() + STOP_S
    while left := [
        role for role in places for node in ("head", "other") if children(cluster[node], role)
    ]:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.2)


@pytest.mark.slow  # Ray itself retries for 20 s
def test_a_run_with_a_wrong_token_is_refused(cluster: dict, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--preset", "cartpole", "--address", cluster["address"], "--run-dir", str(run))
    with started(*flags, environment={"RAY_AUTH_TOKEN": "0" * 64}) as launched:
        done = launched.wait(PATIENCE_S)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.exists()
