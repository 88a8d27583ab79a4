"""Configurations as plain values and as YAML files: reading, overriding, writing."""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from common.config import Config
from common.files import UnreadableFile, read_text, write_whole
from common.schema import Misfit, fit, quoted, shown

# A run's own file has 3 kB.
_MOST_BYTES = 1 << 16


class ConfigError(ValueError):
    """A configuration that cannot run; `problems` has one line per impossible value."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as nested plain dictionaries, ready for YAML."""
    plain = dataclasses.asdict(config)
    plain["agent"]["hidden"] = list(config.agent.hidden)
    return plain


def differences(before: Config, after: Config) -> list[str]:
    """Return a line for each setting that differs: name, value before, value after."""
    old, new = (_leaves(to_dict(config)) for config in (before, after))
    return [f"{name} {old[name]} -> {new[name]}" for name in new if old[name] != new[name]]


def _leaves(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of nested dictionaries by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def override(config: Config, changes: Any, where: str) -> Config:
    """Return `config` with the nested `changes` applied.

    Args:
      config: what to start from.
      changes: nested dictionaries as `to_dict` makes them; parts may be left out.
      where: what to call the source of the changes in messages, e.g. a file's name.

    Raises:
      ConfigError: for unknown keys and values of a wrong kind, all at once.
    """
    changed, found = overlay(config, changes, where)
    if found:
        raise ConfigError(found)
    return changed


def overlay(config: Config, changes: Any, where: str) -> tuple[Config, list[str]]:
    """Do as `override`, but leave out what does not fit and return one line for each of it."""
    found: list[str] = []
    changed: Config = _overlay(config, changes, where, "", found)
    return changed, found


def _overlay(part: Any, changes: Any, where: str, prefix: str, found: list[str]) -> Any:
    if not isinstance(changes, Mapping):
        name = f"`{prefix.rstrip('.')}`" if prefix else "the file"
        found.append(f"{where}: {name} is {quoted(changes)}: must hold `key: value` lines")
        return part
    kinds = typing.get_type_hints(type(part))  # without Annotated
    known = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    replaced: dict[str, Any] = {}
    for key, value in changes.items():
        name = f"{prefix}{shown(key)}"
        if key not in known:
            known_keys = ", ".join(known)
            found.append(f"{where}: unknown key `{shown(name)}`: must be one of {known_keys}")
        elif dataclasses.is_dataclass(known[key]):
            replaced[key] = _overlay(known[key], value, where, f"{name}.", found)
        else:
            try:
                replaced[key] = fit(value, kinds[key], name)
            except Misfit as misfit:
                found.append(f"{where}: {misfit}")
    return dataclasses.replace(part, **replaced)


def load_file(config: Config, path: Path) -> Config:
    """Return `config` with the YAML file's values applied.

    Raises:
      ConfigError: the file cannot be read, is not YAML, or holds unknown keys or values of a wrong
        kind.
    """
    return override(config, read_file(path), str(path))


def read_file(path: Path) -> Any:
    """Return what a YAML file holds, {} where it is empty; nothing in it is checked.

    Raises:
      ConfigError: the file cannot be read, or is not YAML.
    """
    try:
        changes = yaml.load(read_text(path, _MOST_BYTES), _PlainLoader)
    except UnreadableFile as error:
        raise ConfigError([str(error)]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: cannot be read: is nested too deeply"]) from error
    # ValueError: a 31st of June, a number with thousands of digits.
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError([f"{path}: cannot be read: {' '.join(str(error).split())}"]) from error
    return {} if changes is None else changes


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a few lines would become gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node; see yaml.composer.Composer."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)


class _PlainDumper(yaml.SafeDumper):
    """Quotes the text that the loader would take for a number."""


# YAML 1.1 takes 1e-4 for text.
for _either in (_PlainLoader, _PlainDumper):
    _either.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def expect_no_module(config: Config, where: str, said: str | None) -> None:
    """Check that a file has nothing imported: only the command line names a module to import.

    Args:
      config: settings with the environment's id that the file gave.
      where: what to call the file.
      said: the id that the command line gave, None if it gave none.

    Raises:
      ConfigError: the id names a module, and the command line does not say the same.
    """
    name = config.env.id
    if ":" in name and said != name:
        raise ConfigError(
            [
                f"{where}: `env.id` is {shown(name)}: names a module, which would be imported and "
                f"run; if you trust it, say so by --env {shlex.quote(shown(name))}"
            ]
        )


def in_file(problem: str, changes: Any, where: str) -> str:
    """Say of a problem of a configuration that it is in the file which gave these changes."""
    flag, _, rest = problem.partition(" ")
    key = flag.removeprefix("--").replace("-", "_")
    value = changes
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    # What is not in the file itself does not go together with something that is.
    return f"{where}: {problem}" if value is None else f"{where}: `{key}` is {rest}"


def save_file(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML, whole or not at all.

    Raises:
      OSError: it cannot be written.
    """
    write_whole(path, [yaml.dump(to_dict(config), Dumper=_PlainDumper, sort_keys=False).encode()])
