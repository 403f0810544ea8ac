"""GemFilter against the paper's code in torch, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.prompt import oracle

from thrifty import registry
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.errors import PromptError, RecipeError
from thrifty.models.model import Model

SAMPLING = SamplingParameters(max_tokens=12, ignore_eos=True)
PAPER = {"technique": "gemfilter", "first": 0, "last": 0}


def ask(prompt: list[int], programs: list[dict[str, Any]] | None = None, **options: Any) -> Request:
    return Request(prompt=prompt, sampling=SAMPLING, programs=programs, **options)


@pytest.mark.parametrize(("layer", "capacity", "seed"), [(0, 40, 0), (1, 64, 1), (2, 17, 2)])
def test_the_tokens_are_those_of_the_papers_code_and_the_answer_is_that_of_reading_them_alone(
    layer: int, capacity: int, seed: int, plain: Model, make_engine: MakeEngine
) -> None:
    prompt = text_tokens(150, seed)
    kept = oracle.gemfilter(plain, prompt, layer, capacity)
    engine = make_engine(plain, prefix_tree=False)
    handle = engine.submit(ask(prompt, [PAPER | {"layer": layer, "capacity": capacity}]))
    wanted = engine.submit(ask([prompt[place] for place in kept])).result().token_ids
    assert handle.result().token_ids == wanted
    assert (handle.usage.prompt_tokens, handle.usage.kept_tokens) == (150, capacity)
    assert wanted != engine.submit(ask(prompt[-capacity:])).result().token_ids, "not the newest tokens"


def test_first_and_last_tokens_stay_within_the_budget() -> None:
    program = registry.build("prompt", {"technique": "gemfilter", "capacity": 50, "first": 4, "last": 8})
    scores = np.zeros(300, np.float32)
    scores[100:140] = 5.0
    kept = program.choose(scores).tolist()
    assert len(kept) == 50 and kept[:4] == [0, 1, 2, 3] and kept[-8:] == list(range(292, 300))
    assert set(range(102, 138)) <= set(kept), "38 places are left for the best"


def test_scores_are_averaged_over_five_with_zeros_beyond_the_ends() -> None:
    program = registry.build("prompt", PAPER | {"capacity": 1})
    scores = np.zeros(20, np.float32)
    scores[0], scores[10] = 3.0, 2.0
    assert program.choose(scores).tolist() == [0]
    scores[11] = 1.5
    assert program.choose(scores).tolist() == [9], "0.7 beats 0.6; of equal averages the first"


def test_a_share_counts_for_the_prompt(packed: Model, make_engine: MakeEngine) -> None:
    handle = make_engine(packed).submit(ask(text_tokens(400), [{"technique": "gemfilter", "keep": 0.25}]))
    handle.result()
    assert handle.usage.kept_tokens == 100
    handle = make_engine(packed).submit(ask(text_tokens(100), [{"technique": "gemfilter", "keep": 0.25}]))
    handle.result()
    assert handle.usage.kept_tokens == 37, "one more than the first 4 and the last 32"


@pytest.mark.parametrize("layers", [3, 8, 30])
def test_the_layer_lies_at_the_papers_depth(layers: int, make_engine: MakeEngine) -> None:
    engine = make_engine(tiny_model(packed=True, layers=layers))
    program = registry.build("prompt", {"technique": "gemfilter"})
    assert program.chosen_layer(engine.memory.cache.model) == {3: 1, 8: 4, 30: 18}[layers]


def test_of_windowed_layers_none_is_chosen(windowed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(windowed)
    program = registry.build("prompt", {"technique": "gemfilter"})
    assert program.chosen_layer(engine.memory.cache.model) == 1
    assert engine.submit(ask(text_tokens(300), [{"technique": "gemfilter", "capacity": 90}])).result().token_ids
    with pytest.raises(RecipeError, match=r"layer 2 attends to a window of 100 tokens .* use one of \(1, 3\)"):
        engine.submit(ask(text_tokens(300), [{"technique": "gemfilter", "capacity": 90, "layer": 2}]))


def test_a_layer_that_is_not_there_is_refused(packed: Model, make_engine: MakeEngine) -> None:
    with pytest.raises(RecipeError, match=r"layer = 3, but the model has 3; use one of \(0, 1, 2\)"):
        make_engine(packed).submit(ask(text_tokens(300), [{"technique": "gemfilter", "capacity": 90, "layer": 3}]))


def test_a_broken_layer_is_told(make_engine: MakeEngine) -> None:
    model = tiny_model()
    model.norms["layers.0.attention_norm"][:] = np.nan
    with pytest.raises(PromptError, match="gemfilter: 200 of 200 scores of the prompt are no numbers"):
        make_engine(model).submit(ask(text_tokens(200), [{"technique": "gemfilter", "capacity": 90}])).result()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, "kernel = 4; use an odd number"),
        ({"capacity": 0}, "capacity = 0"),
        ({"keep": 1.5}, "keep = 1.5"),
        ({"capacity": 36}, "leave nothing to choose of capacity = 36"),
        ({"layer": -1}, "layer = -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        registry.build("prompt", {"technique": "gemfilter"} | options)
