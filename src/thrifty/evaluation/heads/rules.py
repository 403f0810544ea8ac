"""What a head earns with one question: the rules of HeadKV-R and HeadKV-R2 (arXiv 2410.19258, §3.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from thrifty.arrays import Floats
from thrifty.evaluation.heads.items import ProbeItem

Rule = Callable[[ProbeItem, Floats], Floats]
"""(item, probabilities [group, answer tokens, slots]) → what each query head earns, [group]."""


def retrieval(item: ProbeItem, probabilities: Floats) -> Floats:
    """1/N for every answer token where the strongest look goes into the needle, to the token that is said (HeadKV-R;
    N: tokens of the answer).
    """
    top = probabilities.argmax(axis=-1)
    tokens = np.array(item.tokens)
    hit = (top >= item.needle.start) & (top < item.needle.stop) & (tokens[top] == tokens[-item.answer :])
    return hit.sum(axis=-1, dtype=np.float32) / item.answer


def reasoning(item: ProbeItem, probabilities: Floats) -> Floats:
    """a_i/N for each of the N strongest looks of every answer token that goes to the right answer (HeadKV-R2, eq. 2;
    N: tokens of the right answer, as told; the official code takes those of its sentence).
    """
    count = len(item.correct)
    strongest = np.argsort(-probabilities, axis=-1, kind="stable")[..., :count]
    inside = (strongest >= item.correct.start) & (strongest < item.correct.stop)
    return (np.take_along_axis(probabilities, strongest, axis=-1) * inside).sum(axis=(-2, -1)) / count


RULES: Mapping[str, Rule] = {"r": retrieval, "r2": reasoning}
