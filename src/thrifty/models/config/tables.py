"""Dataclasses of a config from untrusted tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from thrifty.errors import ConfigError

T = TypeVar("T")


def build(kind: type[T], data: object, field: str) -> T:
    """`kind` with the fields of a table. Raises ConfigError naming what is no table, unknown, missing or wrong."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{field} is not a table.")
    known = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise ConfigError(f"{field}.{name} is not a field of {kind.__name__}.")
    try:
        return kind(**data)
    except TypeError as error:
        raise ConfigError(f"{field}: {error}.") from error
