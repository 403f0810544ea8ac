"""How `thrifty roofline` shows an estimate: tables for people, one document for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import output
from thrifty.cli.shared.layout import Column

if TYPE_CHECKING:
    from thrifty.evaluation.roofline.cost import Class, Estimate
    from thrifty.evaluation.roofline.machine import Machine
    from thrifty.evaluation.roofline.operations import Operation

COLUMNS = (
    Column("layers", number=False),
    Column("operation", number=False, rank=1),
    Column("stored", number=False, rank=4),
    Column("GOP", rank=3),
    Column("moved", rank=3),
    Column("op/byte", rank=4),
    Column("bound by", number=False, rank=3),
    Column("µs", rank=2),
    Column("share", rank=2),
)


def show(model: str, recipe: str, found: Estimate) -> None:
    """Prefill and decode by layer class, then what it comes to."""
    machine = found.machine
    for title, step, seconds in (
        (f"prefill of {found.length} tokens", found.prefill, found.prefill_seconds),
        (f"decode of one token at {found.length}", found.decode, found.decode_seconds),
    ):
        times = f" × {found.batch}" if found.batch > 1 else ""
        output.table(f"{title}{times}", COLUMNS, list(_rows(found, step, seconds)))
    say = output.say
    say(f"{model}, {recipe}, on {machine.title or machine.name}")
    rates = ", ".join(f"{kind} {rate / 1e12:.4g}" for kind, rate in machine.rates.items())
    say(f"  {machine.bandwidth / 1e9:.1f} GB/s; TOP/s: {rates} ({machine.source})")
    for line in _summary(found):
        say(f"  {line}")


def _rows(found: Estimate, step: Sequence[Operation], total: float) -> Iterable[tuple[str, ...]]:
    from thrifty.evaluation.roofline.cost import folded

    for group in folded(step, found.sizes):
        name = layers_text(group, found)
        for one in group.operations:
            yield (name, *_cells(one, found.machine, total))
            name = ""
    products = sum(one.operations for one in step)
    read = sum(one.nbytes for one in step)
    yield ("total", "", "", f"{products / 1e9:.3f}", output.megabytes(read), "", "", f"{total * 1e6:.1f}", "100%")


def _cells(one: Operation, machine: Machine, total: float) -> tuple[str, ...]:
    seconds = one.seconds(machine)
    return (
        one.kind,
        one.stored if one.weight_bytes else "cache",
        f"{one.operations / 1e9:.3f}",
        output.megabytes(one.nbytes),
        f"{one.operations / one.nbytes:.1f}" if one.nbytes else "-",
        one.bound(machine),
        f"{seconds * 1e6:.1f}",
        f"{seconds / total:.0%}",
    )


def layers_text(group: Class, found: Estimate) -> str:
    """Such as "30 × layer", or with what sets the class apart: "5 × layer, window 512"."""
    if not group.layers:
        return "ends"
    config = found.sizes.config.layers[group.layers[0]]
    window = f", window {config.window}" if config.window is not None else ""
    experts = ", experts" if config.experts else ""
    kind = "recurrent layer" if config.recurrent is not None else "layer"
    return f"{len(group.layers)} × {kind}{window}{experts}"


def _summary(found: Estimate) -> Iterable[str]:
    decode, prefill = found.decode_seconds, found.prefill_seconds
    tokens = found.batch * found.length
    yield f"prefill: at least {prefill * 1e3:.2f} ms, at most {tokens / prefill:,.0f} tokens a second"
    yield f"decode: at least {decode * 1e3:.3f} ms a step, at most {found.batch / decode:,.1f} tokens a second"
    held = f"{output.megabytes(found.sizes.nbytes)} of weights and {output.megabytes(found.cache_peak)} of cache"
    room = found.machine.memory - found.memory
    if found.fits:
        yield f"memory: {held}: fits, {output.megabytes(room)} are left (workspace not counted)"
    else:
        yield f"memory: {held}: does not fit, {output.megabytes(-room)} are missing"


def document(model: str, recipe: str, found: Estimate) -> dict[str, Any]:
    """Everything as JSON-ready values. Bytes and operations are of a whole step of the whole batch."""
    return {
        "model": model,
        "recipe": recipe,
        "machine": found.machine.as_dict(),
        "batch": found.batch,
        "length": found.length,
        "weights_bytes": found.sizes.nbytes,
        "cache_peak_bytes": found.cache_peak,
        "fits": found.fits,
        "prefill": _step(found, found.prefill, found.prefill_seconds, found.batch * found.length),
        "decode": _step(found, found.decode, found.decode_seconds, found.batch),
    }


def _step(found: Estimate, step: Sequence[Operation], seconds: float, tokens: int) -> dict[str, Any]:
    from thrifty.evaluation.roofline.cost import cache_bytes, folded, weight_bytes

    return {
        "seconds": seconds,
        "tok_s": round(tokens / seconds, 2),
        "operations": sum(one.operations for one in step),
        "weight_bytes": weight_bytes(step),
        "cache_bytes": cache_bytes(step),
        "classes": [
            {
                "layers": list(group.layers),
                "operations": [_operation(one, found.machine) for one in group.operations],
            }
            for group in folded(step, found.sizes)
        ],
    }


def _operation(one: Operation, machine: Machine) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "stored": one.stored,
        "operations": one.operations,
        "weight_bytes": one.weight_bytes,
        "cache_bytes": one.cache_bytes,
        "bound": one.bound(machine),
        "seconds": one.seconds(machine),
    }


def show_machines(machines: Sequence[Machine]) -> None:
    """The table of known machines."""
    kinds = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")
    rows = [
        (
            one.name,
            one.title,
            f"{one.memory / (1 << 30):.0f} GiB",
            f"{one.bandwidth / 1e9:.0f}",
            *(f"{one.rates[kind] / 1e12:.4g}" if kind in one.rates else "-" for kind in kinds),
        )
        for one in machines
    ]
    columns = (
        Column("name", number=False),
        Column("machine", number=False, rank=3),
        Column("memory", rank=1),
        Column("GB/s", rank=1),
        *(Column(kind, rank=2) for kind in kinds),
    )
    output.table("machines; rates in TOP/s, dense", columns, rows)
