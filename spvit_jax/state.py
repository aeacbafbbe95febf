"""JSON of a run's own: written from dataclasses, and read back with each value of its type."""

import dataclasses
import json
import math
import types
import typing
from typing import Any, NoReturn


class StateError(ValueError):
    """A file of a run's folder is damaged; the message says which and what to do."""


def dumps(value: Any) -> str:
    """The JSON text of a dataclass, or of what JSON has; null where a number is not finite."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n"


def loads(text: bytes) -> Any:
    """What a JSON text in UTF-8 holds.

    Raises:
      ValueError: it is none, or too deeply nested, or has numbers that JSON has not.
    """
    try:
        return json.loads(text.decode("utf-8"), parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def typed(kind: Any, value: Any, name: str = "") -> Any:
    """A JSON value as ``kind``: a dataclass, a type of JSON's, or tuples, dicts, unions of them.

    Null stands for a float that is not finite, as ``dumps`` writes it.

    Args:
      kind: the type.
      value: of JSON's types.
      name: of the value, for messages.

    Raises:
      ValueError: it is of another type, lacks a field or has one too many; names it.
    """
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return _one_of(arguments, value, name)
    if dataclasses.is_dataclass(kind):
        return _fields(kind, value, name)
    if origin is tuple and isinstance(value, list):
        return tuple(typed(arguments[0], one, f"{name}[{i}]") for i, one in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: typed(arguments[1], one, f"{name}.{key}") for key, one in value.items()}
    if kind is float and (value is None or type(value) in (int, float)):
        return math.nan if value is None else float(value)
    if type(value) is kind or (kind is types.NoneType and value is None):
        return value
    wanted = getattr(kind, "__name__", kind)
    raise ValueError(f"{name or 'it'} must be {wanted}, got {str(value)[:60]!r}")


def _fields(kind: Any, value: Any, name: str) -> Any:
    """The dataclass ``kind`` of an object."""
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'it'} must be a JSON object, got {str(value)[:60]!r}")
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    missing, unknown = sorted(needed - value.keys()), sorted(value.keys() - hints.keys())
    if missing or unknown:
        raise ValueError(f"{name or 'it'} lacks {missing}, has {unknown} beside its fields")
    inner = f"{name}." if name else ""
    return kind(**{key: typed(hints[key], one, f"{inner}{key}") for key, one in value.items()})


def _one_of(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """The first of ``kinds`` that the value is of."""
    reasons = []
    for kind in sorted(kinds, key=lambda kind: kind is float):  # whose null is not None
        try:
            return typed(kind, value, name)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; ".join(reasons))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON's")
