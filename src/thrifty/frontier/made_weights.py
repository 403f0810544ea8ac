"""Weights that `fit` tries beside round-to-nearest: techniques that need no training, only a look at a text, and what
making them costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thrifty.frontier.candidates import Table

EIGHT: tuple[Table, ...] = ({"technique": "llm-int8"}, {"technique": "zeroquant"})
FOUR: tuple[Table, ...] = (
    {"technique": "gptq", "bits": 4, "group": 128},
    {"technique": "awq", "bits": 4, "group": 128},
    {"technique": "hqq", "bits": 4, "group": 64},
    {"technique": "smoothquant-plus"},
    {"technique": "squeezellm", "bits": 4},
    {"technique": "any-precision", "bits": 4},
    {"technique": "marlin"},
    {"technique": "zeroquant", "mlp_bits": 4},
)
FEWER: tuple[Table, ...] = (
    {"technique": "gptq", "bits": 3, "group": 64},
    {"technique": "hqq", "bits": 3, "group": 64},
    {"technique": "squeezellm", "bits": 3},
    {"technique": "any-precision", "bits": 3},
    {"technique": "vptq"},
)
MADE: tuple[Table, ...] = (*EIGHT, *FOUR, *FEWER)
SLOW = 4.0  # times round-to-nearest


COSTS: Mapping[str, float] = {
    "llm-int8": 0.6,
    "zeroquant": 0.7,
    "gptq": 79.7,
    "awq": 173.3,
    "hqq": 14.2,
    "smoothquant-plus": 400.0,
    "squeezellm": 100.0,
    "any-precision": 1.0,
    "marlin": 100.0,
    "vptq": 300.0,
}
"""Seconds of making weights, as multiples of what `rtn` takes for them: the calibration text's way through the layers,
searches and gradients included. By the CPU time of `benchmarks/making_weights.py` on SmolLM2-135M; `smoothquant-plus`,
`squeezellm`, `marlin` and `vptq` are estimates until that was run to its end. A technique that is not here counts as
`rtn`.
"""


def making(techniques: Sequence[Table]) -> float:
    """The multiple for techniques one after another on the same weights."""
    return sum(COSTS.get(str(table["technique"]), 1.0) for table in techniques)


def is_slow(techniques: Sequence[Table]) -> bool:
    """Whether the weights take much longer than rounding does."""
    return any(COSTS.get(str(table["technique"]), 1.0) > SLOW for table in techniques)
