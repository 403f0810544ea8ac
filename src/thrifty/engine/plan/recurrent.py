"""A recurrent layer as operations of a native plan: its buffers, its projections, and the recurrence over the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.arrays import Floats
from thrifty.models.config.recurrent import RecurrentSpec

TOGETHER = (("query", "key", "value"), ("decay", "gate"))
"""Linears that one operation multiplies."""
PROJECTIONS = tuple(name for names in TOGETHER for name in names)


@dataclass(frozen=True)
class RecurrentBuffers:
    """The buffers of recurrent layers of one shape, by number."""

    query: int
    key: int
    value: int
    decay: int
    gate: int
    out: int

    @classmethod
    def of(cls, spec: RecurrentSpec, add: Callable[[int], int]) -> RecurrentBuffers:
        """New ones. add: makes a buffer of a width."""
        keys, values = spec.key_width, spec.value_width
        return cls(add(keys), add(keys), add(values), add(spec.decay_width), add(values), add(values))


def add_recurrence(
    native: Any,
    layer: int,
    spec: RecurrentSpec,
    buffers: RecurrentBuffers,
    rows: tuple[int, Mapping[str, Any]],
    linears: Mapping[str, int],
    norm: Floats,
    epsilon: float,
) -> None:
    """Gated linear attention of one layer, into `buffers.out`.

    native: the plan. rows: the buffer that holds them, and the norm that is still to be applied (as `add_project` takes
    it). linears: numbers of the `PROJECTIONS`. norm, epsilon: of each head's result, fp32 [value_dim].
    """
    source, own_norm = rows
    for names in TOGETHER:
        numbers, outs = [linears[name] for name in names], [getattr(buffers, name) for name in names]
        native.add_project(layer=layer, source=source, **own_norm, linears=numbers, outs=outs)
    native.add_recur(
        layer=layer, query=buffers.query, key=buffers.key, value=buffers.value, decay=buffers.decay,
        gate=buffers.gate, out=buffers.out, norm=norm, epsilon=epsilon, scale=spec.key_dim**-0.5,
        temperature=spec.temperature, heads=spec.heads, key_dim=spec.key_dim, value_dim=spec.value_dim,
    )  # fmt: skip
