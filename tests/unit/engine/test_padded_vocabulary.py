"""A model with more rows than its tokenizer has tokens: those rows are never chosen; a model without a tokenizer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
from tests.small_tokenizers import byte_level
from tests.tiny import text_tokens, tiny_config, tiny_model

from thrifty.api import Thrifty
from thrifty.arrays import Floats, largest, softmax
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import CheckpointError, PromptError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.kernels import dispatch
from thrifty.models.model import Model
from thrifty.models.tokens.settings import TokenizerSettings
from thrifty.models.tokens.tokenizer import Tokenizer

TOKENS, ROWS = 259, 272
PROMPTS = [text_tokens(20, seed) for seed in range(12)]


@pytest.fixture(params=["native", pytest.param("reference", marks=pytest.mark.long)])
def padded(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A model that, of its 272 rows, likes those best that are no token."""
    native = request.param == "native"
    if native and dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    model = tiny_model(packed=native, config=tiny_config(layers=2))
    weight = model.linears["embedding"].dequantize().copy()
    weight[TOKENS:] *= 3
    rows = GroupLinear.quantize(weight, 8, 32, symmetric=False) if native else DenseLinear.from_weight(weight)
    model.replace("embedding", rows)
    definition = byte_level(special=("<s>", "</s>", "<|end|>")).to_str()
    model.tokenizer = Tokenizer(definition, TokenizerSettings(vocabulary_size=ROWS))
    engine = Engine(model, native=native)
    yield engine
    engine.close()


def answers(engine: Engine, **options: object) -> list[tuple[int, ...]]:
    sampling = SamplingParameters(max_tokens=4, ignore_eos=True, **options)  # type: ignore[arg-type]
    return [tuple(engine.submit(Request(prompt=prompt, sampling=sampling)).result().token_ids) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 5.0, "seed": 3}, {"temperature": 5.0, "top_p": 0.9, "seed": 3}]
)
def test_rows_without_a_token_are_never_chosen(padded: Engine, options: dict[str, float]) -> None:
    free = Engine(dataclasses.replace(padded.model, tokenizer=None), native=padded.runner.name == "native")
    assert any(token >= TOKENS for answer in answers(free, **options) for token in answer)
    free.close()
    found = answers(padded, **options)
    assert all(token < TOKENS for answer in found for token in answer)
    if not options:
        best = [row_of(padded, prompt)[:TOKENS].argmax() for prompt in PROMPTS]
        assert [answer[0] for answer in found] == [int(token) for token in best]


def row_of(engine: Engine, prompt: list[int]) -> Floats:
    request = Request(prompt=prompt, sampling=SamplingParameters(max_tokens=1), logits=True)
    (logits,) = (event.logits for event in engine.submit(request) if event.logits is not None)
    return logits


def test_log_probabilities_are_those_of_the_tokens_alone(padded: Engine) -> None:
    sampling = SamplingParameters(max_tokens=1, logprobs=20)
    for prompt in PROMPTS[:4]:
        (found,) = padded.submit(Request(prompt=prompt, sampling=sampling)).result().logprobs
        expected = np.log(softmax(row_of(padded, prompt)[:TOKENS].astype(np.float64)))
        assert math.isclose(found.logprob, float(expected[found.token]), abs_tol=1e-5)
        ids = largest(expected, 20)
        assert [token for token, _ in found.top] == ids.tolist()
        assert [value for _, value in found.top] == pytest.approx(expected[ids].tolist(), abs=1e-5)


def test_such_rows_are_refused_where_they_are_asked_for(padded: Engine) -> None:
    with pytest.raises(PromptError, match=r"forced names token 260, a row that pads .* never be chosen; leave it out"):
        padded.submit(Request(prompt=[65], forced=[66, 260]))
    with pytest.raises(PromptError, match=r"logit_bias names token 271, a row that pads"):
        padded.submit(Request(prompt=[65], sampling=SamplingParameters(logit_bias={271: 3.0})))
    handle = padded.submit(Request(prompt=[65], sampling=SamplingParameters(max_tokens=50, ignore_eos=True)))
    padded.step()
    with pytest.raises(PromptError, match=r"forced names token 260, a row that pads"):
        handle.fork(forced=[260])
    handle.cancel()


def test_such_rows_may_stand_in_a_prompt_and_have_no_text(padded: Engine) -> None:
    result = padded.submit(Request(prompt=[65, 265], sampling=SamplingParameters(max_tokens=2))).result()
    assert len(result.token_ids) == 2
    assert padded.model.tokenizer.absent_ids(ROWS) == frozenset(range(TOKENS, ROWS))


def test_a_vocabulary_may_have_holes() -> None:
    made = byte_level(special=("<s>",))
    tokenizer = Tokenizer(made.to_str(), TokenizerSettings())
    assert tokenizer.absent_ids(257) == frozenset() and tokenizer.absent_ids(258) == {257}


@pytest.fixture
def wordless() -> Iterator[Thrifty]:
    model: Model = tiny_model(config=tiny_config(layers=1))
    model.tokenizer = None
    with Thrifty(model) as thrifty:
        yield thrifty


def test_ids_are_continued_without_a_tokenizer(wordless: Thrifty) -> None:
    ends = wordless.model.config.eos_ids
    result = wordless.generate([65, 66], max_tokens=40)
    assert result.text == "" and len(result.token_ids) > 0
    assert (result.finish_reason == "stop") == (result.token_ids[-1] in ends)
    end = result.token_ids[0]
    object.__setattr__(wordless.model.config, "eos_ids", (end,))
    with Thrifty(wordless.model) as again:
        assert again.generate([65, 66], max_tokens=40).token_ids == [end]


def test_what_needs_text_is_refused_without_a_tokenizer(wordless: Thrifty) -> None:
    for ask in (lambda: wordless.generate("a"), lambda: wordless.chat("a")):
        with pytest.raises(CheckpointError, match=r"no tokenizer\.json, so it takes and gives token ids only; add the"):
            ask()
    with pytest.raises(PromptError, match=r"stop = \('x',\) looks for text, .* use stop_token_ids"):
        wordless.generate([65], stop="x")
    assert len(wordless.generate([65], max_tokens=3, ignore_eos=True).token_ids) == 3
