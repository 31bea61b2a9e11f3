"""A section of a TOML file as a frozen dataclass: no key that is not known, no value of another type.

Knows tables and dataclasses; what they are about is the business of `reid.train.recipe`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from reid.errors import ConfigError

_LARGEST = 10_000_000  # of any number


def section(kind: Any, raw: Any, source: str, prefix: str) -> Any:
    """A frozen dataclass of `kind` from a table of known keys."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        read = reader_of(hints[key])
        try:
            values[key] = read(value)
        except ValueError:
            expected = getattr(hints[key], "__name__", str(hints[key]))
            expected += f" below {_LARGEST:,}" if hints[key] in (int, float) else ""
            raise ConfigError(
                f"'{prefix}{key}' is {value!r}", source=source, next_step=f"expected {expected}"
            ) from None
    return kind(**values)


def reader_of(wanted: Any) -> Callable[[Any], Any]:
    """What turns a value of TOML into one of that type, or raises ValueError."""
    assert not is_dataclass(wanted) and get_origin(wanted) not in (Union, UnionType)

    def read(value: Any) -> Any:
        if get_origin(wanted) is Literal and value in get_args(wanted):
            return value
        if get_origin(wanted) is tuple and isinstance(value, list):
            one = reader_of(get_args(wanted)[0])
            return tuple(one(part) for part in value)
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted or (wanted in (int, float) and not abs(value) < _LARGEST):  # nor nan
            raise ValueError
        return value

    return read


def known_only(raw: Any, known: set[str], prefix: str, source: str) -> None:
    """Raises ConfigError where a table has a key that is not `known`, or is none; `prefix` and `source` name it."""
    if not isinstance(raw, dict):
        raise ConfigError(
            f"'{prefix.rstrip('. :')}' is {raw!r}", source=source, next_step="expected a section of keys and values"
        )
    for key in raw:
        if key not in known:
            raise ConfigError(
                f"unknown key '{prefix}{key}'", source=source, next_step=f"known: {', '.join(sorted(known))}"
            )
