"""Requests whose logits are compared: alone, in a batch, in any chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
from tests.tiny import text_tokens

from thrifty.arrays import Floats
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine, Handle
from thrifty.engine.request import Request
from thrifty.models.model import Model


def ask(length: int, steps: int = 40, seed: int = 0, **options: Any) -> Request:
    """A prompt of so many tokens, and an answer of so many with their logits."""
    sampling = SamplingParameters(max_tokens=steps, ignore_eos=True)
    return Request(prompt=text_tokens(length, seed), sampling=sampling, logits=True, **options)


def logits_of(handle: Handle) -> Floats:
    """[tokens, vocabulary]."""
    return np.stack([event.logits for event in handle if event.logits is not None])


def alone(model: Model, request: Request, **options: Any) -> Floats:
    """The logits of a request that has an engine to itself."""
    engine = Engine(model, prefix_tree=False, **options)
    try:
        return logits_of(engine.submit(request))
    finally:
        engine.close()


def check_batches_and_chunks(model: Model, make_engine: Any) -> None:
    """Assert that requests have the same bits alone, beside each other, and in chunks of any length."""
    lengths = (300, 37, 129)
    expected = [alone(model, ask(length, seed=length)) for length in lengths]
    for chunk in (128, 256):
        engine = make_engine(model, chunk=chunk, prefix_tree=False)
        handles = [engine.submit(ask(length, seed=length)) for length in lengths]
        for handle, wanted in zip(handles, expected, strict=True):
            assert np.array_equal(logits_of(handle), wanted)
