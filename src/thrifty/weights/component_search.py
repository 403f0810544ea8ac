"""Which of several formats each part of a model gets, so that together they stay below a number of bytes."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thrifty.errors import RecipeError
from thrifty.weights.structure import LinearInfo

Formats = Mapping[str, float]
"""A figure by the name of a format."""


@dataclass(frozen=True, eq=False)
class Component:
    """Linears that share a format, such as all of one layer's attention."""

    name: str
    linears: tuple[LinearInfo, ...]


def components(chosen: Sequence[LinearInfo]) -> list[Component]:
    """The attention and the MLP of each layer, in the order of the linears."""
    parts: dict[str, list[LinearInfo]] = {}
    for info in chosen:
        parts.setdefault(f"layers.{info.layer}.{info.branch}", []).append(info)
    return [Component(name, tuple(own)) for name, own in parts.items()]


def assign(
    sizes: Mapping[Component, Formats], costs: Mapping[Component, Formats], formats: Sequence[str], limit: float
) -> dict[Component, str]:
    """A format for each component. sizes: bytes. costs: what each format costs by itself; costs are taken to add up.
    limit: bytes of all together.

    All begin with the first format. The step to a smaller one that costs least for each byte it saves is taken next,
    until the limit is kept. Raises RecipeError where the smallest formats are above it.
    """
    smallest = sum(min(own.values()) for own in sizes.values())
    if smallest > limit:
        raise RecipeError(
            f"the target is {limit:.0f} bytes and the smallest formats take {smallest:.0f}: use a higher target"
        )
    chosen = dict.fromkeys(sizes, formats[0])
    total = sum(own[formats[0]] for own in sizes.values())
    order = list(sizes)
    steps = [
        step for place, part in enumerate(order) for step in _steps(place, part, formats[0], sizes, costs, formats)
    ]
    heapq.heapify(steps)
    while total > limit:
        _, _, place, before, after = heapq.heappop(steps)
        part = order[place]
        if chosen[part] != before:
            continue  # a step from a format that it has no more
        total += sizes[part][after] - sizes[part][before]
        chosen[part] = after
        for step in _steps(place, part, after, sizes, costs, formats):
            heapq.heappush(steps, step)
    return chosen


def _steps(
    place: int,
    part: Component,
    now: str,
    sizes: Mapping[Component, Formats],
    costs: Mapping[Component, Formats],
    formats: Sequence[str],
) -> list[tuple[float, float, int, str, str]]:
    """(cost for each byte saved, minus the bytes, component, format now, format then) of every smaller format."""
    made = []
    for form in formats:
        saved = sizes[part][now] - sizes[part][form]
        if saved > 0:
            made.append(((costs[part][form] - costs[part][now]) / saved, -saved, place, now, form))
    return made
