"""What fewer bits cost, in weights and in the cache, alone and together."""

from __future__ import annotations

from typing import Any, ClassVar

from thrifty.evaluation.studies.harness.findings import keeps, loses, repair_fails
from thrifty.evaluation.studies.harness.study import Finding, Format, Study

BF16, LLAMA3 = "arXiv:2411.02355", "arXiv:2404.14047"


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
        "weights are rounded to nearest in groups unless methods are named, in the off-grid view; there is no FP8",
        "of LLaMA3's ten methods those that this package has: not QuIP, PB-LLM, DB-LLM, BiLLM, QLoRA or IR-QLoRA",
        "the repair by LoRA learns the package's own text for few steps; the paper's Alpaca",
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
    findings: ClassVar[tuple[Finding, ...]] = (
        Finding(BF16, "8 bits, tuned: 1 to 3 % of the score lost", keeps(8, 0.97)),
        Finding(BF16, "4-bit weights rival 8 bits: within the same 3 %", keeps(4, 0.97)),
        Finding(LLAMA3, "4 bits: about 2 % lost on average", keeps(4, 0.98, ("gptq", "awq"))),
        Finding(LLAMA3, "3 bits, GPTQ and AWQ: less than 5 % lost", keeps(3, 0.95, ("gptq", "awq"))),
        Finding(LLAMA3, "3 bits, round-to-nearest: more than 10 % lost", loses(3, 0.90, ("rtn",))),
        Finding(LLAMA3, "LoRA-FT does not make up for what rounding lost", repair_fails),
    )
