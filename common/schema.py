"""What plain values out of a file have to be: fitted to Python's own types, and named when not.

A kind is a type as it stands in an annotation: `int`, `float`, `bool`, `str`, `None`, `Literal`,
unions, `tuple[T, ...]`, `list[T]`, `dict[str, T]`, `Annotated[T, Bounds]`, a TypedDict (keys that
it does not name may be there, and stay), or any other class, whose instances fit.
"""

from __future__ import annotations

import functools
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

# Whatever counts something fits into this, and so into numpy's and torch's integers.
MOST_INT = 2**63 - 1
# What is counted on from a file still fits, and so can be read again.
_MOST_COUNT = 2**62
_SHOWN_CHARACTERS = 80


class Misfit(ValueError):
    """A value that is not what it has to be; one line names it."""


@dataclass(frozen=True)
class Bounds:
    """From `least` to `most`, both possible.

    Attributes:
      least: the smallest possible value.
      most: the largest.
      rule: what is asked of a value that is too small, or no number.
      rule_above: what is asked of one that is too large.
    """

    least: float
    most: float
    rule: str
    rule_above: str

    def broken_by(self, value: float) -> str:
        """Return what `value` must be and is not, "" if it is."""
        # Comparing overflows for no integer, and is false for NaN.
        if self.least <= value <= self.most:
            return ""
        return self.rule_above if self.most < value < math.inf else self.rule


def counted(most: int) -> Bounds:
    """Return the bounds of what there is at least one of."""
    return Bounds(1, most, ">= 1", f"<= {most:,}")


def from_zero(most: int) -> Bounds:
    """Return the bounds of what may be none."""
    return Bounds(0, most, ">= 0", f"<= {most:,}")


def positive(most: float) -> Bounds:
    """Return the bounds of a quantity above zero."""
    return Bounds(math.nextafter(0.0, 1.0), most, "finite and > 0", f"<= {most:,g}")


INCARNATION = from_zero(2**16 - 2)
"""An insertion id has 16 bits for it (replay.storage)."""
SHARE = Bounds(0, 1, "from 0 to 1", "from 0 to 1")
Count = Annotated[int, from_zero(_MOST_COUNT)]
"""A whole number of things."""


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = self.maxlong = _SHOWN_CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out integers of more than some thousand digits.
        if x.bit_length() > 4 * _SHOWN_CHARACTERS:
            return f"a whole number of about {int(x.bit_length() * math.log10(2)):,} digits"
        return super().repr_int(x, level)


_short = _Short()


def shown(value: object) -> str:
    """Return a value for a message: in one line, and short whatever it is."""
    text = value if isinstance(value, str) else _short.repr(value)
    return one_line(text, _SHOWN_CHARACTERS)


def quoted(value: object) -> str:
    """Return a value for a message as Python writes it, in one line, and short."""
    return one_line(_short.repr(value), _SHOWN_CHARACTERS + 2)


def one_line(text: str, most: int) -> str:
    """Return a text with everything that a terminal would obey spelt out, cut in its middle."""
    if len(text) > most:
        text = f"{text[: most // 2]}...{text[-(most // 2) :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def fit(value: Any, kind: Any, name: str = "") -> Any:
    """Return a value as what `kind` asks for: tuples for lists, floats for whole numbers.

    Args:
      value: plain data, as JSON, YAML or a checkpoint holds it.
      kind: see the module's text.
      name: what to call the value in messages, e.g. `counters.samples`.

    Raises:
      Misfit: it is something else.
    """
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        fitted = fit(value, options[0], name)
        for bounds in options[1:]:
            if isinstance(bounds, Bounds) and (rule := bounds.broken_by(fitted)):
                raise _misfit(name, value, rule)
        return fitted
    if origin in (typing.Union, types.UnionType):
        return _fit_any_of(value, kind, options, name)
    if origin is Literal:
        # YAML 1.1 reads `off` and `on` as false and true.
        said = ("on" if value else "off") if type(value) is bool else value
        if any(type(said) is type(option) and said == option for option in options):
            return said
    elif origin in (tuple, list):
        if isinstance(value, list | tuple):
            return origin(fit(item, options[0], f"{name}[{i}]") for i, item in enumerate(value))
    elif origin is dict:
        if isinstance(value, Mapping) and all(type(key) is str for key in value):
            prefix = f"{name}." if name else ""
            return {k: fit(item, options[1], f"{prefix}{shown(k)}") for k, item in value.items()}
    elif typing.is_typeddict(kind):
        return _fit_keys(value, kind, name)
    elif kind is float:
        return _fit_float(value, name)
    elif kind is int:
        if type(value) is int and abs(value) <= MOST_INT:
            return value
    elif kind is Any or isinstance(value, type(None) if kind is None else kind):
        return value
    raise _misfit(name, value, describe(kind))


def describe(kind: Any) -> str:
    """Say in plain words which values `fit` takes for `kind`."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return describe(options[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(option) for option in options)
    if origin is Literal:
        return " or ".join(str(option) for option in options)
    if origin in (tuple, list):
        return "a list, each " + describe(options[0])
    if origin is dict or typing.is_typeddict(kind):
        return "values by name"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(kind, "null" if kind in (None, type(None)) else f"a {kind.__name__}")


def _misfit(name: str, value: object, rule: str) -> Misfit:
    what = f"`{name}`" if name else "the file"
    return Misfit(f"{what} is {quoted(value)}: must be {rule}")


def _fit_any_of(value: Any, kind: Any, options: tuple[Any, ...], name: str) -> Any:
    for option in options:
        try:
            return fit(value, option, name)
        except Misfit:
            continue
    raise _misfit(name, value, describe(kind))


def _fit_float(value: Any, name: str) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float):
        with suppress(OverflowError):
            return float(value)
    raise _misfit(name, value, "a number")


def _fit_keys(value: Any, kind: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _misfit(name, value, describe(kind))
    hints = _hints(kind)
    prefix = f"{name}." if name else ""
    missing = sorted(kind.__required_keys__ - value.keys())
    if missing:
        raise Misfit(f"`{prefix}{missing[0]}` is missing")
    return dict(value) | {
        key: fit(value[key], hints[key], f"{prefix}{key}") for key in hints if key in value
    }


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
