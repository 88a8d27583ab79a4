"""One seed per (run, role, index). Nobody calls a global generator."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from common.schema import quoted

# ale-py takes its seeds as C++ ints.
_SEED_LIMIT = 2**31
# For what counts its environments from a seed of the user's own.
MAX_GIVEN_SEED = 2_000_000_000


def derive_seed(run_seed: int, role: str, index: int) -> int:
    """Return the seed of one role's index-th worker.

    Other roles and other indices get seeds that are independent of this one, also for neighbouring
    run seeds (numpy's SeedSequence hashes all three).

    Args:
      run_seed: the run's --seed, >= 0.
      role: what the seed is for, e.g. "policy".
      index: which of the role's workers, >= 0.

    Returns:
      An integer in [0, 2**31).
    """
    for name, value in (("run_seed", run_seed), ("index", index)):
        if value < 0:
            raise ValueError(f"Expect `{name}` >= 0, actually: {value}")
    # A checksum and not `hash`, which differs from process to process.
    sequence = np.random.SeedSequence((run_seed, zlib.crc32(role.encode()), index))
    return int(sequence.generate_state(1, np.uint32)[0]) % _SEED_LIMIT


def derive_environment_seed(run_seed: int, actor: int, envs_per_actor: int) -> int:
    """Return the seed of an actor's first environment.

    The vector seeds its environments s, s + 1, ..., s + E - 1. All actors share one base and stand
    E apart: no two environments of a run have the same seed, which independent seeds would not
    promise.

    Args:
      run_seed: the run's --seed, >= 0.
      actor: index of the actor in the run, >= 0.
      envs_per_actor: E, >= 1.

    Returns:
      An integer in [0, 2**31 - E].
    """
    for name, value, least in (("actor", actor, 0), ("envs_per_actor", envs_per_actor, 1)):
        if value < least:
            raise ValueError(f"Expect `{name}` >= {least}, actually: {value}")
    # The upper half of the range is left for the actors' offsets.
    base = derive_seed(run_seed, "environment", 0) // 2
    seed = base + actor * envs_per_actor
    if seed + envs_per_actor > _SEED_LIMIT:
        raise ValueError(
            f"Expect `actor` * `envs_per_actor` < 2**30, actually: {actor * envs_per_actor}"
        )
    return seed


def expect_generator_state(state: Mapping[str, Any]) -> None:
    """Check that a generator could go on from a state out of a file.

    Args:
      state: as numpy's `bit_generator.state` of a generator of `default_rng`.

    Raises:
      ValueError: none could.
    """
    try:
        np.random.default_rng(0).bit_generator.state = state
    # What numpy says depends on where it stumbles.
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise ValueError(f"Expect the state of a generator, actually: {quoted(state)}") from error
