"""Eight requests with eight different recipes in one batch: each is answered as it is alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from tests.tiny import BOS, text_tokens, tiny_model

from thrifty import registry
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.kernels import dispatch
from thrifty.models.model import Model

Tables = Sequence[Mapping[str, Any]]

RECIPES: dict[str, Tables] = {
    "full": [],
    "kivi": [{"technique": "kivi", "bits": 2, "residual": 64}],
    "streaming": [{"technique": "streaming", "window": 64}],
    "snapkv": [{"technique": "snapkv", "keep": 0.4}],
    "ada-kv": [{"technique": "ada-kv", "keep": 0.4}],
    "h2o": [{"technique": "h2o", "keep": 0.3}],
    "fastgen": [{"technique": "fastgen", "recovery": 0.8}],
    "fastgen + kivi": [
        {"technique": "fastgen", "recovery": 0.9, "profile": 64},
        {"technique": "kivi", "bits": 4, "residual": 64},
    ],
}
STEPS = {True: 150, False: 70}  # two periods of a policy natively, one on the slower reference path
LENGTHS = [130, 257, 190, 300, 222, 171, 280, 144]


def requests(steps: int) -> list[Request]:
    """Every recipe on a prompt of its own; every second one sampled, with a seed."""
    return [
        Request(
            prompt=[BOS, *text_tokens(length, length)],
            sampling=SamplingParameters(
                max_tokens=steps, ignore_eos=True, temperature=0.9 if place % 2 else 0.0, seed=place
            ),
            cache=recipe,
        )
        for place, (length, recipe) in enumerate(zip(LENGTHS, RECIPES.values(), strict=True))
    ]


@pytest.mark.long
@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
def test_eight_recipes_in_one_batch_answer_as_alone(
    packed: Model, plain: Model, make_engine: Any, native: bool
) -> None:
    if native and dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    engine: Engine = make_engine(packed if native else plain, native=native, prefix_tree=False)
    alone = [engine.submit(request).result().token_ids for request in requests(STEPS[native])]
    handles = [engine.submit(request) for request in requests(STEPS[native])]
    while any(handle.usage.generated_tokens == 0 for handle in handles):
        engine.step()
    assert not any(handle.finished for handle in handles), "all eight decode together"
    for name, handle, expected in zip(RECIPES, handles, alone, strict=True):
        assert handle.result().token_ids == expected, name
        assert len(expected) == STEPS[native] and len(set(expected)) > 4, "an answer that could differ"


def test_the_recipes_name_techniques_that_act(packed: Model, make_engine: Any) -> None:
    engine: Engine = make_engine(packed, prefix_tree=False)
    for (name, recipe), request in zip(RECIPES.items(), requests(100), strict=True):
        handle = engine.submit(request)
        while handle.usage.generated_tokens < 70:
            engine.step()
        held = engine.cache_of(handle)
        assert held is not None
        slots = sum(held.slots(layer, head) for layer in range(3) for head in range(2)) / 6
        codes = any(one.quantised for layer in range(3) for one in held.view(layer).stretches())
        compressed = slots < held.length or codes
        assert compressed == (name != "full"), f"{name} keeps {slots} of {held.length}"
        assert all(table["technique"] in registry.names("cache") for table in recipe)
        handle.cancel()


def test_heads_of_which_less_than_the_window_is_left_keep_what_they_have() -> None:
    """Here `fastgen` leaves a head fewer slots than the window that `ada-kv` looks through."""
    recipe = [
        {"technique": "snapkv", "keep": 0.5},
        {"technique": "fastgen", "recovery": 0.5, "profile": 64},
        {"technique": "ada-kv", "capacity": 40, "window": 16},
    ]
    engine = Engine(tiny_model(packed=True, layers=3), threads=1)
    sampling = SamplingParameters(max_tokens=8, ignore_eos=True)
    handle = engine.submit(Request(prompt=text_tokens(174, 2), sampling=sampling, cache=recipe))
    assert len(handle.result().token_ids) == 8
    engine.close()
