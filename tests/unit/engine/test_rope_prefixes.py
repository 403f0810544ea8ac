"""Prefixes under ropes that know the length: shared by all prompts whose keys turn alike, and by no others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import gguf_files
from tests.tiny import ByteTokenizer, text_tokens, tiny_config, tiny_model

from thrifty.arrays import Floats
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Event, Request
from thrifty.models.config.model_config import LayerSpec, RopeConfig, RopeScaling
from thrifty.models.gguf.source import GGUFSource
from thrifty.models.loading import assemble

BORDER = 100  # the original context of every scaling here
PLAIN = RopeConfig(10_000.0, 64)
ONES, TWOS, RAMP = (1.0,) * 32, (2.0,) * 32, tuple(np.linspace(1, 8, 32).tolist())
ROPES = {
    "longrope": RopeConfig(
        10_000.0, 64, RopeScaling("longrope", 4.0, BORDER, 1.1, short_factor=ONES, long_factor=RAMP)
    ),
    "equal": RopeConfig(10_000.0, 64, RopeScaling("longrope", 4.0, BORDER, 1.1, short_factor=TWOS, long_factor=TWOS)),
    "dynamic": RopeConfig(10_000.0, 64, RopeScaling("dynamic", 4.0, BORDER)),
    "yarn": RopeConfig(10_000.0, 64, RopeScaling("yarn", 4.0, BORDER)),
    "divisors": RopeConfig(10_000.0, 64, divisors=RAMP),
}
ALWAYS = ("equal", "yarn", "divisors")
# lengths of the first and the second prompt, and the ropes under which the first pages of one serve the other
PAIRS = [
    ((80, 96), (*ALWAYS, "longrope", "dynamic")),
    ((BORDER, 80), (*ALWAYS, "longrope", "dynamic")),
    ((BORDER, BORDER + 1), ALWAYS),
    ((BORDER + 1, BORDER), ALWAYS),
    ((110, 150), (*ALWAYS, "longrope")),
    ((150, 150), (*ALWAYS, "longrope", "dynamic")),
]


def make_request(length: int, **options: Any) -> Request:
    sampling = SamplingParameters(max_tokens=4, ignore_eos=True)
    return Request(prompt=text_tokens(64) + text_tokens(length - 64, length), sampling=sampling, logits=True, **options)


def stacked(events: list[Event]) -> Floats:
    return np.stack([event.logits for event in events if event.logits is not None])


@pytest.mark.parametrize(("name", "packed"), [*((name, True) for name in ROPES), ("longrope", False)])
def test_a_prefix_is_shared_exactly_where_keys_turn_alike(make_engine: Any, name: str, packed: bool) -> None:
    layers = (LayerSpec(None, PLAIN), LayerSpec(None, ROPES[name]))
    model = tiny_model(packed=packed, config=dataclasses.replace(tiny_config(), layers=layers))
    for (first, second), sharing in PAIRS:
        engine: Engine = make_engine(model)
        list(engine.submit(make_request(first)))
        handle = engine.submit(make_request(second))
        again = stacked(list(handle))
        alone = stacked(list(make_engine(model, prefix_tree=False).submit(make_request(second))))
        assert (handle.usage.cached_tokens >= 64) is (name in sharing), (first, second)
        assert (handle.usage.cached_tokens == 0) is (name not in sharing), (first, second)
        np.testing.assert_allclose(again, alone, rtol=0, atol=0 if engine.runner.name == "native" else 1e-3)


def test_salts_still_divide(make_engine: Any) -> None:
    layers = (LayerSpec(None, ROPES["longrope"]),) * 2
    engine: Engine = make_engine(tiny_model(config=dataclasses.replace(tiny_config(), layers=layers)))
    list(engine.submit(make_request(80, salt="a")))
    other = engine.submit(make_request(80, salt="b"))
    list(other)
    assert other.usage.cached_tokens == 0


@pytest.mark.parametrize("name", ["rope_freqs", "rope_factors"])
def test_gguf_files_with_divisors_share_their_prefixes(make_engine: Any, tmp_path: Path, name: str) -> None:
    """The layout of Llama 3.1 and later, and longrope below its border."""
    fields = {**gguf_files.LLAMA_FIELDS, "{arch}.context_length": 512, "{arch}.attention.head_count": 2}
    tensors = gguf_files.llama_tensors()
    if name == "rope_freqs":
        tensors["rope_freqs.weight"] = np.linspace(1, 8, 8)
    else:
        fields |= {"{arch}.rope.scaling.type": "longrope", "{arch}.rope.scaling.original_context_length": 256}
        tensors |= {"rope_factors_short.weight": np.linspace(1, 2, 8), "rope_factors_long.weight": np.full(8, 4.0)}
    path = gguf_files.write(tmp_path / "m.gguf", "llama", fields, tensors)
    model = assemble(GGUFSource(path), np.float32)
    model.tokenizer = ByteTokenizer()
    engine: Engine = make_engine(model)
    list(engine.submit(make_request(80)))
    longer = engine.submit(make_request(120))
    list(longer)
    assert longer.usage.cached_tokens == 64
