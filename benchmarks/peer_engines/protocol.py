"""What every engine under comparison answers. Requests and replies are JSON lines; see `worker`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FIRST_PROMPT = tuple(range(300, 316))  # 16 tokens, for the time to the first token


@dataclass(frozen=True)
class Specification:
    """What a worker loads. path: GGUF file. options: the variant's own."""

    path: str
    threads: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """One measured run. prefill_s: until every sequence has its first token, None where an earlier prefill was
    used again. decode_s: of `decode_tokens` tokens (of all sequences together) after the first ones.
    bytes_per_token: weights and cache that a decode step reads, where the engine can tell.
    """

    prefill_tokens: int
    decode_tokens: int
    decode_s: float
    prefill_s: float | None = None
    bytes_per_token: int | None = None


class PeerEngine(ABC):
    """A loaded model. Greedy decoding, no stop tokens, no prompt that was seen before."""

    vocabulary: int

    @abstractmethod
    def __init__(self, specification: Specification) -> None:
        """Load, ready to answer."""

    @abstractmethod
    def first_token(self, prompt: list[int]) -> int:
        """The token after a short prompt."""

    @abstractmethod
    def measure(self, prompts: list[list[int]], steps: int, reuse: bool) -> Timing:
        """Prefill prompts of one length together, then decode `steps` further tokens of each.

        reuse: the last prompts' caches may stand in for the prefill where the engine still holds them, cut back
        to the prompt: for figures that need the decode rate only.
        """

    def logits(self, tokens: list[int], scored: int) -> np.ndarray:
        """fp32 [scored, vocabulary]: the predictions of the last `scored` tokens, fed after those before them."""
        raise NotImplementedError(f"{type(self).__name__} gives no logits")


def divergence(reference: np.ndarray, found: np.ndarray) -> float:
    """Mean KL(reference ‖ found) in nats of rows of logits [tokens, vocabulary]; raises ValueError where it is
    not a number.
    """
    import numpy as np

    total = 0.0
    for reference_row, row in zip(reference, found, strict=True):
        p, q = _log_softmax(reference_row), _log_softmax(row[: len(reference_row)])
        total += float((np.exp(p) * (p - q)).sum())
    if not np.isfinite(total):
        raise ValueError(f"the divergence over {len(reference)} tokens is {total}: a prediction is not a number")
    return max(0.0, total / len(reference))  # rounding may leave a little less than nothing


def _log_softmax(row: np.ndarray) -> np.ndarray:
    import numpy as np

    shifted = row.astype(np.float64) - float(row.max())
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return normalised
