"""The key-value part of a GGUF header, with getters that check type and range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from thrifty.errors import CheckpointError

T = TypeVar("T")


class Metadata(Mapping[str, Any]):
    """The key-value part of the header, with getters that check type and range.

    Values are str, int, float, bool, `list[str]` or a one-dimensional numpy array.
    """

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self._values = values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def integer(self, key: str, default: int | None = None, *, minimum: int = 0, maximum: int = 2**31 - 1) -> int:
        """An integer within [minimum, maximum]; CheckpointError where it is missing without default, or is not one."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self._wrong(key, value, "an integer")
        if not minimum <= value <= maximum:
            raise CheckpointError(f"{self.path}: '{key}' is {value}; it must lie between {minimum} and {maximum}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = -np.inf) -> float:
        """A finite number greater than `above`."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._wrong(key, value, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = np.inf
        if not np.isfinite(number) or number <= above:
            raise CheckpointError(f"{self.path}: '{key}' is {value}; it must be finite and above {above:g}")
        return number

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            self._wrong(key, value, "a string")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A boolean."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, value, "a boolean")
        return value

    def texts(self, key: str) -> list[str]:
        """An array of strings."""
        value = self._get(key, None)
        if not isinstance(value, list):
            self._wrong(key, value, "an array of strings")
        return value

    def numbers(self, key: str, length: int) -> npt.NDArray[Any]:
        """A numeric array of exactly `length` values."""
        value = self._get(key, None)
        if not isinstance(value, np.ndarray):
            self._wrong(key, value, "an array of numbers")
        if len(value) != length:
            raise CheckpointError(f"{self.path}: '{key}' has {len(value)} values; {length} are needed")
        return value

    def integers(self, key: str, length: int) -> list[int]:
        """An array of exactly `length` integers, of whatever width."""
        value = self.numbers(key, length)
        if value.dtype.kind not in "iu":
            self._wrong(key, value, "an array of integers")
        return [int(item) for item in value]

    def _get(self, key: str, default: T | None) -> Any:
        if key not in self._values and default is None:
            raise CheckpointError(f"{self.path}: the metadata field '{key}' is missing")
        return self._values.get(key, default)

    def _wrong(self, key: str, value: Any, expected: str) -> NoReturn:
        shown = repr(value) if isinstance(value, (str, int, float, bool)) else f"an array of {len(value)}"
        raise CheckpointError(f"{self.path}: '{key}' must be {expected}, not {shown[:80]}")
