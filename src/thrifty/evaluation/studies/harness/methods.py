"""Formats of weights from the registry: every method at every width it has, and with a repair by training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from thrifty import registry
from thrifty.errors import nearest
from thrifty.evaluation.studies.harness.grid import GridError
from thrifty.evaluation.studies.harness.study import Format

ALL = "all"
GROUP = 128  # the papers' group of weights
REPAIRED = "+lora"
REPAIR = "lora-ft"


def formats(methods: Sequence[str], bits: Sequence[int] | None = None, repair: int = 0) -> tuple[Format, ...]:
    """The uncompressed format, then each method at each of its widths, in groups of 128 where it has groups.

    methods: names of weight techniques, or "all": those that have widths. bits: the widths that are wanted, None for
    all; a method without widths has one format whatever is wanted. repair: steps of training of one more format behind
    each, 0 for none. Raises GridError for an unknown method, and one that has none of the widths.
    """
    made = [Format("bf16")]
    for method in _chosen(methods):
        for form in _of(method, bits):
            made.append(form)
            if repair:
                tables = (*form.tables, {"technique": REPAIR, "steps": repair})
                made.append(Format(f"{form.name}{REPAIRED}", tables, f"{form.about}, {repair} steps of LoRA"))
    return tuple(made)


def widths(method: str) -> tuple[int, ...]:
    """The bits that a method has, none where it has no such option."""
    return tuple(int(width) for width in _choices(method).get("bits", ()))


def _chosen(methods: Sequence[str]) -> list[str]:
    known = registry.names("weights")
    chosen: list[str] = []
    for name in methods:
        if name == ALL:
            chosen += [own for own in known if widths(own)]
        elif name not in known:
            raise GridError(f"no weight technique '{name}'. {nearest(name, known)}")
        else:
            chosen.append(name)
    return list(dict.fromkeys(chosen))


def _of(method: str, bits: Sequence[int] | None) -> list[Format]:
    choices, known = _choices(method), widths(method)
    options: dict[str, Any] = {"group": GROUP} if GROUP in choices.get("group", ()) else {}
    about = f"groups of {GROUP}" if options else ""
    if not known:
        return [Format(method, ({"technique": method, **options},), about)]
    wanted = [width for width in known if bits is None or width in bits]
    if not wanted:
        raise GridError(f"'{method}' has {', '.join(map(str, known))} bits and none of those that are asked for")
    return [
        Format(f"{method}-{width}", ({"technique": method, "bits": width, **options},), f"{width} bits, {about}")
        for width in wanted
    ]


def _choices(method: str) -> dict[str, tuple[Any, ...]]:
    """The values of a technique's options, of those that have a fixed few."""
    hints = get_type_hints(registry.load("weights", method))
    return {option: get_args(hint) for option, hint in hints.items() if get_origin(hint) is Literal}
