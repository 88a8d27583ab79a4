from __future__ import annotations

import subprocess
import sys

import pytest

from common.seeding import derive_environment_seed, derive_seed


def test_every_run_role_and_index_has_a_seed_of_its_own() -> None:
    seeds = [
        derive_seed(run, role, index)
        for run in (0, 1, 2)
        for role in ("policy", "learner", "replay", "evaluator")
        for index in range(50)
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_seeds_are_the_same_in_another_process() -> None:
    code = "from common.seeding import derive_seed; print(derive_seed(7, 'policy', 3))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(answer.stdout) == derive_seed(7, "policy", 3)


def test_seeds_stay_what_they_were() -> None:
    # A change here changes every recorded --serial run.
    assert derive_seed(1, "policy", 0) == 1_923_607_615
    assert derive_environment_seed(1, 2, 8) == 273_013_040


def test_environments_of_all_actors_have_different_seeds() -> None:
    num_envs = 8
    seeds = [
        derive_environment_seed(1, actor, num_envs) + e
        for actor in range(64)
        for e in range(num_envs)
    ]
    assert len(set(seeds)) == 64 * num_envs
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_environment_seeds_of_a_huge_cluster_fit_into_an_int() -> None:
    assert max(derive_environment_seed(seed, 2**20, 512) for seed in range(200)) + 512 <= 2**31


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="Expect `run_seed` >= 0, actually: -1"):
        derive_seed(-1, "policy", 0)
    with pytest.raises(ValueError, match="Expect `index` >= 0, actually: -1"):
        derive_seed(0, "policy", -1)
    with pytest.raises(ValueError, match="Expect `envs_per_actor` >= 1, actually: 0"):
        derive_environment_seed(0, 0, 0)
    with pytest.raises(ValueError, match="Expect `actor` >= 0, actually: -1"):
        derive_environment_seed(0, -1, 1)
    with pytest.raises(ValueError, match=r"< 2\*\*30, actually: 2147483648"):
        derive_environment_seed(0, 2**28, 8)
