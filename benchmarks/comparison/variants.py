"""Engines' variants, and the cells (context and batch) in which they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

THRIFTY, LLAMA, OPENVINO, TRANSFORMERS = "thrifty", "llama.cpp", "openvino", "transformers"
MISTRAL = "mistral.rs"
ENGINES = (THRIFTY, LLAMA, OPENVINO, TRANSFORMERS)
KNOWN = (*ENGINES, MISTRAL)
"""mistral.rs is no part of every run, for it never comes first (docs/log.md); --engines takes it in."""
SHIPPED = "shipped"
SMALL = 128  # the context of batches, of exact weights and of transformers
BATCH = 8

FOUR_BIT_LOGITS = {"technique": "rtn", "skip": ["layers.*"], "embedding_bits": 4}
TWO_BIT_CACHE = {"technique": "kivi", "bits": 2}

MAIN, EXACT, INT2KV = "4-bit logits", "as shipped", "4-bit logits, 2-bit cache"


@dataclass(frozen=True, order=True)
class Cell:
    """Where a rate is measured: tokens of every prompt, and prompts at once."""

    context: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.context}" if self.batch == 1 else f"{self.context}x{self.batch}"


@dataclass(frozen=True)
class Variant:
    """One way to run an engine. file: "shipped", or the kind that llama.cpp requantises the file to. exact:
    computes with exactly the shipped linears. only: the cells it is for, None: all.
    """

    engine: str
    name: str
    file: str = SHIPPED
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    exact: bool = False
    only: tuple[Cell, ...] | None = None

    @property
    def key(self) -> str:
        """Unique, and readable."""
        return f"{self.engine}: {self.name}"

    def measured_in(self, cell: Cell) -> bool:
        """Whether it is for the cell."""
        return self.only is None or cell in self.only


def cells(contexts: Sequence[int], batch: bool = True) -> list[Cell]:
    """Every cell of a run, so that memory only grows from one to the next."""
    extra = [Cell(SMALL, BATCH)] if batch and SMALL in contexts else []
    return sorted([Cell(context) for context in contexts] + extra)


def variants(engines: Sequence[str], largest: int, *, quick: bool = False) -> list[Variant]:
    """The field, the most promising of every engine first, since a screening may run out of time."""
    small = (Cell(SMALL), Cell(SMALL, BATCH))
    single = (Cell(SMALL), Cell(2048), Cell(largest))
    found = [
        Variant(THRIFTY, MAIN, options={"recipe": {"weights": [FOUR_BIT_LOGITS]}}),
        Variant(THRIFTY, EXACT, exact=True, only=(Cell(SMALL),)),
        Variant(
            THRIFTY,
            INT2KV,
            options={"recipe": {"weights": [FOUR_BIT_LOGITS], "cache": [TWO_BIT_CACHE]}},
            only=(Cell(largest),),
        ),
        *_llama(["Q4_0", SHIPPED] if quick else ["Q4_0", SHIPPED, "Q8_0"], quick),
        *(Variant(OPENVINO, kind, kind) for kind in (["Q4_0"] if quick else ["Q4_0", SHIPPED, "Q8_0"])),
        *(
            Variant(TRANSFORMERS, f"bf16 {attention}", options={"attention": attention}, only=small)
            for attention in (["sdpa"] if quick else ["sdpa", "eager"])
        ),
        *(Variant(MISTRAL, kind, kind, only=single) for kind in ([SHIPPED] if quick else [SHIPPED, "Q4_0", "Q8_0"])),
    ]
    return _in_turn([variant for variant in found if variant.engine in engines])


def one_file(engines: Sequence[str], quick: bool = False) -> list[Variant]:
    """The field where all read one file as it is. quick: llama.cpp in two of its three ways."""
    ways = _llama([SHIPPED], False)
    found = [
        Variant(THRIFTY, EXACT, exact=True),
        *(ways[:2] if quick else ways),
        Variant(OPENVINO, SHIPPED, SHIPPED, exact=True),
        Variant(MISTRAL, SHIPPED, SHIPPED, exact=True),
    ]
    return [variant for variant in found if variant.engine in engines]


def _in_turn(field: Sequence[Variant]) -> list[Variant]:
    """Every engine's first, then every engine's second, and so on; Thrifty's are all first."""
    places: dict[str, int] = {}
    ranked = []
    for variant in field:
        places[variant.engine] = places.get(variant.engine, -1) + 1
        ranked.append((0 if variant.engine == THRIFTY else places[variant.engine], variant))
    return [variant for _, variant in sorted(ranked, key=lambda pair: pair[0])]


def _llama(kinds: Sequence[str], quick: bool) -> list[Variant]:
    """Quantised values need flash attention in llama.cpp, so there is no q8_0 cache without it."""
    ways = [(False, "f16"), (True, "f16"), (True, "q8_0")]
    return [
        Variant(
            LLAMA,
            f"{kind}{' flash' if flash else ''}{f' kv {kv}' if kv != 'f16' else ''}",
            kind,
            {"flash": flash, "kv": kv},
            exact=kind == SHIPPED,
        )
        for kind in kinds
        for flash, kv in (ways[:2] if quick and kind != SHIPPED else ways[:1] if quick else ways)
    ]
