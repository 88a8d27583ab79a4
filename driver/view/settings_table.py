"""The settings of a run as a short table, for the console and the log."""

from __future__ import annotations

import textwrap
from typing import Any

from common.config import Config
from common.config_file import to_dict

_WIDTH = 100
_NAME_WIDTH = 14
# Keeps a setting and its value on one line: textwrap breaks at plain spaces only.
_GLUE = "\u00a0"


def settings_table(config: Config) -> str:
    """Return every setting and its value, a paragraph for each part of the configuration."""
    plain = to_dict(config)
    parts: dict[str, dict[str, Any]] = {"run": {}}
    for name, value in plain.items():
        if isinstance(value, dict):
            parts[name] = value
        else:
            parts["run"][name] = value
    return "\n".join(_paragraph(name, settings) for name, settings in parts.items())


def _paragraph(name: str, settings: dict[str, Any]) -> str:
    items = [f"{key} {_shown(value)}".replace(" ", _GLUE) for key, value in settings.items()]
    filled = textwrap.fill(
        ", ".join(items),
        width=_WIDTH,
        initial_indent=f"  {name}".ljust(_NAME_WIDTH),
        subsequent_indent=" " * _NAME_WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_GLUE, " ")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
