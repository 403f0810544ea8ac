"""SpecKV against the paper's code in torch, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.prompt import oracle

from thrifty import registry
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.errors import RecipeError
from thrifty.models.model import Model

TABLE = {"technique": "speckv", "draft": "small", "capacity": 60, "window": 8, "lookahead": 6}


def ask(prompt: list[int], programs: list[dict[str, Any]] | None = None, count: int = 12, **options: Any) -> Request:
    sampling = SamplingParameters(max_tokens=count, ignore_eos=True)
    return Request(prompt=prompt, sampling=sampling, programs=programs, **options)


def drafted(make_engine: MakeEngine, model: Model, draft: Model, **options: Any) -> Any:
    return make_engine(model, drafts=("small",), load_draft=lambda name, fits: draft, **options)


@pytest.mark.parametrize("options", [{}, {"capacity": 33, "kernel": 3, "lookahead": 1}, {"capacity": 90, "kernel": 1}])
def test_slots_and_answer_are_those_of_the_papers_code(
    options: dict[str, Any], plain: Model, make_engine: MakeEngine
) -> None:
    small, prompt = tiny_model(seed=1, layers=2), text_tokens(140, 6)
    table = {"kernel": 7} | TABLE | options
    count = 10
    answer, kept = oracle.speckv_answer(
        plain, small, prompt, table["lookahead"], count,
        capacity=table["capacity"], window=table["window"], kernel=table["kernel"],
    )  # fmt: skip
    engine = drafted(make_engine, plain, small)
    handle = engine.submit(ask(prompt, [table], count))
    while handle.usage.generated_tokens == 0:
        engine.step()
    held = engine.cache_of(handle)
    assert held is not None and held.length == held.prompt == 140, "the draft is forgotten"
    for layer, heads in enumerate(kept):
        assert [held.view(layer).positions(head).tolist() for head in range(2)] == heads
    assert handle.result().token_ids == answer
    assert (handle.usage.prompt_tokens, handle.usage.kept_tokens) == (140, table["capacity"])
    assert answer != engine.submit(ask(prompt, [], count)).result().token_ids, "something was lost"


def test_no_more_is_drafted_than_the_answer_may_have(
    packed: Model, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.engine.prompt.programs import speckv

    asked: list[int] = []
    wants = speckv.Lookahead.wants
    monkeypatch.setattr(speckv.Lookahead, "wants", lambda own, model: asked.append(own.ahead) or wants(own, model))
    engine = drafted(make_engine, packed, tiny_model(packed=True, seed=1))
    engine.submit(ask(text_tokens(200), [TABLE | {"lookahead": 50}], 3)).result()
    assert 1 <= min(asked) <= 3
    assert max(asked) == 50, "promised before that is known"


def test_at_the_end_of_the_contexts_less_is_drafted(make_engine: MakeEngine) -> None:
    model, small = (tiny_model(packed=True, seed=seed, context_length=256) for seed in (0, 1))
    engine = drafted(make_engine, model, small)
    for length in (250, 254):
        handle = engine.submit(ask(text_tokens(length), [TABLE | {"lookahead": 64}], 256 - length))
        assert len(handle.result().token_ids) == 256 - length


def test_the_full_budget_changes_no_token(packed: Model, make_engine: MakeEngine) -> None:
    engine = drafted(make_engine, packed, tiny_model(packed=True, seed=1))
    whole = engine.submit(ask(text_tokens(200), [], 40)).result().token_ids
    for capacity in (199, 200, 300):
        table = TABLE | {"capacity": capacity}
        found = engine.submit(ask(text_tokens(200), [table], 40)).result().token_ids
        assert found[: 40 if capacity >= 200 else 1] == whole[: 40 if capacity >= 200 else 1]


def test_what_stays_may_be_quantised_but_not_chosen_again(packed: Model, make_engine: MakeEngine) -> None:
    engine = drafted(make_engine, packed, tiny_model(packed=True, seed=1))
    kivi = [{"technique": "kivi", "bits": 4, "residual": 32}]
    handle = engine.submit(ask(text_tokens(300), [TABLE | {"capacity": 150}], 80, cache=kivi))
    assert len(handle.result().token_ids) == 80
    for other in ({"technique": "snapkv", "capacity": 40}, {"technique": "h2o", "capacity": 40}):
        with pytest.raises(
            RecipeError, match=f"cache technique '{other['technique']}' decides by the prompt what stays"
        ):
            engine.submit(ask(text_tokens(300), [TABLE], cache=[other]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("windowed", "layer 0 of this model attends to a window of 100"),
        ("hybrid", "layer 0 of this model is recurrent"),
    ],
)
def test_layers_without_all_slots_are_refused_by_name(
    kind: str, message: str, packed: Model, make_engine: MakeEngine, request: pytest.FixtureRequest
) -> None:
    engine = drafted(make_engine, request.getfixturevalue(kind), packed)
    with pytest.raises(RecipeError, match=f"speckv: {message}"):
        engine.submit(ask(text_tokens(300), [TABLE]))


def test_it_comes_last(packed: Model, make_engine: MakeEngine) -> None:
    engine = drafted(make_engine, packed, tiny_model(packed=True, seed=1))
    tokens = {"technique": "specpc", "draft": "small", "capacity": 120, "first_layer": 0, "window": 16}
    handle = engine.submit(ask(text_tokens(300), [tokens, TABLE]))
    assert handle.result().token_ids and handle.usage.kept_tokens == 60
    with pytest.raises(RecipeError, match="put 'speckv' last"):
        engine.submit(ask(text_tokens(300), [TABLE, tokens]))


def test_options_out_of_range_are_refused() -> None:
    for options, message in (
        ({"kernel": 2}, "kernel = 2"),
        ({"window": 60}, "leaves nothing"),
        ({"lookahead": 0}, "lookahead"),
    ):
        with pytest.raises(RecipeError, match=message):
            registry.build("prompt", TABLE | options)
