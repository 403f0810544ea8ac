"""Answers in a grammar: valid, whatever runs beside them, and nobody else's bits change."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from dataclasses import dataclass
from typing import Any

import pytest
from tests.json_schemas import fits, random_schema
from tests.tiny import EOS, text_tokens
from tests.unit.engine.conftest import MakeEngine

from thrifty.decoding.grammar import Grammar
from thrifty.decoding.grammars import KEPT, Grammars, compiled_bytes
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.asynchronous import AsyncEngine
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request, Result
from thrifty.errors import BudgetError, PromptError
from thrifty.models.model import Model

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bo"]}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def make(grammar: Grammar | None, seed: int | None = None, **options: Any) -> Request:
    sampling: dict[str, Any] = {"max_tokens": 600, "grammar": grammar, **options}
    if seed is not None:
        sampling |= {"temperature": 1.0, "seed": seed}
    samples = sampling.pop("samples", 1)
    return Request(prompt=text_tokens(90, 5), sampling=SamplingParameters(**sampling), samples=samples)


def answer(engine: Engine, request: Request) -> Result:
    return engine.submit(request).result()


def test_answers_fit_fifty_random_schemas(packed: Model, make_engine: MakeEngine) -> None:
    engine, source = make_engine(packed), random.Random(1)
    schemas = [random_schema(source, 3) for _ in range(50)]
    handles = [engine.submit(make(Grammar.json_schema(own), seed)) for seed, own in enumerate(schemas)]
    for schema, handle in zip(schemas, handles, strict=True):
        result = handle.result()
        assert result.finish_reason == "stop", (schema, result.text)
        assert fits(json.loads(result.text), schema), (schema, result.text)


def test_the_other_kinds_of_grammar(model: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(model)
    texts = ["red", 'a "b"\n', "réd"]
    for seed in (None, 3, 4):
        assert re.fullmatch(
            r"[0-9]{3}-[a-f]{2,4}", answer(engine, make(Grammar.regex("[0-9]{3}-[a-f]{2,4}"), seed)).text
        )
        assert answer(engine, make(Grammar.choice(texts), seed)).text in texts
        lark = Grammar.lark('start: "<" %json {"type": "boolean"} ">"')
        assert answer(engine, make(lark, seed)).text in ("<true>", "<false>")
        assert answer(engine, make(Grammar.json_object(), seed, max_tokens=40)).text.lstrip().startswith("{")


def test_end_tokens_come_where_the_grammar_accepts_and_nowhere_else(packed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(packed)
    wanted = make(Grammar.regex("a{3,5}"), logit_bias={EOS: 1000.0})
    result = answer(engine, wanted)
    assert (result.text, result.token_ids[-1], result.finish_reason) == ("aaa", EOS, "stop")
    longest = make(Grammar.regex("a{3,5}"), logit_bias={97: 1000.0})
    assert answer(engine, longest).text == "aaaaa"


def test_an_answer_is_the_same_alone_and_in_a_batch_and_others_keep_their_bits(
    model: Model, make_engine: MakeEngine
) -> None:
    requests = [
        make(Grammar.json_schema(PERSON), 1),
        make(None, 2, max_tokens=60),
        make(Grammar.regex("[a-z]{20,30}"), None, repetition_penalty=1.3, frequency_penalty=0.5),
        make(None, max_tokens=60),
    ]
    alone = [answer(make_engine(model), request).token_ids for request in requests]
    engine = make_engine(model)
    handles = [engine.submit(request) for request in requests]
    assert [handle.result().token_ids for handle in handles] == alone


def test_samples_each_have_a_state_of_their_own(packed: Model, make_engine: MakeEngine) -> None:
    result = answer(make_engine(packed), make(Grammar.json_schema(PERSON), 7, samples=6))
    assert all(fits(json.loads(sample.text), PERSON) for sample in result.samples)
    assert len({sample.text for sample in result.samples}) > 1


def test_log_probabilities_are_the_models_own(packed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(packed)
    free = answer(engine, make(None, max_tokens=1, logprobs=20)).logprobs[0]
    bound = answer(engine, make(Grammar.choice(["q", "z"]), logprobs=20)).logprobs[0]
    assert bound.top == free.top
    assert bound.token in b"qz"
    everything = dict(answer(engine, make(None, max_tokens=1, logprobs=20)).logprobs[0].top)
    assert bound.logprob <= min(everything.values()) or bound.token in everything


def test_the_likeliest_allowed_token_is_taken(packed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(packed)
    request = Request(prompt=text_tokens(90, 5), sampling=SamplingParameters(max_tokens=1), logits=True)
    handle = engine.submit(request)
    logits = next(event.logits for event in handle)
    assert logits is not None
    best = max(range(ord("a"), ord("z") + 1), key=lambda token: logits[token])
    assert answer(engine, make(Grammar.regex("[a-z]"))).token_ids[0] == best


def test_forks_go_on_in_the_grammar_or_begin_another(packed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(packed)
    handle = engine.submit(make(Grammar.regex("[a-c]{8}"), 1))
    while len(handle.samples[0].token_ids) < 3:
        engine.step()
    begun = handle.samples[0].text
    same = handle.fork()
    other = handle.fork(SamplingParameters(grammar=Grammar.regex("[x-z]{4}"), max_tokens=20))
    free = handle.fork(SamplingParameters(max_tokens=5))
    assert re.fullmatch("[a-c]{8}", begun + same.result().text)
    assert re.fullmatch("[x-z]{4}", other.result().text)
    assert len(free.result().token_ids) <= 5
    assert re.fullmatch("[a-c]{8}", handle.result().text)


def test_sequences_that_wait_for_memory_go_on_in_their_grammar(packed: Model, make_engine: MakeEngine) -> None:
    grammar = Grammar.regex("[a-z ]{150,160}")
    requests = [make(grammar, seed, max_tokens=170) for seed in range(6)]
    alone = [answer(make_engine(packed), request).token_ids for request in requests]
    wide = make_engine(packed)
    base = wide.usage().current
    answer(wide, requests[0])
    one = wide.usage().peak - base
    narrow = make_engine(packed, memory=base + int(one * 2.2))
    handles = [narrow.submit(request) for request in requests]
    results = [handle.result() for handle in handles]
    assert [result.token_ids for result in results] == alone
    assert sum(result.usage.preemptions for result in results) > 0


@pytest.mark.parametrize(
    ("grammar", "why"),
    [
        (Grammar.regex("[a"), "unclosed character class"),
        (Grammar.json_schema({"not": {"type": "null"}}), "not"),
        (Grammar.lark("start: nothing"), "nothing"),
        (Grammar.json_schema({"type": "objct"}), "objct"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_its_reason(
    packed: Model, make_engine: MakeEngine, grammar: Grammar, why: str
) -> None:
    engine = make_engine(packed)
    with pytest.raises(PromptError, match=f"(?s)cannot be compiled.*{why}"):
        engine.submit(make(grammar))
    assert not engine.busy


def test_options_that_contradict_a_grammar() -> None:
    with pytest.raises(PromptError, match="ignore_eos"):
        SamplingParameters(grammar=Grammar.json_object(), ignore_eos=True)
    with pytest.raises(PromptError, match="Grammar.json_schema"):
        SamplingParameters(grammar={"type": "object"})  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="forced"):
        Request(prompt=[1], forced=[2], sampling=SamplingParameters(grammar=Grammar.json_object()))
    for wrong in ("", 3, "\ud800"):
        with pytest.raises(PromptError):
            Grammar.regex(wrong)  # type: ignore[arg-type]
    for empty in ([], "ab", [1]):
        with pytest.raises(PromptError):
            Grammar.choice(empty)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="no JSON"):
        Grammar.json_schema({"const": float("nan")})


@pytest.mark.parametrize("seed", [None, 3])
def test_drafts_change_no_answer_in_a_grammar(packed: Model, make_engine: MakeEngine, seed: int | None) -> None:
    grammar = Grammar.lark('start: "[" WORD ("," WORD)* "]"\nWORD: /(ab|cd){2,3}/')
    wanted = make(grammar, seed, max_tokens=120, logprobs=2)
    plain = answer(make_engine(packed), wanted)
    drafted = dataclasses.replace(wanted, decoding=[{"technique": "prompt-lookup", "ngram": 2, "length": 5}])
    result = answer(make_engine(packed), drafted)
    assert (result.token_ids, result.logprobs) == (plain.token_ids, plain.logprobs)


async def _ask(engine: Engine) -> Result:
    async with AsyncEngine(engine) as running:
        with pytest.raises(PromptError, match="cannot be compiled"):
            await running.submit(make(Grammar.regex("(")))
        return await running.result(make(Grammar.json_schema(PERSON), 3))


def test_the_asynchronous_engine_compiles_beside_its_steps(packed: Model, make_engine: MakeEngine) -> None:
    import asyncio

    assert fits(json.loads(asyncio.run(_ask(make_engine(packed))).text), PERSON)


@dataclass(frozen=True)
class _Large:
    """A vocabulary of many bytes."""

    native: Any = None
    size: int = 272
    nbytes: int = 1 << 20
    ends: tuple[int, ...] = (EOS,)


def test_the_vocabulary_stands_in_the_ledger_and_must_fit(packed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(packed)
    before = engine.usage().current
    assert "grammars" not in engine.usage().categories
    answer(engine, make(Grammar.choice(["a", "b"]), max_tokens=5))
    first = packed.grammar_vocabulary.nbytes + compiled_bytes(Grammar.choice(["a", "b"]))
    assert engine.usage().categories["grammars"].current == first > 0
    for _ in range(2):  # equal ones count once
        answer(engine, make(Grammar.regex("[ab]+"), max_tokens=5))
        held = engine.usage().categories["grammars"].current
        assert held == first + compiled_bytes(Grammar.regex("[ab]+"))
    texts = [Grammar.choice([f"{number:02}"]) for number in range(KEPT + 3)]
    for text in texts:
        answer(engine, make(text, max_tokens=5))
    kept = packed.grammar_vocabulary.nbytes + KEPT * compiled_bytes(texts[0])
    assert engine.usage().categories["grammars"].current == kept
    tight = make_engine(packed, memory=before + 400_000, prefix_tree=False)
    large: Any = _Large(packed.grammar_vocabulary.native)
    tight.intake.grammars = Grammars(lambda: large)
    with pytest.raises(BudgetError):
        tight.submit(make(Grammar.choice(["a", "b"]), max_tokens=5))
    assert len(answer(tight, make(None, max_tokens=5)).token_ids) == 5


def test_a_grammar_that_does_not_fit_leaves_room_for_others(packed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(packed, memory="64MB")
    large = Grammar.json_schema({"const": "w" * (2 << 20)})
    for _ in range(2):
        engine.compile(large)
        with pytest.raises(BudgetError, match="grammars"):
            engine.submit(make(large))
    assert answer(engine, make(Grammar.choice(["a", "b"]), max_tokens=5)).text in ("a", "b")


def test_grammars_that_are_only_kept_make_way_for_others(packed: Model, make_engine: MakeEngine) -> None:
    engine = make_engine(packed, memory="8MB", prefix_tree=False)
    for number in range(3):  # 3 MB each, by estimate
        schema = Grammar.json_schema({"const": number, "description": "w" * (48 << 10)})
        assert json.loads(answer(engine, make(schema, max_tokens=20)).text) == number
