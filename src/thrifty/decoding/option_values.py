"""Values that callers give for options, made into Python's own: NumPy's and torch's numbers are numbers, what is of
another kind is refused.

Every function raises PromptError that names the option, the value and what would do.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from thrifty.errors import PromptError

SHOWN = 60  # characters of a value in a message


def shown(value: Any) -> str:
    """A value for a message: short, with its type where that is not plain."""
    text = " ".join(repr(value).split())
    text = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return text if value is None else f"{text} ({type(value).__name__})"


def as_integer(value: Any) -> int | None:
    """The whole number that a value is, of any library; None for all else, truth values included."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def is_array(value: Any) -> bool:
    """Whether a value is an array, tensor or series of some library."""
    return hasattr(value, "tolist") and not isinstance(value, (bytes, bytearray, memoryview))


def number(name: str, value: Any, low: float, high: float, accepted: str, above: bool = False) -> float:
    """A finite number from `low` (above it: exclusive) to `high`."""
    is_number = isinstance(value, numbers.Real) or (is_array(value) and getattr(value, "ndim", None) == 0)
    if not is_number or isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise PromptError(f"{name} = {shown(value)} is not a number; use {accepted}")
    result = value if isinstance(value, int) else float(value)
    if not math.isfinite(result) or result < low or result > high or (above and result <= low):
        raise PromptError(f"{name} = {result!r} is out of range; use {accepted}")
    return result


def whole(name: str, value: Any, low: int, accepted: str, high: int | None = None) -> int:
    """A whole number from `low` to `high`."""
    result = as_integer(value)
    if result is None:
        raise PromptError(f"{name} = {shown(value)} is not a whole number; use {accepted}")
    if result < low or (high is not None and result > high):
        raise PromptError(f"{name} = {result!r} is out of range; use {accepted}")
    return result


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if isinstance(value, bool):
        return value
    if type(value).__name__ in ("bool", "bool_") and getattr(value, "ndim", None) == 0:
        return bool(value)
    raise PromptError(f"{name} = {shown(value)} is out of range; use True or False")


def tables(name: str, value: Any) -> Any:
    """A recipe's tables, as they are: a list of mappings, or None."""
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))
    if value is None or (is_list and all(isinstance(table, Mapping) for table in value)):
        return value
    raise PromptError(f'{name} = {shown(value)} is no list of tables; use [{{"technique": "..."}}], or None')


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Some texts of at least one character: one of them, a collection of them, or None for none."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    if isinstance(value, (bytes, bytearray, memoryview, Mapping)) or not isinstance(value, Iterable):
        raise PromptError(f"{name} = {shown(value)} is no text; use a string, a list of strings, or None")
    result = tuple(value)
    for text in result:
        if not isinstance(text, str):
            raise PromptError(f"{name} contains {shown(text)}, which is no text; use strings")
        if not text:
            raise PromptError(f"{name} contains {text!r}; every {name} string needs at least one character")
    return result


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Token ids: a list of whole numbers, or an array of one dimension."""
    values = value.tolist() if is_array(value) else value
    if isinstance(values, (str, bytes, bytearray, memoryview)) or not isinstance(values, Sequence):
        raise PromptError(f"{name} = {shown(value)} holds no token ids; use a list or an array of whole numbers")
    result = []
    for place, token in enumerate(values):
        integer = as_integer(token)
        if integer is None:
            raise PromptError(f"{name}[{place}] = {shown(token)} is no token id; use whole numbers of at least 0")
        result.append(integer)
    return tuple(result)


def biases(name: str, value: Any) -> dict[int, float]:
    """Additions in logit units by token id; None for none."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise PromptError(f"{name} = {shown(value)} is no mapping; use {{token id: bias}}, or None")
    result = {}
    for token, bias in value.items():
        if as_integer(token) is None:
            raise PromptError(
                f"{name} has the key {shown(token)}, which is no token id; use whole numbers of at least 0"
            )
        place = whole(name, token, 0, "token ids of at least 0")
        bias = bias.item() if is_array(bias) and getattr(bias, "ndim", None) == 0 else bias
        if not isinstance(bias, numbers.Real) or isinstance(bias, bool) or math.isnan(bias) or bias == math.inf:
            raise PromptError(f"{name}[{place}] = {bias!r}; use a finite number, or -inf as a ban")
        result[place] = bias if isinstance(bias, int) else float(bias)
    return result
