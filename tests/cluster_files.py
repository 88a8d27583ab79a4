"""What the tests of cluster configurations share: reading one, and a change of its commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml
from launching import ROOT

Config = dict[str, Any]


def read_cluster(path: str) -> Config:
    """Return a cluster's configuration as it is; the path is the one in the repository."""
    config: Config = yaml.safe_load((ROOT / path).read_text())
    return config


def replace_in(key: str, old: str, new: str) -> Callable[[Config], None]:
    """Return a change of the commands under `key`."""

    def change(config: Config) -> None:
        assert any(old in command for command in config[key]), f"{old!r} is not in {key}"
        config[key] = [command.replace(old, new) for command in config[key]]

    return change
