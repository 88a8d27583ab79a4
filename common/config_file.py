"""Configurations as plain values and as YAML files: reading, overriding, writing."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from common.config import Config


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
        found.append(f"{where}: {name} is {changes!r}: must hold `key: value` lines")
        return part
    kinds = typing.get_type_hints(type(part))  # without Annotated
    known = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    replaced: dict[str, Any] = {}
    for key, value in changes.items():
        name = f"{prefix}{key}"
        if key not in known:
            found.append(f"{where}: unknown key `{name}`: must be one of {', '.join(known)}")
        elif dataclasses.is_dataclass(known[key]):
            replaced[key] = _overlay(known[key], value, where, f"{name}.", found)
        else:
            try:
                replaced[key] = _fit(value, kinds[key])
            except (ValueError, OverflowError):
                found.append(f"{where}: `{name}` is {value!r}: must be {_describe(kinds[key])}")
    return dataclasses.replace(part, **replaced)


def _describe(kind: Any) -> str:
    """Say in plain words which values `_fit` takes for `kind`."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in options)
    if origin is Literal:
        return " or ".join(str(option) for option in options)
    if origin is tuple:
        return "a list, each " + _describe(options[0])
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, "null")


def _fit(value: Any, kind: Any) -> Any:
    """Return a YAML value as what `kind` asks for, or raise ValueError."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in options:
            try:
                return _fit(value, option)
            except ValueError:
                continue
        raise ValueError
    if origin is Literal:
        if value is False and "off" in options:  # YAML 1.1 reads `off` as false
            return "off"
        if value is True and "on" in options:
            return "on"
        if value in options:
            return value
        raise ValueError
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError
        return tuple(_fit(item, options[0]) for item in value)
    if kind is float and not isinstance(value, bool) and isinstance(value, int | float | str):
        return float(value)  # YAML 1.1 reads 1e-4 as text
    if type(value) is kind:
        return value
    raise ValueError


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
        changes = yaml.safe_load(path.read_text(encoding="utf-8"))
    # ValueError: not UTF-8, or a 31st of June.
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError([f"{path}: cannot be read: {reason}"]) from error
    return {} if changes is None else changes


def save_file(config: Config, path: Path) -> None:
    """Write the resolved configuration as YAML."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
