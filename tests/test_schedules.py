from __future__ import annotations

import math

import numpy as np
import pytest

from common.schedules import epsilon_ladder, exponential_epsilon, ladder_positions

SIZES = [(1, 1), (1, 2), (2, 1), (4, 2), (3, 5), (16, 8), (360, 1)]


def test_ladder_of_four_environments_is_the_formula_by_hand() -> None:
    # N = 2, E = 2: ranks of actor 0 are 0 and 2, of actor 1 are 1 and 3; the last rank is 3.
    np.testing.assert_allclose(
        epsilon_ladder(2, 2, 0, 0.4, 7.0), [0.4**1.0, 0.4 ** (1 + 7 * 2 / 3)], rtol=1e-12
    )
    np.testing.assert_allclose(
        epsilon_ladder(2, 2, 1, 0.4, 7.0), [0.4 ** (1 + 7 * 1 / 3), 0.4**8.0], rtol=1e-12
    )


@pytest.mark.parametrize(("num_actors", "num_envs"), SIZES)
def test_all_actors_together_hold_the_whole_ladder(num_actors: int, num_envs: int) -> None:
    ladder = np.stack(
        [epsilon_ladder(num_actors, num_envs, a, 0.4, 7.0) for a in range(num_actors)]
    )
    size = num_actors * num_envs
    exponents = [1 + 7 * i / (size - 1) for i in range(size)] if size > 1 else [1.0]
    assert ladder.dtype == np.float64
    np.testing.assert_allclose(ladder.T.ravel(), 0.4 ** np.array(exponents), rtol=1e-12)


# The formula of Horgan et al. 2018 (Ape-X), section 4, with its eps 0.4 and alpha 7, worked out by
# hand for 16 environments: 0.4 ** (1 + 7 * i / 15). The paper prints no ladder.
LADDER_OF_16 = (
    ".400 .261 .170 .111 .0723 .0472 .0307 .0201 .0131 .0085 .0056 .0036 .0024 .0015 .0010 .00066"
)


@pytest.mark.parametrize(("num_actors", "num_envs"), [(16, 1), (1, 16), (4, 4)])
def test_ladder_of_sixteen_environments_has_the_values_of_the_papers_formula(
    num_actors: int, num_envs: int
) -> None:
    ladder = np.stack(
        [epsilon_ladder(num_actors, num_envs, a, 0.4, 7.0) for a in range(num_actors)]
    ).T.ravel()
    for epsilon, printed in zip(ladder, LADDER_OF_16.split(), strict=True):
        last_digit = 10.0 ** -len(printed.removeprefix("."))
        assert abs(epsilon - float(printed)) <= last_digit / 2


@pytest.mark.parametrize("size", [2, 16, 256, 360])
def test_ladder_is_the_one_of_acme_and_of_seed_rl(size: int) -> None:
    """Acme: np.logspace(1, 8, N, base=0.4), acme/agents/jax/r2d2/actor.py.

    SEED RL: 0.4 ** linspace(1, 8, N), agents/r2d2/learner.py.
    """
    ladder = np.concatenate([epsilon_ladder(size, 1, a, 0.4, 7.0) for a in range(size)])
    np.testing.assert_allclose(ladder, np.logspace(1, 8, size, base=0.4), rtol=1e-12)
    np.testing.assert_allclose(ladder, 0.4 ** np.linspace(1.0, 8.0, size), rtol=1e-12)


def test_a_single_environment_explores_with_the_base() -> None:
    np.testing.assert_array_equal(epsilon_ladder(1, 1, 0, 0.4, 7.0), [0.4])


def test_every_actor_spans_the_ladder() -> None:
    for actor in range(16):
        positions = ladder_positions(16, 8, actor)
        assert positions[0] < 1 / 8
        assert positions[-1] >= 7 / 8


@pytest.mark.parametrize(("num_actors", "num_envs"), SIZES)
def test_positions_are_even_and_below_one(num_actors: int, num_envs: int) -> None:
    positions = np.concatenate(
        [ladder_positions(num_actors, num_envs, a) for a in range(num_actors)]
    )
    size = num_actors * num_envs
    np.testing.assert_allclose(np.sort(positions), np.arange(size) / size, rtol=1e-12)
    assert positions.max() < 1


def test_impossible_ladders_are_refused() -> None:
    with pytest.raises(ValueError, match="Expect `num_actors` >= 1, actually: 0"):
        epsilon_ladder(0, 1, 0, 0.4, 7.0)
    with pytest.raises(ValueError, match="Expect `envs_per_actor` >= 1, actually: 0"):
        ladder_positions(1, 0, 0)
    with pytest.raises(ValueError, match="Expect `actor` from 0 to 1, actually: 2"):
        ladder_positions(2, 1, 2)
    with pytest.raises(ValueError, match="Expect `epsilon` from 0 to 1, actually: 1.5"):
        epsilon_ladder(1, 1, 0, 1.5, 7.0)
    with pytest.raises(ValueError, match="Expect `alpha` >= 0, actually: -1"):
        epsilon_ladder(1, 1, 0, 0.4, -1)


def test_exponential_schedule_by_hand() -> None:
    assert exponential_epsilon(0, 1.0, 0.05, 30_000.0) == 1.0
    assert exponential_epsilon(30_000, 1.0, 0.05, 30_000.0) == pytest.approx(0.05 + 0.95 / math.e)
    assert exponential_epsilon(10**9, 1.0, 0.05, 30_000.0) == pytest.approx(0.05)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="Expect `agent_steps` >= 0, actually: -1"):
        exponential_epsilon(-1, 1.0, 0.05, 30_000.0)
    with pytest.raises(ValueError, match="Expect `decay_agent_steps` > 0, actually: 0"):
        exponential_epsilon(0, 1.0, 0.05, 0.0)
