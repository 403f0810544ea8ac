"""Adapters by request: one batch of several, prefixes that are never shared, bytes in the ledger."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.lora_files import lora_tensors, write_lora
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.corridor import answer, logits_of, own_rows, random_adapter, submit

from thrifty.engine.plan.native_runner import NativeRunner
from thrifty.errors import BudgetError, CheckpointError, KernelError, PromptError
from thrifty.formats.linear import DenseLinear
from thrifty.models.adapters import Adapter
from thrifty.models.huggingface.safetensors_file import TensorReader
from thrifty.models.model import Model

PROMPT = text_tokens(200, 5)
RECIPES = [
    [],
    [{"technique": "snapkv", "keep": 0.5}],
    [{"technique": "kvzip", "keep": 0.5}],
    [{"technique": "h2o", "capacity": 60}],
]
IDS = ["full", "layer-major", "rehearsed", "sums"]


def merged(model: Model, adapter: Adapter) -> Model:
    """A plain model whose weights hold the adapter: W + scale · up down."""
    linears = dict(model.linears)
    for name, (down, up) in adapter.weights.items():
        weight = linears[name].dequantize() + np.float32(adapter.scale_of(name)) * (up @ down)
        linears[name] = DenseLinear.from_weight(weight)
    return dataclasses.replace(model, linears=linears, version="merged")


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_an_adapter_is_its_merged_weights(
    make_engine: MakeEngine, plain: Model, recipe: list[dict[str, object]]
) -> None:
    adapter = random_adapter(plain, 4, 1)
    engine = make_engine(plain, adapters={"a": adapter}, cache=recipe)
    found = answer(engine, PROMPT, adapter="a")
    wanted = answer(make_engine(merged(plain, adapter), cache=recipe), PROMPT)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-3 * float(np.abs(wanted).max()))
    assert not np.allclose(answer(engine, PROMPT), found, atol=1e-2)


def test_native_and_reference_agree(make_engine: MakeEngine, packed: Model) -> None:
    adapters = {"a": random_adapter(packed, 4, 1)}
    native = answer(make_engine(packed, adapters=adapters), PROMPT, tokens=1, adapter="a")
    reference = answer(make_engine(packed, adapters=adapters, native=False), PROMPT, tokens=1, adapter="a")
    plain = answer(make_engine(packed, native=False), PROMPT, tokens=1)
    assert np.abs(native - reference).mean() < 0.2 * np.abs(native - plain).mean()


@pytest.mark.parametrize("recipe", RECIPES, ids=IDS)
def test_requests_of_one_batch_have_their_own(
    make_engine: MakeEngine, model: Model, recipe: list[dict[str, object]]
) -> None:
    """Each to the bit as alone in an engine of its own, one without an adapter among them."""
    adapters = {"a": random_adapter(model, 4, 1), "b": random_adapter(model, 7, 2, "attention")}
    names = ["a", None, "b", "a"]
    engine = make_engine(model, adapters=adapters, cache=recipe, prefill_slice_ms=0.01)
    prompts = [PROMPT[: 150 + 10 * place] for place in range(4)]
    handles = [submit(engine, prompt, adapter=name) for prompt, name in zip(prompts, names, strict=True)]
    while engine.busy:
        engine.step()
    for handle, prompt, name in zip(handles, prompts, names, strict=True):
        alone = make_engine(model, adapters=adapters, cache=recipe, prefix_tree=False)
        assert np.array_equal(logits_of(handle), answer(alone, prompt, adapter=name))


def test_tokens_alone_are_those_of_the_logits(make_engine: MakeEngine, packed: Model) -> None:
    """Beside a request that native code could go on with alone."""
    engine = make_engine(packed, adapters={"a": random_adapter(packed, 4, 1)})
    wanted = [submit(engine, PROMPT, tokens=30, adapter=name).result().token_ids for name in ("a", None)]
    quiet = dataclasses.replace(submit(engine, PROMPT, tokens=30).request, logits=False)
    handles = [engine.submit(dataclasses.replace(quiet, adapter=name, identity=str(name))) for name in ("a", None)]
    assert [handle.result().token_ids for handle in handles] == wanted
    assert wanted[0] != wanted[1]


def test_prefixes_are_never_shared_between_adapters(make_engine: MakeEngine, model: Model) -> None:
    adapters = {"a": random_adapter(model, 4, 1), "b": random_adapter(model, 4, 2)}
    engine = make_engine(model, adapters=adapters)
    alone = make_engine(model, adapters=adapters, prefix_tree=False)
    for name in ("a", "b", None):
        first = submit(engine, PROMPT, adapter=name)
        assert np.array_equal(logits_of(first), answer(alone, PROMPT, adapter=name))
        assert first.usage.cached_tokens == 0
        second = submit(engine, PROMPT, adapter=name)
        assert np.array_equal(logits_of(second), answer(alone, PROMPT, adapter=name))
        assert second.usage.cached_tokens == 192


def test_the_next_turn_hits_under_its_own_adapter_alone(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, adapters={"a": random_adapter(packed, 4, 1)})
    first = submit(engine, PROMPT, tokens=80, adapter="a")
    turn = [*PROMPT, *first.result().token_ids, *PROMPT[:10]]
    other = submit(engine, turn)
    logits_of(other)
    assert other.usage.cached_tokens == 0
    second = submit(engine, turn, adapter="a")
    found = logits_of(second)
    assert second.usage.cached_tokens == 256
    assert np.array_equal(found, answer(engine, turn, adapter="a", share_prefix=False))


def test_another_adapter_of_the_same_name_finds_no_old_prefix(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, adapters={"a": random_adapter(packed, 4, 1)})
    answer(engine, PROMPT, adapter="a")
    engine.remove_adapter("a")
    engine.add_adapter("a", random_adapter(packed, 4, 2))
    again = submit(engine, PROMPT, adapter="a")
    logits_of(again)
    assert again.usage.cached_tokens == 0


def test_adapters_take_embeddings_and_samples(make_engine: MakeEngine, model: Model) -> None:
    engine = make_engine(model, adapters={"a": random_adapter(model, 4, 1)}, prefix_tree=False)
    wanted = answer(engine, PROMPT, adapter="a")
    assert np.array_equal(answer(engine, [own_rows(engine, PROMPT[:90]), *PROMPT[90:]], adapter="a"), wanted)
    family = submit(engine, PROMPT, adapter="a", samples=3).result()
    assert len({tuple(sample.token_ids) for sample in family.samples}) == 1


def test_bytes_are_in_the_ledger_for_as_long_as_an_adapter_is_there(make_engine: MakeEngine, packed: Model) -> None:
    engine, adapter = make_engine(packed), random_adapter(packed, 4, 1)
    ledger, before = engine.memory.ledger, engine.memory.ledger.current
    engine.add_adapter("a", adapter)
    assert engine.adapters == ("a",)
    assert isinstance(engine.runner, NativeRunner)
    lowered = 4 * 3 * 4 * engine.runner.most_rows  # fp32, three linears, rank
    assert ledger.bytes_of("adapters") == adapter.nbytes + lowered == ledger.current - before
    handle = submit(engine, PROMPT, adapter="a")
    engine.step()
    with pytest.raises(PromptError, match="1 sequences use the adapter 'a'; wait for their end, or cancel them"):
        engine.remove_adapter("a")
    handle.cancel()
    engine.remove_adapter("a")
    assert ledger.bytes_of("adapters") == 0
    with pytest.raises(PromptError, match="there is no adapter 'a'"):
        submit(engine, PROMPT, adapter="a")


def test_a_budget_holds_adapters_too(make_engine: MakeEngine, packed: Model) -> None:
    adapter = random_adapter(packed, 16, 1)
    free = make_engine(packed)
    need = packed.nbytes + free.memory.workspace + free.memory.footprint((), 8, 128).peak_bytes
    assert isinstance(free.runner, NativeRunner)
    half = (adapter.nbytes + free.runner.adapter_scratch(adapter.rank)) // 2
    engine = make_engine(packed, memory=need + half)
    assert engine.memory.longest((), 8, 4096) >= 128
    with pytest.raises(BudgetError, match="adapters does not fit"):
        engine.add_adapter("big", random_adapter(packed, 256, 1))
    assert engine.adapters == ()
    engine.add_adapter("a", random_adapter(packed, 8, 1))
    longest = engine.memory.longest((), 8, 4096)
    assert longest < make_engine(packed, memory=need + half).memory.longest((), 8, 4096)
    with pytest.raises(BudgetError, match="of adapters"):
        submit(engine, PROMPT, tokens=3000, adapter="a")


def test_the_reference_takes_an_adapters_matrices_alone(make_engine: MakeEngine, plain: Model) -> None:
    adapter = random_adapter(plain, 4, 1)
    engine = make_engine(plain, adapters={"a": adapter})
    assert engine.memory.ledger.bytes_of("adapters") == adapter.nbytes


def test_a_folder_is_charged_before_it_is_read(
    make_engine: MakeEngine, packed: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = random_adapter(packed, 64, 1)
    write_lora(tmp_path, adapter, rank=64, alpha=32)
    free = make_engine(packed)
    base = packed.nbytes + free.memory.workspace + free.memory.footprint((), 1, 2).peak_bytes
    small, read = make_engine(packed, memory=base + adapter.nbytes // 2), TensorReader.read
    before, charged = small.memory.ledger.current, []

    def reading(*arguments: Any) -> Any:
        charged.append([engine.memory.ledger.bytes_of("adapters") for engine in (small, free)])
        return read(*arguments)

    monkeypatch.setattr(TensorReader, "read", reading)
    with pytest.raises(BudgetError, match="adapters does not fit"):
        small.add_adapter("big", tmp_path)
    assert not charged and small.memory.ledger.current == before and small.adapters == ()
    free.add_adapter("fits", tmp_path)
    assert charged == [[0, free.memory.ledger.bytes_of("adapters")]] * 2 * len(adapter.weights)


def test_a_folder_that_cannot_be_read_gives_its_charge_back(
    make_engine: MakeEngine, packed: Model, tmp_path: Path
) -> None:
    adapter = random_adapter(packed, 4, 1)
    tensors = lora_tensors(adapter)
    name = next(iter(tensors))
    write_lora(tmp_path, adapter, rank=4, alpha=2, tensors=tensors | {name: np.full_like(tensors[name], np.nan)})
    engine = make_engine(packed)
    before = engine.memory.ledger.current
    with pytest.raises(CheckpointError, match="not finite"):
        engine.add_adapter("a", tmp_path)
    assert engine.adapters == () and engine.memory.ledger.current == before and engine.memory.adapters == 0


def test_an_adapter_is_made_native_once(
    make_engine: MakeEngine, packed: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.engine.plan import adapter_tables as tables

    made: list[Adapter] = []
    entries = tables.adapter_entries
    monkeypatch.setattr(
        tables, "adapter_entries", lambda adapter, *parts: made.append(adapter) or entries(adapter, *parts)
    )
    adapter = random_adapter(packed, 4, 1)
    engine = make_engine(packed, adapters={"a": adapter})
    assert isinstance(engine.runner, NativeRunner)
    answer(engine, PROMPT, tokens=20, adapter="a")
    assert made == [adapter]


def test_wrong_adapters_are_refused(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, adapters={"style": random_adapter(packed, 4, 1)})
    with pytest.raises(PromptError, match="there is an adapter 'style' already"):
        engine.add_adapter("style", random_adapter(packed, 4, 1))
    with pytest.raises(PromptError, match="Did you mean 'style'"):
        submit(engine, PROMPT, adapter="stile")
    with pytest.raises(PromptError, match="adapter = 5 .* is no name"):
        submit(engine, PROMPT, adapter=5)
    with pytest.raises(CheckpointError, match="'head' takes no adapter"):
        engine.add_adapter("x", Adapter({"head": (np.zeros((1, 8), np.float32), np.zeros((8, 1), np.float32))}))
    other = tiny_model(layers=1, hidden_size=64)
    with pytest.raises(CheckpointError, match=r"down of layers.0.attention.query is float32 \[4, 64\]; expected"):
        engine.add_adapter("x", random_adapter(other, 4, 1))
    assert engine.adapters == ("style",)


def test_a_directory_is_loaded_by_name(make_engine: MakeEngine, packed: Model, tmp_path: Path) -> None:
    adapter = random_adapter(packed, 4, 1)
    write_lora(tmp_path, adapter, rank=4, alpha=2)
    engine = make_engine(packed, adapters={"file": tmp_path, "hand": adapter})
    assert np.array_equal(answer(engine, PROMPT, adapter="file"), answer(engine, PROMPT, adapter="hand"))
    assert json.loads(json.dumps(engine.describe()["adapters"])) == ["file", "hand"]
    with pytest.raises(CheckpointError, match="is no directory"):
        engine.add_adapter("none", tmp_path / "missing")
    with pytest.raises((CheckpointError, KernelError)):
        engine.add_adapter("none", tmp_path / "adapter_config.json")
