"""Final hidden states of a text: what the head reads, whatever the chunks are and whoever else runs."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_config, tiny_model
from tests.unit.engine.conftest import MakeEngine

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.prefill.hidden import final_norm
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, PromptError, QueueFullError
from thrifty.models.model import Model


def test_the_head_makes_the_engines_logits_of_them(make_engine: MakeEngine, model: Model) -> None:
    engine = make_engine(model)
    tokens = text_tokens(300)
    hidden = np.concatenate(list(engine.hidden_states(tokens)))
    assert hidden.shape == (300, model.config.hidden_size) and hidden.dtype == np.float32
    request = Request(prompt=tokens[:200], forced=tokens[200:300], logits=True)
    logits = np.stack([event.logits for event in engine.submit(request) if event.logits is not None])
    expected = hidden[199:299] @ model.head.dequantize().T
    assert np.abs(logits - expected).max() < 0.05 * np.abs(logits).max()


def test_chunks_do_not_change_a_bit(make_engine: MakeEngine, packed: Model, windowed: Model) -> None:
    tokens = text_tokens(700)
    for own in (packed, windowed):
        parts = [np.concatenate(list(make_engine(own, chunk=chunk).hidden_states(tokens))) for chunk in (128, 512)]
        assert np.array_equal(parts[0], parts[1])


def test_others_go_on_between_the_chunks_and_nothing_changes(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, chunk=128)
    tokens = text_tokens(600)
    alone = np.concatenate(list(engine.hidden_states(tokens)))
    request = Request(prompt=text_tokens(50, 1), sampling=SamplingParameters(max_tokens=40, ignore_eos=True))
    answer = engine.submit(request).result().token_ids
    handle = engine.submit(request)
    parts = []
    for part in engine.hidden_states(tokens):
        parts.append(part)
        for _ in range(3):
            engine.step()
    assert np.array_equal(np.concatenate(parts), alone)
    assert handle.result().token_ids == answer


def test_what_it_holds_stands_in_the_ledger_and_goes_at_the_end(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, memory="16MB", chunk=128)
    chunks = engine.hidden_states(text_tokens(1000))
    before = engine.usage().current
    next(chunks)
    next(chunks)
    assert engine.usage().bytes_of("cache") > 0 and engine.usage().current > before
    chunks.close()  # type: ignore[attr-defined]
    assert engine.usage().bytes_of("cache") == 0


def test_a_text_that_does_not_fit_is_refused_for_good_or_for_now(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed, memory="6MB", chunk=128)
    longest = engine.memory.longest((), 4096, 4096)
    assert 300 < longest < 4000
    with pytest.raises(BudgetError, match="a text to embed does not fit"):
        engine.hidden_states(text_tokens(4000))
    held = engine.hidden_states(text_tokens(longest - 100))
    next(held)
    with pytest.raises(QueueFullError, match="other requests hold"):
        next(engine.hidden_states(text_tokens(longest - 100)))
    held.close()  # type: ignore[attr-defined]
    for tokens in ([], [5000], [-1], text_tokens(5000)):
        with pytest.raises(PromptError):
            engine.hidden_states(tokens)


def test_a_failed_chunk_leaves_nothing_behind(
    make_engine: MakeEngine, packed: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(packed, chunk=128)

    def fails(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(engine.runner, "run_layers", fails)
    with pytest.raises(RuntimeError):
        list(engine.hidden_states(text_tokens(300)))
    assert engine.usage().bytes_of("cache") == 0


def test_the_mean_is_that_of_all_rows(packed: Model, make_engine: MakeEngine) -> None:
    tokens = text_tokens(500)
    expected = np.concatenate(list(make_engine(packed).hidden_states(tokens))).mean(axis=0)

    async def mean() -> np.ndarray:
        async with AsyncEngine(make_engine(packed)) as running:
            return await running.mean_hidden(tokens)

    assert np.allclose(asyncio.run(mean()), expected, atol=1e-5)


def test_a_layer_norm_centres_and_adds_its_bias() -> None:
    model = tiny_model(config=tiny_config(norm="layer"))
    model.norms["final_norm"] = np.ones(128, np.float32)
    model.norms["final_norm.bias"] = np.full(128, 0.5, np.float32)
    rows = np.random.default_rng(0).normal(3, 2, (4, 128)).astype(np.float32)
    normed = final_norm(model, rows) - 0.5
    assert np.allclose(normed.mean(axis=1), 0, atol=1e-5) and np.allclose(normed.std(axis=1), 1, atol=1e-3)
