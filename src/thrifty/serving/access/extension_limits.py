"""What the field `thrifty` of a request may ask for, within the operator's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.errors import nearest
from thrifty.serving.bodies.sampling import Extensions
from thrifty.serving.errors import RequestError
from thrifty.serving.settings import ServerSettings
from thrifty.storage.budget import format_size, parse_size


def granted(settings: ServerSettings, asked: Extensions) -> dict[str, Any]:
    """The fields of an engine's Request that extensions stand for.

    Raises RequestError: 403 for what the operator turned off, 400 for a value beyond a limit, with both.
    """
    _check_turned_on(settings, asked)
    for stage, tables in (("cache", asked.cache), ("prompt", asked.prompt), ("decoding", asked.decoding)):
        _check_techniques(settings.request_techniques, tables or (), f"thrifty.{stage}")
    return {
        "cache": asked.cache,
        "programs": asked.prompt,
        "decoding": asked.decoding,
        "cache_bytes": _cache_bytes(settings.request_cache_memory, asked.cache_memory),
        "priority": _priority(settings.priority, asked.priority),
    }


def _check_turned_on(settings: ServerSettings, asked: Extensions) -> None:
    if settings.request_recipes:
        return
    for name in ("cache", "cache_memory", "prompt", "decoding", "counterfactual"):
        if getattr(asked, name) is not None:
            param = f"thrifty.{name}"
            raise RequestError(f"'{param}' is turned off on this server; leave it out", 403, param)


def _check_techniques(allowed: Sequence[str] | None, tables: Sequence[Mapping[str, Any]], param: str) -> None:
    if allowed is None:
        return
    for place, table in enumerate(tables):
        name = str(table.get("technique"))
        if name not in allowed:
            raise RequestError(
                f"the technique '{name:.80}' is not one that this server lets requests choose. "
                f"{nearest(name, allowed)}",
                403,
                f"{param}.{place}.technique",
            )


def _cache_bytes(most: int | None, asked: int | str | None) -> int | None:
    """The bound on a request's cache; where it brings none, the operator's."""
    if asked is None:
        return most
    size = parse_size(asked, "thrifty.cache_memory")
    if most is not None and size > most:
        raise RequestError(
            f"'thrifty.cache_memory' is {format_size(size)}; this server grants at most {format_size(most)}",
            param="thrifty.cache_memory",
        )
    return size


def _priority(most: int, asked: int | None) -> int:
    if asked is None:
        return 0
    if abs(asked) > most:
        told = f"from {-most} to {most}" if most else "no priorities: leave it out"
        raise RequestError(f"'thrifty.priority' is {asked}; this server takes {told}", param="thrifty.priority")
    return asked
