"""Logits that are no numbers: told, in every way to choose, and in their own request only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.tiny import tiny_config, tiny_model

from thrifty.arrays import BFLOAT16
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.scores import ArrayScores
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError
from thrifty.formats.linear import DenseLinear
from thrifty.kernels import dispatch
from thrifty.models.model import Model

SPOILT = 7
CHOICES = {
    "greedy": SamplingParameters(max_tokens=6, ignore_eos=True),
    "sampled": SamplingParameters(max_tokens=6, ignore_eos=True, temperature=0.8, seed=1),
    "filtered": SamplingParameters(max_tokens=6, ignore_eos=True, temperature=0.8, top_p=0.9, seed=1),
    "logprobs": SamplingParameters(max_tokens=6, ignore_eos=True, logprobs=2),
    "penalised": SamplingParameters(max_tokens=6, ignore_eos=True, repetition_penalty=1.1),
}


def spoilt(part: str, value: float, native: bool) -> Model:
    """A model whose row of token 7, in the embedding or in the head, holds `value` once."""
    model = tiny_model(packed=native, config=tiny_config(layers=2, tied_embeddings=False))
    weight = model.linears[part].dequantize().copy()
    weight[SPOILT, 3] = value
    model.replace(part, DenseLinear.from_weight(weight, BFLOAT16 if native else np.float32, native))
    return model


@pytest.fixture(params=["native", "reference"])
def native(request: pytest.FixtureRequest) -> bool:
    if request.param == "native" and dispatch.native() is None:
        pytest.skip("the native kernels are not built")
    return bool(request.param == "native")


@pytest.fixture
def engine(native: bool) -> Iterator[Engine]:
    """Only what reads token 7 overflows."""
    engine = Engine(spoilt("embedding", np.nan, native), native=native)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", CHOICES)
def test_a_prompt_that_overflows_is_refused_and_its_neighbour_answers_as_alone(engine: Engine, name: str) -> None:
    alone = engine.submit(Request(prompt=[65, 66], sampling=CHOICES[name])).result().token_ids
    bad = engine.submit(Request(prompt=[65, SPOILT, 66], sampling=CHOICES[name]))
    good = engine.submit(Request(prompt=[65, 66], sampling=CHOICES[name]))
    with pytest.raises(
        PromptError, match=r"position 0 of the answer: .*nan.*overflowed\. Check the checkpoint.*native=F"
    ):
        bad.result()
    assert good.result().token_ids == alone


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("free", [0, 3])
def test_an_answer_that_overflows_midway_ends_alone(engine: Engine, name: str, free: int) -> None:
    alone = engine.submit(Request(prompt=[65, 66], sampling=CHOICES[name])).result().token_ids
    good = engine.submit(Request(prompt=[65, 66], sampling=CHOICES[name]))
    forced = [70, 71, SPOILT] + ([] if free else [72])
    bad = engine.submit(Request(prompt=[65, 66], sampling=CHOICES[name], forced=forced, free=free))
    with pytest.raises(PromptError, match="position 3 of the answer: .*overflowed"):
        bad.result()
    assert bad.samples[0].token_ids == [70, 71, SPOILT] and bad.samples[0].finish_reason == "error"
    assert good.result().token_ids == alone
    assert engine.submit(Request(prompt=[65, 66], sampling=CHOICES[name])).result().token_ids == alone


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", CHOICES)
def test_one_logit_that_is_no_number_is_enough(native: bool, name: str, value: float) -> None:
    engine = Engine(spoilt("head", value, native), native=native)
    with pytest.raises(PromptError, match="overflowed"):  # +inf or −inf times a hidden value, by its sign
        for token in range(65, 75):
            engine.submit(Request(prompt=[token], sampling=CHOICES[name])).result()
    engine.close()


def test_a_fork_of_a_good_answer_survives_the_bad_one(engine: Engine) -> None:
    greedy: dict[str, Any] = {"sampling": CHOICES["greedy"]}
    parent = engine.submit(Request(prompt=[65, 66], **greedy))
    engine.step()
    bad = parent.fork(forced=[SPOILT], free=2)
    with pytest.raises(PromptError, match="overflowed"):
        bad.result()
    again = engine.submit(Request(prompt=[65, 66], **greedy)).result()
    assert parent.result().token_ids == again.token_ids


@pytest.mark.parametrize("place", [0, 5, 63])
def test_a_row_has_no_best_token_where_a_logit_is_no_number(place: int) -> None:
    rows = np.tile(np.linspace(-1, 1, 64, dtype=np.float32), (4, 1))
    rows[0, place], rows[1, place], rows[2, :], rows[3, place] = np.nan, np.inf, -np.inf, -np.inf
    assert [ArrayScores(rows).best(row) for row in range(4)] == [-1, -1, -1, 62 if place == 63 else 63]
