"""Counterfactual token generation: the noise of every token is kept, so that an answer can be replayed otherwise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from thrifty.card import Card
from thrifty.decoding.noise import GumbelNoise
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.strategies.autoregressive import Autoregressive
from thrifty.registry import technique


@technique(
    stage="decoding",
    card=Card(
        title="Counterfactual Token Generation in Large Language Models (with hindsight noise of Gumbel Counterfactual "
        "Generation From Language Models)",
        paper="2409.17027, 2411.07180",
        year=2024,
        mechanism="Each token is the arg-max of logits / temperature + Gumbel noise that belongs to its place and its "
        "id; the same noise behind another prompt, token, model or recipe gives the counterfactual answer.",
        claim="behaviour studied on Llama-3-8B and Ministral-8B: counterfactual answers are nearer to the factual one "
        "than answers with other noise; no claim of speed",
        limits=(
            "noise belongs to places: a token that is inserted or left out shifts the answer against it",
            (
                "deviation: the paper stores the generator's state of every place; here noise is a function of seed,"
                " sample, place and token id, so that it needs no store and holds in any batch, chunk and draft"
            ),
            "filters (top_k, top_p, min_p) mask tokens and leave the noise of the others as it is",
            "penalties, biases and grammars change the logits before noise is added",
            "at temperature 0 noise has no part",
            "an observed text takes 4 bytes times the vocabulary a token, outside the ledger, and decodes in Python",
            (
                "each token of an observed text must be one that the options let be drawn; noise of tokens that filters"
                " left out there stays fresh; the observed token leads by at least 1e-9"
            ),
            "deviation: the paper also chooses the token to replace by itself; here the caller says which",
            (
                "logarithms of NumPy and of native code may differ in the last bit: tokens within 1e-15 of each other"
                " may come out otherwise"
            ),
            "unconfirmed: the published code of the hindsight sampler was not read",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class GumbelCounterfactual(Autoregressive):
    """Plain decoding with `noise = "gumbel"` for every request; a request may also ask for that itself, whatever its
    strategy is. Replays, interventions and observed texts: `engine.counterfactual`."""

    def sampling(self, asked: SamplingParameters) -> SamplingParameters:
        """With noise of places and tokens, where the request brings none."""
        return asked if asked.noise is not None else dataclasses.replace(asked, noise=GumbelNoise())
