"""What every decoding strategy must do, found by its file: the answers are the target's own."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny import text_tokens

from thrifty import registry
from thrifty.decoding.canvas import DenoisingStrategy
from thrifty.decoding.draft import MOST_ROWS
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.strategy import DecodingStrategy
from thrifty.engine.request import Request
from thrifty.models.model import Model

REQUIRED: dict[str, Any] = {"draft": "small"}
"""Values of options that must be set."""


def table(name: str) -> dict[str, Any]:
    """A recipe's table of a strategy."""
    return {"technique": name} | {
        option: REQUIRED[option] for option in registry.describe("decoding", name)["required"]
    }


CAUSAL = [
    name for name in registry.names("decoding") if not issubclass(registry.load("decoding", name), DenoisingStrategy)
]
"""Those that fill in masks have tests of their own: test_masked_diffusion.py."""


@pytest.fixture(params=CAUSAL)
def decoding(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return [table(request.param)]


@pytest.fixture
def engine(packed: Model, plain: Model, make_engine: Any) -> Any:
    return make_engine(packed, drafts=("small",), load_draft=lambda name, fits: {"small": plain}[name])


def requests(**options: Any) -> list[Request]:
    """Prompts that repeat themselves, of several lengths."""
    sampling = SamplingParameters(max_tokens=70, ignore_eos=True)
    return [
        Request(prompt=text_tokens(30 + number, number) * 3, **({"sampling": sampling} | options))
        for number in range(3)
    ]


def test_it_says_how_many_rows_it_takes(decoding: list[dict[str, Any]]) -> None:
    strategy: DecodingStrategy = registry.build("decoding", decoding[0])
    assert 1 <= strategy.rows <= MOST_ROWS
    assert hash(strategy) == hash(registry.build("decoding", decoding[0])), "equal strategies draft together"


@pytest.mark.parametrize("cache", [[], [{"technique": "kivi", "bits": 2}], [{"technique": "streaming", "window": 60}]])
@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_greedy_answers_are_those_of_plain_decoding(
    engine: Any, decoding: list[dict[str, Any]], cache: list[dict[str, Any]], penalty: float
) -> None:
    sampling = SamplingParameters(max_tokens=70, ignore_eos=True, frequency_penalty=penalty)
    plain = [engine.submit(own).result().token_ids for own in requests(sampling=sampling, cache=cache)]
    drafted = requests(sampling=sampling, cache=cache, decoding=decoding)
    handles = [engine.submit(own) for own in drafted]
    assert [handle.result().token_ids for handle in handles] == plain


def test_samples_do_not_depend_on_the_batch(engine: Any, decoding: list[dict[str, Any]]) -> None:
    sampling = SamplingParameters(max_tokens=50, ignore_eos=True, temperature=0.9, top_p=0.9, seed=3)
    alone = [engine.submit(own).result().token_ids for own in requests(sampling=sampling, decoding=decoding)]
    handles = [engine.submit(own) for own in requests(sampling=sampling, decoding=decoding)]
    assert [handle.result().token_ids for handle in handles] == alone


def test_an_answer_ends_where_a_plain_one_ends(engine: Any, decoding: list[dict[str, Any]]) -> None:
    plain = engine.submit(requests()[0]).result().token_ids
    stop = SamplingParameters(max_tokens=70, ignore_eos=True, stop_token_ids=(plain[31],))
    expected = engine.submit(requests(sampling=stop)[0]).result()
    result = engine.submit(requests(sampling=stop, decoding=decoding)[0]).result()
    assert (result.token_ids, result.finish_reason) == (expected.token_ids, expected.finish_reason)
    for count in (1, 2, 3):
        few = SamplingParameters(max_tokens=count, ignore_eos=True)
        assert engine.submit(requests(sampling=few, decoding=decoding)[0]).result().token_ids == plain[:count]


def test_log_probabilities_and_logits_are_those_of_plain_decoding(engine: Any, decoding: list[dict[str, Any]]) -> None:
    sampling = SamplingParameters(max_tokens=30, ignore_eos=True, logprobs=2)
    rows = []
    for own in (
        requests(sampling=sampling, logits=True)[1],
        requests(sampling=sampling, logits=True, decoding=decoding)[1],
    ):
        rows.append([(event.token, event.logprob, event.logits.tolist()) for event in engine.submit(own)])
    assert rows[0] == rows[1]


def test_repetitions_are_looked_up(engine: Any) -> None:
    """The draft is taken where the answer repeats: fewer steps than tokens."""
    forced = text_tokens(40, 5)
    request = Request(prompt=text_tokens(40, 5) * 2, forced=forced, decoding=[{"technique": "prompt-lookup"}])
    handle, steps = engine.submit(request), 0
    while not handle.finished:
        engine.step()
        steps += 1
    assert handle.result().token_ids == forced and steps < 12
