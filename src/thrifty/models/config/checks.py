"""Checks of numbers and names that a file gives: errors name the field, and no number asks for a giant allocation."""

from __future__ import annotations

from thrifty.errors import ConfigError

# Upper bounds of what a real model can ask for; a number beyond them is a corrupt or hostile file.
LIMITS = {
    "vocabulary_size": 1 << 24,
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "shared_intermediate_size": 1 << 20,
    "layers": 1024,
    "heads": 4096,
    "kv_heads": 4096,
    "head_dim": 1024,
    "context_length": 1 << 30,
    "window": 1 << 30,
    "original_context": 1 << 30,
    "experts.count": 4096,
}


def check_integer(field: str, value: object, low: int, high: int) -> None:
    """Raise a `ConfigError` naming `field` unless `value` is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{field} is {shown(value)}; it must be an integer from {low} to {high}.")


def check_number(field: str, value: object, low: float, high: float) -> None:
    """Raise a `ConfigError` naming `field` unless `value` is a finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{field} is {shown(value)}; it must be a number from {low:g} to {high:g}.")


def check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise a `ConfigError` naming `field` unless `value` is one of `choices`."""
    if value not in choices:
        raise ConfigError(f"{field} is {shown(value)}; it must be one of: {', '.join(choices)}.")


def shown(value: object) -> str:
    """A value of a file as an error shows it: short."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 1 << 64:
        return "an integer beyond 64 bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
