"""What fewer bits cost, in weights and in the cache, alone and together."""

from __future__ import annotations

from typing import Any, ClassVar

from thrifty.evaluation.studies.harness.study import Format, Study


def _rtn(**options: Any) -> tuple[dict[str, Any], ...]:
    return ({"technique": "rtn", **options},)


def _kivi(**options: Any) -> tuple[dict[str, Any], ...]:
    return ({"technique": "kivi", **options},)


class Quantization(Study):
    """Formats of weights × formats of the cache × tasks, with what serving each costs at several batch sizes."""

    title: ClassVar[str] = "What fewer bits cost: formats of weights × formats of the cache × tasks"
    papers: ClassVar[tuple[str, ...]] = (
        "Give Me BF16 or Give Me Death (arXiv:2411.02355)",
        "An Empirical Study of LLaMA3 Quantization (arXiv:2404.14047)",
    )
    departs: ClassVar[tuple[str, ...]] = (
        "weights are rounded to nearest in groups (no second-order rounding, no FP8), in the off-grid view",
        "activations are int8 per 32 values wherever weights are codes; bf16 weights have bf16 activations",
        "the papers leave the cache in 16 bits: its formats, and their interplay with the weights', are added",
        "tasks are this package's own; BERTScore and STS, which take a second model, are left out",
    )
    weights: ClassVar[tuple[Format, ...]] = (
        Format("bf16"),
        Format("w8a8", _rtn(bits=8), "8 bits in groups of 32"),
        Format("w4a8", _rtn(bits=4), "4 bits in groups of 32"),
        Format("w4a8-g128", _rtn(bits=4, group=128), "4 bits in groups of 128, the papers' group"),
    )
    caches: ClassVar[tuple[Format, ...]] = (
        Format("full"),
        Format("kivi-8", _kivi(bits=8)),
        Format("kivi-4", _kivi(bits=4)),
        Format("kivi-2", _kivi(bits=2)),
    )
    tasks: ClassVar[tuple[str, ...]] = ("perplexity", "choice", "recall-many", "multi-request", "continuation")
    aside: ClassVar[tuple[str, ...]] = ("continuation",)
