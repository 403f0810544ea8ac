"""The engine on the embedded models: sensible answers, measured memory, real stop conditions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from thrifty import Request, Thrifty
from thrifty.errors import BudgetError
from thrifty.evaluation.text import held_out
from thrifty.kernels import dispatch

pytestmark = pytest.mark.model

QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module")
def smollm(smollm2: Path) -> Iterator[Thrifty]:
    with Thrifty(smollm2) as opened:
        yield opened


def test_the_native_plan_takes_both_embedded_models(smollm: Thrifty, gemma3: Path) -> None:
    if dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    assert smollm.engine.runner.name == "native", smollm.engine.runner.reason
    with Thrifty(gemma3) as gemma:
        assert gemma.engine.runner.name == "native", gemma.engine.runner.reason
        assert "France" in gemma.generate("The capital of France is", max_tokens=16).text


def test_a_chat_answer_is_sensible_and_ends_by_itself(smollm: Thrifty) -> None:
    result = smollm.chat(QUESTION, max_tokens=64)
    assert "Paris" in result.text
    assert result.finish_reason == "stop"
    assert "<|im_end|>" not in result.text
    assert "".join(smollm.chat(QUESTION, stream=True, max_tokens=64)) == result.text


@pytest.mark.parametrize(
    ("tables", "agreement", "size"),
    [
        ([{"technique": "kivi", "bits": 4}], 0.85, 0.6),
        ([{"technique": "kivi", "bits": 2}], 0.5, 0.5),
        ([{"technique": "snapkv", "keep": 0.5}, {"technique": "kivi", "bits": 4}], 0.5, 0.5),
    ],
    ids=["kivi-4", "kivi-2", "snapkv + kivi-4"],
)
def test_compressed_caches_mostly_agree_and_hold_less(
    smollm: Thrifty, tables: list[dict[str, object]], agreement: float, size: float
) -> None:
    """Top-1 agreement with the full cache on 64 forced tokens after 1024; bounds far below what was measured."""
    tokens = held_out(smollm.model.tokenizer, 1024 + 64)
    best, sizes = [], []
    for cache in ([], tables):
        handle = smollm.engine.submit(Request(prompt=tokens[:1024], forced=tokens[1024:], logits=True, cache=cache))
        events = []
        for event in handle:
            events.append(event)
            held = smollm.engine.cache_of(handle)
            if len(events) == 2:
                assert held is not None
                sizes.append(held.nbytes)
        best.append([int(event.logits.argmax()) for event in events if event.logits is not None])
    same = sum(one == other for one, other in zip(*best, strict=True)) / 64
    assert same >= agreement
    assert sizes[1] < size * sizes[0]


def test_a_budget_bounds_the_ledger_and_a_request_beyond_it_is_refused(smollm2: Path) -> None:
    with Thrifty(smollm2, memory="135MB") as opened:
        assert opened.generate("Once upon a time", max_tokens=32, ignore_eos=True).finish_reason == "length"
        assert opened.engine.memory.ledger.peak <= 135_000_000
        with pytest.raises(BudgetError, match=r"at most \d+ tokens") as caught:
            opened.generate("word " * 4000, max_tokens=100)
        tokens = int(str(caught.value).split("at most ")[1].split(" tokens")[0])
        assert 100 < tokens < 4000


def test_turns_of_a_conversation_share_their_beginning(smollm: Thrifty) -> None:
    messages = [{"role": "user", "content": "Tell me a story about a lighthouse. " * 20}]
    first = smollm.chat(messages, max_tokens=40)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Go on."}]
    second = smollm.chat(messages, max_tokens=8)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 64
