"""Every stored format, and layers of every variant of it: for lists of what there is, benchmarks and tests."""

from __future__ import annotations

from collections.abc import Iterator

from thrifty.formats.linear import PackedLinear


def formats() -> list[type[PackedLinear]]:
    """Every format that is imported (`formats.linear` imports all), by kind."""
    own = [leaf for leaf in _leaves(PackedLinear) if leaf.__module__.startswith("thrifty.")]  # type: ignore[type-abstract]
    return sorted(own, key=lambda leaf: leaf.kind)


def examples(rows: int, columns: int) -> Iterator[PackedLinear]:
    """Every variant as a layer [rows, columns] of random numbers; columns a multiple of 256."""
    for kind in formats():
        yield from kind.examples(rows, columns)


def _leaves(cls: type[PackedLinear]) -> list[type[PackedLinear]]:
    leaves = [leaf for child in cls.__subclasses__() for leaf in _leaves(child)]
    return leaves or [cls]
