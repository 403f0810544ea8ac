"""A typed, suspicious reader of `config.json`: what nobody read, and could change the numerics, is refused
by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thrifty.errors import ConfigError
from thrifty.models.config.harmless import EXPLAINED, changes_nothing
from thrifty.models.config.model_config import check_integer, check_number


class Fields:
    """A table of `config.json`. Each method reads one field, checks it, and remembers that it was read.

    `prefix` goes before the field's name in messages. All methods raise ConfigError that names the field.
    """

    def __init__(self, data: object, prefix: str = "") -> None:
        if not isinstance(data, Mapping):
            raise ConfigError(f"{prefix.rstrip('.') or 'config.json'} is not a table.")
        self.data: Mapping[str, Any] = data
        self.prefix = prefix
        self.read: set[str] = set()

    def raw(self, *names: str) -> Any:
        """The value of the first of `names` that is present and not null; None where none is."""
        self.read.update(names)
        return next((self.data[name] for name in names if self.data.get(name) is not None), None)

    def integer(self, *names: str, low: int = 0, high: int, default: int | None = None) -> int:
        value = self.raw(*names)
        if value is None:
            value = self._default(names[0], default)
        value = without_fraction(value)
        check_integer(self.prefix + names[0], value, low, high)
        return int(value)

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        value = self.raw(name)
        if value is None:
            value = self._default(name, default)
        check_number(self.prefix + name, value, low, high)
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.prefix}{name} is {value!r:.80}; it must be true or false.")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.raw(name)
        if value is None:
            value = self._default(name, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.prefix}{name} is {value!r:.80}; it must be text.")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers; required."""
        value = self._default(name, self.raw(name))
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{self.prefix}{name} is {value!r:.80}; it must be a list of numbers.")
        for item in value:
            check_number(self.prefix + name, item, -1e12, 1e12)
        return tuple(float(item) for item in value)

    def integers(self, name: str, high: int) -> tuple[int, ...]:
        """One integer or a list of them from 0 to `high`; empty where the field is absent or null."""
        value = self.raw(name)
        if value is None:
            return ()
        values = [without_fraction(item) for item in (value if isinstance(value, list | tuple) else [value])]
        for item in values:
            check_integer(self.prefix + name, item, 0, high)
        return tuple(values)

    def token_ids(self, name: str, high: int) -> tuple[int, ...]:
        """As `integers`, for numbers of tokens: -1 alone means that there is none."""
        return () if self.raw(name) == -1 else self.integers(name, high)

    def table(self, name: str) -> Fields | None:
        """A table inside this one; None where it is absent or null."""
        value = self.raw(name)
        return None if value is None else Fields(value, f"{self.prefix}{name}.")

    def finish(self, family: str) -> None:
        """Raise ConfigError for a field that was not read and could change a logit."""
        for name, value in self.data.items():
            if name in self.read or changes_nothing(name, value, self.data):
                continue
            unknown = f"this field is not known for {family} and could change the results"
            reason = EXPLAINED.get(name, f"{unknown}; remove it from config.json where the model does without it")
            raise ConfigError(f"{self.prefix}{name} is {value!r:.80}: {reason}.")

    def _default(self, name: str, default: Any) -> Any:
        if default is None:
            raise ConfigError(f"{self.prefix}{name} is missing.")
        return default


def without_fraction(value: Any) -> Any:
    """A whole number that was written as 4096.0 as an integer; all else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
