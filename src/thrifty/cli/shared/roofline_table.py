"""How `thrifty roofline` shows an estimate: tables for people, one document for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import output
from thrifty.cli.shared.layout import Column

if TYPE_CHECKING:
    from thrifty.evaluation.roofline.cost import Estimate, LayerClass
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


def show(model: str, recipe: str, estimate: Estimate) -> None:
    """Prefill and decode by layer class, then what it comes to."""
    machine = estimate.machine
    for title, step, seconds in (
        (f"prefill of {estimate.length} tokens", estimate.prefill, estimate.prefill_seconds),
        (_decode_title(estimate), estimate.decode, estimate.decode_seconds),
    ):
        times = f" × {estimate.batch}" if estimate.batch > 1 else ""
        output.table(f"{title}{times}", COLUMNS, list(_rows(estimate, step, seconds)))
    say = output.say
    say(f"{model}, {recipe}, on {machine.title or machine.name}")
    rates = ", ".join(f"{kind} {rate / 1e12:.4g}" for kind, rate in machine.rates.items())
    say(f"  {machine.bandwidth / 1e9:.1f} GB/s; TOP/s: {rates} ({machine.source})")
    for line in _summary(estimate):
        say(f"  {line}")


def _decode_title(estimate: Estimate) -> str:
    what = "one token" if estimate.rows == 1 else f"one token and {estimate.rows - 1} drafted ones"
    return f"decode of {what} at {estimate.length}"


def _rows(estimate: Estimate, step: Sequence[Operation], total: float) -> Iterable[tuple[str, ...]]:
    from thrifty.evaluation.roofline.cost import folded

    for group in folded(step, estimate.sizes):
        name = layers_text(group, estimate)
        for operation in group.operations:
            yield (name, *_cells(operation, estimate.machine, total))
            name = ""
    products = sum(operation.operations for operation in step)
    read = sum(operation.nbytes for operation in step)
    yield ("total", "", "", f"{products / 1e9:.3f}", output.megabytes(read), "", "", f"{total * 1e6:.1f}", "100%")


def _cells(operation: Operation, machine: Machine, total: float) -> tuple[str, ...]:
    seconds = operation.seconds(machine)
    return (
        operation.kind,
        operation.stored if operation.weight_bytes else "cache",
        f"{operation.operations / 1e9:.3f}",
        output.megabytes(operation.nbytes),
        f"{operation.operations / operation.nbytes:.1f}" if operation.nbytes else "-",
        operation.bound(machine),
        f"{seconds * 1e6:.1f}",
        f"{seconds / total:.0%}",
    )


def layers_text(group: LayerClass, estimate: Estimate) -> str:
    """Such as "30 × layer", or with what sets the class apart: "5 × layer, window 512"."""
    if not group.layers:
        return "ends"
    config = estimate.sizes.config.layers[group.layers[0]]
    window = f", window {config.window}" if config.window is not None else ""
    experts = ", experts" if config.experts else ""
    kind = "recurrent layer" if config.recurrent is not None else "layer"
    return f"{len(group.layers)} × {kind}{window}{experts}"


def _summary(estimate: Estimate) -> Iterable[str]:
    decode, prefill = estimate.decode_seconds, estimate.prefill_seconds
    tokens = estimate.batch * estimate.length
    yield f"prefill: at least {prefill * 1e3:.2f} ms, at most {tokens / prefill:,.0f} tokens a second"
    drafted = "" if estimate.rows == 1 else f" of {estimate.rows} rows, were all drafts taken"
    most = estimate.batch * estimate.rows / decode
    yield f"decode: at least {decode * 1e3:.3f} ms a step, at most {most:,.1f} tokens a second{drafted}"
    if estimate.rows > 1:
        yield f"  were none taken: at most {estimate.batch / decode:,.1f} tokens a second"
    held = f"{output.megabytes(estimate.sizes.nbytes)} of weights and {output.megabytes(estimate.cache_peak)} of cache"
    if estimate.draft is not None:
        drafting = (estimate.rows - 1) * estimate.draft.decode_seconds
        yield f"  the model that drafts takes {drafting * 1e3:.3f} ms of each step"
        held += f", {output.megabytes(estimate.draft.memory)} of the model that drafts"
    room = estimate.machine.memory - estimate.memory
    if estimate.fits:
        yield f"memory: {held}: fits, {output.megabytes(room)} are left (workspace not counted)"
    else:
        yield f"memory: {held}: does not fit, {output.megabytes(-room)} are missing"


def document(model: str, recipe: str, estimate: Estimate) -> dict[str, Any]:
    """Everything as JSON-ready values. Bytes and operations are of a whole step of the whole batch."""
    return {
        "model": model,
        "recipe": recipe,
        "machine": estimate.machine.as_dict(),
        "batch": estimate.batch,
        "length": estimate.length,
        "weights_bytes": estimate.sizes.nbytes,
        "cache_peak_bytes": estimate.cache_peak,
        "fits": estimate.fits,
        "prefill": _step(estimate, estimate.prefill, estimate.prefill_seconds, estimate.batch * estimate.length),
        "decode": _step(estimate, estimate.decode, estimate.decode_seconds, estimate.batch * estimate.rows),
        "rows": estimate.rows,
        "draft": None if estimate.draft is None else _drafting(estimate, estimate.draft),
    }


def _drafting(estimate: Estimate, draft: Estimate) -> dict[str, Any]:
    """Of the model that drafts: its bytes, and its part of a decode step and of the prompts."""
    return {
        "weights_bytes": draft.sizes.nbytes,
        "cache_peak_bytes": draft.cache_peak,
        "decode_seconds": (estimate.rows - 1) * draft.decode_seconds,
        "prefill_seconds": draft.prefill_seconds,
    }


def _step(estimate: Estimate, step: Sequence[Operation], seconds: float, tokens: int) -> dict[str, Any]:
    from thrifty.evaluation.roofline.cost import cache_bytes, folded, weight_bytes

    return {
        "seconds": seconds,
        "tok_s": round(tokens / seconds, 2),
        "operations": sum(operation.operations for operation in step),
        "weight_bytes": weight_bytes(step),
        "cache_bytes": cache_bytes(step),
        "classes": [
            {
                "layers": list(group.layers),
                "operations": [_operation(operation, estimate.machine) for operation in group.operations],
            }
            for group in folded(step, estimate.sizes)
        ],
    }


def _operation(operation: Operation, machine: Machine) -> dict[str, Any]:
    return {
        "kind": operation.kind,
        "stored": operation.stored,
        "operations": operation.operations,
        "weight_bytes": operation.weight_bytes,
        "cache_bytes": operation.cache_bytes,
        "bound": operation.bound(machine),
        "seconds": operation.seconds(machine),
    }


def show_machines(machines: Sequence[Machine]) -> None:
    """The table of known machines."""
    kinds = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")
    rows = [
        (
            machine.name,
            machine.title,
            f"{machine.memory / (1 << 30):.0f} GiB",
            f"{machine.bandwidth / 1e9:.0f}",
            *(f"{machine.rates[kind] / 1e12:.4g}" if kind in machine.rates else "-" for kind in kinds),
        )
        for machine in machines
    ]
    columns = (
        Column("name", number=False),
        Column("machine", number=False, rank=3),
        Column("memory", rank=1),
        Column("GB/s", rank=1),
        *(Column(kind, rank=2) for kind in kinds),
    )
    output.table("machines; rates in TOP/s, dense", columns, rows)
