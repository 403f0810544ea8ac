"""SpecPC against the paper's code in torch, and what it refuses."""

from __future__ import annotations

from typing import Any

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
TABLE = {"technique": "specpc", "draft": "small", "first_layer": 0, "window": 16, "kernel": 8, "neighbours": 8}


def ask(prompt: list[int], programs: list[dict[str, Any]] | None = None) -> Request:
    return Request(prompt=prompt, sampling=SAMPLING, programs=programs)


@pytest.mark.parametrize(
    "options",
    [
        {"capacity": 60},
        {"capacity": 31, "kernel": 7, "neighbours": 3},
        {"capacity": 50, "first_layer": 1, "neighbours": 0},
        {"capacity": 100, "window": 1, "kernel": 1, "neighbours": 1},
    ],
)
def test_the_tokens_are_those_of_the_papers_code_and_the_answer_is_that_of_reading_them_alone(
    options: dict[str, Any], plain: Model, make_engine: MakeEngine
) -> None:
    small, prompt = tiny_model(seed=1, layers=2), text_tokens(170, 4)
    table = TABLE | options
    kept = oracle.specpc(
        small, prompt, table["capacity"], table["window"], table["kernel"], table["neighbours"], table["first_layer"]
    )
    engine = make_engine(plain, prefix_tree=False, drafts=("small",), load_draft=lambda name, fits: small)
    handle = engine.submit(ask(prompt, [table]))
    wanted = engine.submit(ask([prompt[place] for place in kept])).result().token_ids
    assert handle.result().token_ids == wanted
    assert (handle.usage.prompt_tokens, handle.usage.kept_tokens) == (170, len(kept)) and len(kept) == options[
        "capacity"
    ]


def drafted(make_engine: MakeEngine, model: Model, draft: Model, **options: Any) -> Any:
    return make_engine(model, drafts=("small",), load_draft=lambda name, fits: draft, **options)


def test_a_draft_with_other_tokens_is_refused(packed: Model, make_engine: MakeEngine) -> None:
    engine = drafted(make_engine, packed, tiny_model(packed=True, vocabulary_size=320))
    with pytest.raises(
        RecipeError, match=r"specpc: draft = 'small' has a vocabulary of 320 tokens, the model one of 272"
    ):
        engine.submit(ask(text_tokens(300), [TABLE | {"capacity": 100}]))


def test_a_prompt_beyond_the_drafts_context_is_refused(packed: Model, make_engine: MakeEngine) -> None:
    engine = drafted(make_engine, packed, tiny_model(packed=True, context_length=256))
    with pytest.raises(PromptError, match=r"has 256 tokens, and the draft model 'small' holds 256 .* use at most 255"):
        engine.submit(ask(text_tokens(256), [TABLE | {"capacity": 100}]))
    assert engine.submit(ask(text_tokens(255), [TABLE | {"capacity": 100}])).result().token_ids
    assert engine.submit(ask(text_tokens(90), [TABLE | {"capacity": 100}])).result().token_ids, "read as it is"


def test_a_draft_without_a_layer_that_counts_is_refused(packed: Model, make_engine: MakeEngine) -> None:
    engine = drafted(make_engine, packed, tiny_model(packed=True))
    with pytest.raises(RecipeError, match=r"no layer from 8 on that attends to everything; it has 3 layers"):
        engine.submit(ask(text_tokens(300), [TABLE | {"capacity": 100, "first_layer": 8}]))


def test_windowed_layers_of_a_draft_do_not_count(packed: Model, windowed: Model, make_engine: MakeEngine) -> None:
    engine = drafted(make_engine, packed, windowed)
    every = engine.submit(ask(text_tokens(300), [TABLE | {"capacity": 100}])).result().token_ids
    # Layer 0 attends to a window: to leave it out changes nothing.
    assert (
        engine.submit(ask(text_tokens(300), [TABLE | {"capacity": 100, "first_layer": 1}])).result().token_ids == every
    )
    with pytest.raises(RecipeError, match="no layer from 4 on"):
        engine.submit(ask(text_tokens(300), [TABLE | {"capacity": 100, "first_layer": 4}]))


def test_a_recurrent_draft_is_refused_by_name(packed: Model, hybrid: Model, make_engine: MakeEngine) -> None:
    with pytest.raises(RecipeError, match="the draft model 'small' has recurrent layers"):
        drafted(make_engine, packed, hybrid).submit(ask(text_tokens(300), [TABLE | {"capacity": 100}]))


def test_a_recurrent_model_reads_what_is_left(hybrid: Model, packed: Model, make_engine: MakeEngine) -> None:
    """Its prompt is shorter, and else like any other."""
    engine = drafted(make_engine, hybrid, packed)
    handle = engine.submit(ask(text_tokens(300), [TABLE | {"capacity": 100}]))
    assert len(handle.result().token_ids) == 12 and handle.usage.kept_tokens == 100


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="window = 64 leaves nothing to choose of capacity = 64"):
        registry.build("prompt", {"technique": "specpc", "draft": "small", "capacity": 64})
    with pytest.raises(RecipeError, match="option 'kernel'"):
        registry.build("prompt", {"technique": "specpc", "draft": "small", "kernel": 0})
