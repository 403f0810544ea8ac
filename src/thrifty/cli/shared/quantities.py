"""Sizes, lists of numbers and pairs, as people type them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import typer

LARGEST = 2**60
FIT = 0
"""As many as fit, where a flag takes a count or the word `fit`."""


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


def parse_room(text: str | int) -> int:
    """The same, or 0 for none. Raises typer.BadParameter naming the value."""
    return 0 if str(text).strip() == "0" else parse_bytes(text)


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
        raise typer.BadParameter(
            f"{text!r} is not TOKEN=BIAS. Write e.g. 198=-5, or 198=-inf to ban it.", param_hint="--logit-bias"
        ) from error


def parse_limit(text: str | int) -> int:
    """A positive whole number, or FIT for the word `fit`. Raises typer.BadParameter naming the value."""
    if isinstance(text, int) or text.strip().lower() == "fit":
        return text if isinstance(text, int) else FIT
    if not re.fullmatch(r"\s*\d{1,9}\s*", text) or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a positive whole number. Write e.g. 512, or fit.")
    return int(text)


def parse_argument(text: str) -> tuple[str, Any]:
    """A name and a JSON value from `enable_thinking=false`. Raises typer.BadParameter naming the text."""
    name, separator, value = text.partition("=")
    try:
        if not separator or not name.strip():
            raise ValueError
        return name.strip(), json.loads(value)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is not KEY=JSON. Write e.g. enable_thinking=false, or effort='\"low\"' for a text.",
            param_hint="--template-argument",
        ) from error


def read_objects(path: Path, flag: str) -> list[dict[str, Any]]:
    """A JSON list of objects from a file. Raises typer.BadParameter naming the file."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"cannot read {path}: {error}", param_hint=flag) from error
    objects = [document] if isinstance(document, dict) else document
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise typer.BadParameter(f"{path} holds no JSON list of objects.", param_hint=flag)
    return objects


def parse_seconds(text: str | float) -> float:
    """Seconds from `8ms`, `0.5 s` or `800us`. Raises typer.BadParameter naming the value."""
    if isinstance(text, float):
        return text
    matched = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|ms|s)\s*", text)
    if matched is None or not float(matched[1]) > 0:
        raise typer.BadParameter(f"{text!r} is not a time. Write e.g. 8ms or 0.5s.")
    return float(matched[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[matched[2]]
