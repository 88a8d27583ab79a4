"""Which algorithm `agent.algorithm` names."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import get_args

from common.config import AgentConfig, AlgorithmName, LearnerConfig
from learner.algorithms.algorithm import Algorithm

ALGORITHMS: dict[str, Callable[[AgentConfig, LearnerConfig], Algorithm]] = {
    # `make` of the file that is called like it.
    name: importlib.import_module(f"learner.algorithms.{name}").make
    for name in get_args(AlgorithmName)
}
