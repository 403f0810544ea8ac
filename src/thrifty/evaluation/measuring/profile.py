"""Where a token's time goes: the native plan's operations, and what is not the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.evaluation.forcing import force
from thrifty.evaluation.text import held_out

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

OUTSIDE = "outside the plan"
STEPS = 64


@dataclass(frozen=True)
class OperationShare:
    """One kind of operation: microseconds a token, and the bytes that a decode step must read for it (0: few)."""

    microseconds: float
    nbytes: int = 0


@dataclass(frozen=True)
class Profile:
    """Shares by kind of operation: of a token of the prompt, and of a decoded token."""

    context: int
    prefill: dict[str, OperationShare]
    decode: dict[str, OperationShare]


def measure(engine: Engine, context: int, steps: int = STEPS) -> Profile:
    """Profile a prompt of `context` tokens and the `steps` tokens after it.

    Raises KernelError where the model runs on the reference path: only the native plan times its operations.
    """
    tokens = held_out(engine.model.require_tokenizer(), context + steps + 1)
    stepping = force(engine, tokens[:context], tokens[context:], None, inspect=(steps,))
    with engine.profile() as prompt:
        first = next(stepping)
    with engine.profile() as decoding:
        rest = list(stepping)
    cache_bytes = next((step.evidence.nbytes for step in rest if step.evidence), 0)
    held = {"attention": cache_bytes, **_weights(engine)}
    return Profile(
        context,
        _shares(prompt, first.seconds, context, {}),
        _shares(decoding, sum(step.seconds for step in rest), len(rest), held),
    )


def _shares(
    seconds: Mapping[str, float], total: float, tokens: int, nbytes: dict[str, int]
) -> dict[str, OperationShare]:
    """What took time, longest first, then what the plan did not do."""
    shares = {
        kind: OperationShare(time / tokens * 1e6, nbytes.get(kind, 0))
        for kind, time in sorted(seconds.items(), key=lambda item: -item[1])
        if time > 0
    }
    shares[OUTSIDE] = OperationShare(max(0.0, total - sum(seconds.values())) / tokens * 1e6)
    return shares


def _weights(engine: Engine) -> dict[str, int]:
    """Bytes of the linears by the kind of operation that reads them."""
    held = {"projections": 0, "gate and up": 0, "logits": 0}
    linears = engine.model.linears
    for name, linear in linears.items():
        if ".experts." in name:
            continue
        if name == "embedding":
            held["logits"] += 0 if "head" in linears else linear.nbytes
        elif name == "head":
            held["logits"] += linear.nbytes
        else:
            held["gate and up" if name.endswith((".gate", ".up")) else "projections"] += linear.nbytes
    return held
