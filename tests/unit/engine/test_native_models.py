"""Models whose plans are more than dense layers, through the whole engine on the native path."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_config, tiny_model

from thrifty.arrays import Floats
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Event, Request
from thrifty.formats.linear import DenseLinear
from thrifty.kernels import dispatch
from thrifty.models.config.model_config import ExpertConfig, LayerSpec, RopeConfig, RopeScaling
from thrifty.models.model import Model

ROPE = RopeConfig(10000.0, 64)
MIXED = (LayerSpec(None, ROPE, experts=True),) * 2
LONG = RopeScaling("longrope", 1.0, 150, 1.1, short_factor=(1.0,) * 32, long_factor=(1.5,) * 32)
CONFIGS: dict[str, dict[str, Any]] = {
    "mixture": {"layers": MIXED, "experts": ExpertConfig(8, 2, 64, True)},
    "shared": {
        "layers": (LayerSpec(None, ROPE), *MIXED),
        "experts": ExpertConfig(6, 3, 96, False, 64, shared_gate=True),
        "qk_norm": "full",
    },
    "dynamic": {"layers": (LayerSpec(None, RopeConfig(10000.0, 64, RopeScaling("dynamic", 2.0, 100))),) * 2},
    "longrope": {"layers": (LayerSpec(None, RopeConfig(10000.0, 64, LONG)),) * 2},
}


@pytest.fixture(scope="module", params=CONFIGS)
def unusual(request: pytest.FixtureRequest) -> Model:
    """Packed, routers in fp32 as loaders leave them."""
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    config = dataclasses.replace(tiny_config(), **CONFIGS[request.param])
    plain, packed = tiny_model(config=config), tiny_model(packed=True, config=config)
    for name, linear in plain.linears.items():
        if name.endswith((".router", ".shared_gate")):
            assert isinstance(linear, DenseLinear)
            packed.replace(name, linear)
    return packed


def request(length: int, tokens: int = 40, **options: Any) -> Request:
    sampling = SamplingParameters(max_tokens=tokens, ignore_eos=True)
    return Request(prompt=text_tokens(length, length), sampling=sampling, logits=True, **options)


def run(engine: Engine, asked: Request) -> list[Event]:
    return list(engine.submit(asked))


def stacked(events: list[Event]) -> Floats:
    return np.stack([event.logits for event in events if event.logits is not None])


def test_alone_is_the_same_as_in_a_batch(unusual: Model, make_engine: Any) -> None:
    engine = make_engine(unusual, prefix_tree=False)
    assert engine.runner.name == "native"
    alone = run(engine, request(160))
    engine = make_engine(unusual, prefix_tree=False)
    others = [engine.submit(request(length)) for length in (5, 333)]
    for _ in range(7):
        engine.step()
    together = list(engine.submit(request(160)))
    assert np.array_equal(stacked(together), stacked(alone))
    for other in others:
        other.cancel()


def test_the_native_path_follows_the_reference(unusual: Model, make_engine: Any) -> None:
    native = run(make_engine(unusual), request(60))
    reference = run(make_engine(unusual, native=False), request(60))
    difference, size = np.abs(stacked(native)[0] - stacked(reference)[0]), np.abs(stacked(reference)[0]).mean()
    assert float(difference.mean()) < 0.12 * float(size)  # int8 activations, bf16 attention, and a routing that turns
    assert native[0].token == reference[0].token


def test_a_compressing_request_goes_layer_by_layer(unusual: Model, make_engine: Any) -> None:
    cache = [{"technique": "snapkv", "keep": 0.5}]
    alone = run(make_engine(unusual, prefix_tree=False), request(200, 20, cache=cache))
    engine = make_engine(unusual, prefix_tree=False)
    other = engine.submit(request(100))
    engine.step()
    assert np.array_equal(stacked(run(engine, request(200, 20, cache=cache))), stacked(alone))
    other.cancel()
