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
            "the paper stores the generator's state of every place; here noise is a function of seed, sample, place and "
            "token id, so that it needs no store and holds in any batch, chunk and draft",
            "filters (top_k, top_p, min_p) mask tokens and leave the noise of the others as it is; penalties, biases "
            "and grammars change the logits before",
            "at temperature 0 noise has no part",
            "an observed text takes a row of scores a token (4 bytes times the vocabulary), outside the ledger, and is "
            "decoded in Python; every token must be one that the options let be drawn; noise of tokens that filters "
            "left out stays fresh; the observed token leads by 1e-9 at least",
            "the paper's automatic choice of a token to replace is not here: the caller says which",
            "logarithms of NumPy and of the native library may differ in the last bit: two tokens within 1e-15 of each "
            "other may come out otherwise",
            "details of the hindsight sampler's published code: unconfirmed",
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
