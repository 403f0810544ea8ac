"""Sizes, lists of numbers and pairs, as people type them."""

from __future__ import annotations

import re

import typer

LARGEST = 2**60


def parse_bytes(text: str | int) -> int:
    """Bytes from `150MB`, `1.5 GiB`, `4G` or a plain count. MB is 10^6 bytes, MiB is 2^20.

    Raises typer.BadParameter (exit code 2) naming the value.
    """
    from thrifty.errors import BudgetError
    from thrifty.storage.budget import parse_size

    try:
        size = parse_size(text, "the size")
    except (BudgetError, OverflowError) as error:
        raise typer.BadParameter(str(error)) from error
    if size > LARGEST:
        raise typer.BadParameter(f"{text!r} is more than any machine has; write e.g. 150MB or 1.5GiB")
    return size


def parse_counts(text: str) -> tuple[int, ...]:
    """Ascending positive whole numbers from `128,2048,6144`. Raises typer.BadParameter naming the part that
    is not one.
    """
    counts = []
    for part in text.split(","):
        if not re.fullmatch(r"\s*\d{1,9}\s*", part) or int(part) < 1:
            raise typer.BadParameter(f"{part.strip()!r} is not a positive whole number. Write e.g. 128,2048,6144.")
        counts.append(int(part))
    return tuple(sorted(set(counts)))


def parse_bias(text: str) -> tuple[int, float]:
    """A token id and a bias in logit units from `198=-5` (`-inf` bans the token)."""
    token, separator, bias = text.partition("=")
    try:
        if not separator:
            raise ValueError
        return int(token), float(bias)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not TOKEN=BIAS. Write e.g. 198=-5, or 198=-inf to ban it.") from error


def parse_seconds(text: str | float) -> float:
    """Seconds from `8ms`, `0.5 s` or `800us`. Raises typer.BadParameter naming the value."""
    if isinstance(text, float):
        return text
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|ms|s)\s*", text)
    if found is None or not float(found[1]) > 0:
        raise typer.BadParameter(f"{text!r} is not a time. Write e.g. 8ms or 0.5s.")
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]
