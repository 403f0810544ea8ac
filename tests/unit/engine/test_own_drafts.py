"""Drafts by layers of the model itself, and by its adapters: no weights twice, and the answers of plain decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.corridor import random_adapter

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError, RecipeError
from thrifty.models.layer_subset import adapter_of_layers, with_layers
from thrifty.models.model import Model


def asked(draft: str | None = None, number: int = 0, **options: Any) -> Request:
    decoding = None if draft is None else [{"technique": "speculative", "draft": draft, "length": 3}]
    adapter = options.pop("adapter", None)
    sampling = SamplingParameters(**({"max_tokens": 50, "ignore_eos": True} | options))
    return Request(prompt=text_tokens(100, number), sampling=sampling, decoding=decoding, adapter=adapter)


def test_a_subset_shares_every_array(packed: Model) -> None:
    subset = with_layers(packed, (0, 2))
    assert len(subset.config.layers) == 2 and subset.version != packed.version
    for name, linear in subset.linears.items():
        other = packed.linears[name.replace("layers.1.", "layers.2.")]
        assert linear is other
    for name, norm in subset.norms.items():
        assert np.shares_memory(norm, packed.norms[name.replace("layers.1.", "layers.2.")])
    with pytest.raises(RecipeError, match="the model has no layer 3; its 3 layers are 0 to 2"):
        with_layers(packed, (1, 3))


def test_its_ledger_holds_workspace_and_cache_alone(packed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(packed, drafts=("layers:0-1",))
    plain = engine.submit(asked()).result().token_ids
    handle = engine.submit(asked("layers:0-1"))
    model = engine.memory.drafts._models["layers:0-1"]
    assert engine.memory.ledger.bytes_of("draft") == model.nbytes == model._runner.workspace
    assert handle.result().token_ids == plain
    assert engine.memory.ledger.bytes_of("draft") == model.nbytes


def test_all_layers_draft_what_the_model_says(plain: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(plain, drafts=("layers:0-2",))
    handle, steps = engine.submit(asked("layers:0-2", max_tokens=41)), 0
    while not handle.finished:
        engine.step()
        steps += 1
    assert steps <= 12 and handle.result().token_ids == engine.submit(asked(max_tokens=41)).result().token_ids


@pytest.mark.parametrize("draft", ["adapter:a", "adapter:a layers:0-1"])
def test_an_adapter_drafts_for_its_model(packed: Model, make_engine: MakeEngine, draft: str) -> None:
    """For requests without it, and for those with it, whose drafts are all right where all layers run."""
    engine = make_engine(packed, adapters={"a": random_adapter(packed, 4, 1)}, drafts=(draft,))
    for options in ({}, {"adapter": "a"}):
        plain = engine.submit(asked(**options)).result().token_ids
        handle, steps = engine.submit(asked(draft, **options)), 0
        while not handle.finished:
            engine.step()
            steps += 1
        assert handle.result().token_ids == plain
    assert steps < 20 or draft != "adapter:a"


def test_an_adapter_that_drafts_stays_until_nobody_drafts_with_it(packed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(packed, adapters={"a": random_adapter(packed, 4, 1)}, drafts=("adapter:a layers:0-1",))
    handle = engine.submit(asked("adapter:a layers:0-1"))
    with pytest.raises(PromptError, match="1 sequences use the adapter 'a'"):
        engine.remove_adapter("a")
    handle.result()
    assert engine.memory.ledger.bytes_of("draft") > 0
    engine.remove_adapter("a")
    assert engine.memory.ledger.bytes_of("draft") == 0 and engine.memory.drafts.nbytes == 0
    with pytest.raises(PromptError, match="there is no adapter 'a'"):
        engine.submit(asked("adapter:a layers:0-1"))


def test_what_cannot_draft_is_refused(packed: Model, make_engine: MakeEngine) -> None:
    adapter = random_adapter(packed, 4, 1, "layers.0.")
    engine = make_engine(packed, adapters={"a": adapter}, drafts=("layers:0-7", "layers:2-1", "adapter:a layers:1"))
    for draft, message in [
        ("layers:0-7", "the model has no layer 3"),
        ("layers:2-1", "no range of layers"),
        ("adapter:a layers:1", "the adapter adds nothing to the layers 1"),
        ("layers:0", "is no model that requests of this engine may draft with"),
    ]:
        with pytest.raises(RecipeError, match=message):
            engine.submit(asked(draft))
    assert set(adapter_of_layers(adapter, (0, 2)).weights) == set(adapter.weights)


def lengths(engine: Engine, request: Request) -> list[int]:
    """Tokens of each step's draft."""
    found: list[int] = []
    handle = engine.submit(request)
    decode = engine.runner.decode

    def counted(batch: Any) -> Any:
        found.append(len(batch[0].tokens) - 1)
        return decode(batch)

    engine.runner.decode = counted  # type: ignore[method-assign]
    try:
        handle.result()
    finally:
        engine.runner.decode = decode  # type: ignore[method-assign]
    return found


def test_an_adaptive_draft_grows_with_what_is_taken_and_stops_where_nothing_is(
    plain: Model, packed: Model, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps are said to take: the target 10 and 1 a row, the draft 2."""
    other = tiny_model(seed=7)
    engine = make_engine(
        plain, drafts=("same", "other"), load_draft=lambda name, fits: {"same": plain, "other": other}[name]
    )

    def seconds(costs: Any, rows: float) -> float:
        return 10 + rows if costs is engine.memory.drafts.costs else 2.0

    monkeypatch.setattr("thrifty.decoding.step_costs.StepCosts.seconds", seconds)
    tables = {name: [{"technique": "speculative", "draft": name}] for name in ("same", "other")}
    sampling = SamplingParameters(max_tokens=120, ignore_eos=True)
    wanted = engine.submit(Request(prompt=text_tokens(60), sampling=sampling)).result().token_ids
    for name, drafting in tables.items():
        request = Request(prompt=text_tokens(60), sampling=sampling, decoding=drafting)
        found = lengths(engine, request)
        assert engine.submit(request).result().token_ids == wanted
        if name == "same":
            assert max(found) == 8 and found[-3] == 8
        else:
            assert found[-12:].count(0) >= 10 and 1 in found[20:], "now and then one token is tried"
    seeded = Request(
        prompt=text_tokens(60),
        sampling=SamplingParameters(max_tokens=40, ignore_eos=True, temperature=1.0, seed=1),
        decoding=tables["same"],
    )
    assert set(lengths(engine, seeded)[:-4]) == {4}, "a seed gives the same answer whatever was measured"
