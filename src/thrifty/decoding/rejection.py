"""Speculative sampling: drafted tokens are taken or replaced so that the output has the target's distribution.

Leviathan et al. 2022 (arXiv 2211.17192), Algorithm 1; Chen et al. 2023 (arXiv 2302.01318), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thrifty.decoding.draft import Accepted, Draft
from thrifty.decoding.drawing import Weights, inverse
from thrifty.decoding.sampling import Choice, Sampler
from thrifty.decoding.scores import Scores
from thrifty.decoding.strategy import follow

DRAFT, ACCEPT, REPLACE = 1, 2, 3
"""What a sampler's numbers are for: drawing a draft's token, taking it, drawing another instead of it."""


def judge(sampler: Sampler, draft: Draft, proposed: Sequence[Weights], scores: Scores) -> Accepted:
    """What is taken of a line. proposed: for each token at least the distribution q [vocabulary] that it was drawn
    from, by the number DRAFT. scores: row i is for the draft's token i.

    Token x is taken with probability min(1, p(x) / q(x)), p the target's distribution after penalties, temperature and
    truncation; the first that is not is replaced by one of norm(max(0, p − q)). Behind a draft that is taken whole
    comes the sampler's own choice. Where noise decides each token (`SamplingParameters.noise`), that is the only rule.
    """
    if sampler.parameters.noise is not None:
        return follow(sampler, draft, scores)
    choices: list[Choice] = []
    for place, token in enumerate(draft.tokens):
        here, logits, drawn_from = sampler.following(draft.tokens[:place]), scores.logits(place), proposed[place]
        wanted = here.probabilities(logits)
        if here.number(ACCEPT) * drawn_from[token] >= wanted[token]:
            choices.append(here.given(inverse(residual(wanted, drawn_from), here.number(REPLACE)), logits))
            return Accepted(tuple(choices), tuple(range(place)))
        choices.append(here.given(token, logits))
    behind = sampler.following(draft.tokens).choose(scores.logits(len(draft.tokens)))
    return Accepted((*choices, behind), tuple(range(len(draft.tokens))))


def residual(wanted: Weights, proposed: Weights) -> Weights:
    """max(0, p − q) [vocabulary], not normalised; p where that is 0 everywhere (p = q but for rounding)."""
    left = np.maximum(wanted - proposed, 0.0)
    return left if left.any() else wanted
