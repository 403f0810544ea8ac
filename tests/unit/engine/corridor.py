"""Requests that are more than token ids: their pieces, and what an engine makes of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from thrifty.arrays import Floats
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.media import Embeddings
from thrifty.engine.request import Handle, Request
from thrifty.models.adapters import Adapter, adaptable
from thrifty.models.model import Model

TOKENS = 6


def submit(engine: Engine, prompt: Sequence[Any], tokens: int = TOKENS, **options: Any) -> Handle:
    """A greedy request that keeps its logits."""
    sampling = SamplingParameters.of(greedy=True, max_tokens=tokens, ignore_eos=True)
    return engine.submit(Request(prompt=prompt, sampling=sampling, logits=True, **options))


def logits_of(handle: Handle) -> Floats:
    """fp32 [tokens, vocabulary] of a request's events."""
    return np.stack([event.logits for event in handle if event.logits is not None])


def answer(engine: Engine, prompt: Sequence[Any], tokens: int = TOKENS, **options: Any) -> Floats:
    """The logits of a greedy answer."""
    return logits_of(submit(engine, prompt, tokens, **options))


def rows_of(model: Model, tokens: Sequence[int]) -> Floats:
    """The model's own first hidden states of tokens, fp32 [tokens, hidden]."""
    embedding = model.linears["embedding"].rows(np.array(tokens, np.int64))
    return np.ascontiguousarray(embedding * np.float32(model.config.embedding_scale), np.float32)


def own_rows(engine: Engine, tokens: Sequence[int], key: Hashable = "own", **more: Any) -> Embeddings:
    """A piece that holds what the engine makes of token ids."""
    return Embeddings(engine.runner.embed(list(tokens)).copy(), key, **more)


def random_adapter(model: Model, rank: int, seed: int, part: str = "") -> Adapter:
    """Of all linears that take one, or of those whose name contains `part`; strong enough to change answers."""
    random, weights = np.random.default_rng(seed), {}
    for name, (rows, columns) in adaptable(model.config).items():
        if part in name:
            down = random.standard_normal((rank, columns), np.float32) * np.float32(columns**-0.5)
            weights[name] = down, random.standard_normal((rows, rank), np.float32) * np.float32(0.5)
    return Adapter(weights, scale=0.5)
