"""Masked-diffusion models in the engine: every strategy that fills in masks, found by its file; what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine
from torch import Tensor

from thrifty import registry
from thrifty.decoding.canvas import DenoisingStrategy
from thrifty.decoding.draft import MOST_ROWS
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.strategies.dimple import Dimple
from thrifty.engine.media import Embeddings
from thrifty.engine.request import Request
from thrifty.errors import PromptError, RecipeError, ThriftyError
from thrifty.models.model import Model
from thrifty.reference import build
from thrifty.weights.technique import prepare

MASK = 260
FILLING = [
    name for name in registry.names("decoding") if issubclass(registry.load("decoding", name), DenoisingStrategy)
]
QUICK: dict[str, dict[str, Any]] = {
    "dimple": {"length": 12, "threshold": 0.05},
    "lavida": {"length": 12, "ratio": 0.4},
    "daedal": {"initial": 6, "length": 16, "sure": 0.1},
}


@pytest.fixture(scope="session")
def masked() -> Model:
    """int4 layers: the native path."""
    return tiny_model(packed=True, mask_id=MASK)


@pytest.fixture(scope="session")
def plain_masked() -> Model:
    """fp32: the reference path."""
    return tiny_model(layers=2, mask_id=MASK)


@pytest.fixture(params=FILLING)
def decoding(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return [{"technique": request.param, **QUICK[request.param]}]


def requests(count: int = 3, tokens: int = 40, sampling: dict[str, Any] | None = None, **options: Any) -> list[Request]:
    """Prompts of several lengths."""
    chosen = SamplingParameters(max_tokens=tokens, ignore_eos=True, **(sampling or {}))
    return [Request(prompt=text_tokens(20 + 3 * n, n), sampling=chosen, **options) for n in range(count)]


def together(engine: Any, asked: list[Request]) -> list[list[int]]:
    handles = [engine.submit(own) for own in asked]
    while not all(handle.finished for handle in handles):
        engine.step()
    return [handle.result().token_ids for handle in handles]


def slow_sight(prompt: int, blocks: list[int], rows: int) -> Tensor:
    """bool [rows, rows]. blocks: where each run of rows that was committed together ends; the last ends at `rows`."""
    visible = torch.zeros(rows, rows, dtype=torch.bool)
    start = 0
    for end in [prompt, *blocks]:
        visible[start:end, :end] = True
        start = end
    return visible


def slow_logits(model: Model, tokens: list[int], visible: Tensor) -> Any:
    """All rows' scores by one pass with a mask."""
    config, decoder = model.config, build(model).decoder
    groups = config.heads // config.kv_heads

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = (part.repeat_interleave(groups, 1) for part in (key, value))
        scores = torch.einsum("nhd,shd->hns", query, keys) * config.query_scale
        return torch.einsum("hns,shd->nhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), values)

    with torch.no_grad():
        state = decoder.embed(torch.tensor(tokens))
        for layer in range(len(config.layers)):
            state = decoder.layer(layer, state, torch.arange(len(tokens)), attend, len(tokens))
        return decoder.logits(state).numpy()


def slow_answer(model: Model, prompt: list[int], count: int, length: int, threshold: float) -> list[int]:
    """Dimple's confident decoding with the prompt's keys kept, written as a loop over whole passes."""

    def best(row: Any) -> tuple[int, float]:
        row = row.astype(np.float64).copy()
        row[MASK] = -math.inf
        chances = np.exp(row - row.max())
        return int(row.argmax()), float(chances.max() / chances.sum())

    tokens, blocks = list(prompt), list[int]()
    tokens.append(best(slow_logits(model, tokens, slow_sight(len(prompt), [], len(tokens)))[-1])[0])
    while len(tokens) - len(prompt) < count:
        start = len(tokens) - 1
        size = min(length, len(prompt) + count - len(tokens) - 1)
        canvas, clock = [MASK] * size, 0
        steps = length
        while True:
            rows = [*tokens, *canvas]
            scores = slow_logits(model, rows, slow_sight(len(prompt), [*blocks, len(rows)], len(rows)))[start:]
            masks = [place for place in range(size) if canvas[place] == MASK]
            if not masks:
                break
            guesses = [best(scores[place]) for place in range(size)]
            sure = [place for place in masks if guesses[place][1] > threshold]
            if not sure:
                number = 0
                while not number and clock < steps - 1:
                    t, s = 1 - (1 - 1e-3) * clock / steps, 1 - (1 - 1e-3) * (clock + 1) / steps
                    number, clock = int(len(masks) * (1 - s / t)), clock + 1
                if not number:
                    number, clock = len(masks), steps
                sure = sorted(masks, key=lambda place: -guesses[place][1])[:number]
            else:
                clock += 1
            for place in sure:
                canvas[place] = guesses[place][0]
        blocks.append(start + 1 + size)
        tokens += [*canvas, best(scores[size])[0]]
    return tokens[len(prompt) :]


def test_the_engine_answers_as_a_slow_loop_over_whole_passes(make_engine: MakeEngine, plain_masked: Model) -> None:
    engine = make_engine(plain_masked)
    decoding = [{"technique": "dimple", "length": 6, "threshold": 0.05}]
    for own in requests(2, tokens=20, decoding=decoding):
        found = engine.submit(own).result().token_ids
        assert found == slow_answer(plain_masked, list(own.ids), 20, 6, 0.05)


def test_native_rows_see_both_ways(make_engine: MakeEngine) -> None:
    """Native code's answer of plain weights is the slow loop's, too."""
    model = tiny_model(layers=2, mask_id=MASK, seed=3)
    engine = make_engine(model, native=None)
    assert engine.runner.name == "native"
    decoding = [{"technique": "dimple", "length": 6, "threshold": 0.05}]
    found = engine.submit(requests(1, tokens=9, decoding=decoding)[0]).result().token_ids
    assert found == slow_answer(model, text_tokens(20, 0), 9, 6, 0.05)


def test_it_says_how_many_rows_it_takes(decoding: list[dict[str, Any]]) -> None:
    strategy = registry.build("decoding", decoding[0])
    assert 2 <= strategy.rows <= MOST_ROWS and hash(strategy) == hash(registry.build("decoding", decoding[0]))


CACHES: list[list[dict[str, Any]]] = [
    [],
    [{"technique": "kivi", "bits": 4}],
    [{"technique": "snapkv", "keep": 0.5}],
    [{"technique": "h2o", "keep": 0.5}],
    [{"technique": "streaming", "window": 24}],
]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}], ids=["greedy", "sampled"])
def test_answers_do_not_depend_on_the_batch(
    make_engine: MakeEngine, masked: Model, decoding: list[dict[str, Any]], cache: Any, sampling: Any
) -> None:
    engine = make_engine(masked, prefix_tree=False)
    asked = requests(decoding=decoding, cache=cache, sampling=sampling)
    alone = [engine.submit(own).result().token_ids for own in asked]
    assert together(engine, asked) == alone
    assert all(len(own) == 40 and MASK not in own for own in alone)
    mixed = requests(1, decoding=[{"technique": "lavida", "length": 5}]) + asked
    assert together(engine, mixed)[1:] == alone


def test_it_takes_fewer_passes_than_tokens(make_engine: MakeEngine, masked: Model) -> None:
    engine = make_engine(masked)
    handle, steps = engine.submit(requests(1, decoding=[{"technique": "lavida", "length": 20, "ratio": 0.25}])[0]), 0
    while not handle.finished:
        engine.step()
        steps += 1
    assert steps <= 2 + 2 * (5 + 1), "a prompt, and twice five passes and one that commits"


@pytest.mark.parametrize("tokens", [1, 2, 3, 13, 14])
def test_an_answer_has_as_many_tokens_as_it_may(
    make_engine: MakeEngine, masked: Model, decoding: list[dict[str, Any]], tokens: int
) -> None:
    result = make_engine(masked).submit(requests(1, tokens=tokens, decoding=decoding)[0]).result()
    assert len(result.token_ids) == tokens and result.finish_reason == "length"


def test_an_answer_ends_at_a_stop_token(make_engine: MakeEngine, masked: Model, decoding: list[dict[str, Any]]) -> None:
    engine = make_engine(masked)
    whole = engine.submit(requests(1, decoding=decoding)[0]).result().token_ids
    stop = {"stop_token_ids": (whole[8],)}
    result = engine.submit(requests(1, decoding=decoding, sampling=stop)[0]).result()
    assert result.token_ids == whole[: whole.index(whole[8]) + 1] and result.finish_reason == "stop"


def test_log_probabilities_are_those_at_which_tokens_were_chosen(make_engine: MakeEngine, masked: Model) -> None:
    engine = make_engine(masked)
    result = engine.submit(requests(1, tokens=12, sampling={"logprobs": 1})[0]).result()
    assert len(result.logprobs) == 12 and all(own.logprob <= 0 for own in result.logprobs)
    assert [own.token for own in result.logprobs] == result.token_ids


def test_prompts_are_seen_whole_and_shared_whole(make_engine: MakeEngine, masked: Model) -> None:
    """An equal prompt is found in the tree, with the same answer; one that only begins alike is not."""
    engine, fresh = make_engine(masked), make_engine(masked, prefix_tree=False)
    prompt = text_tokens(150, 3)
    sampling = SamplingParameters(max_tokens=12, ignore_eos=True)
    first = engine.submit(Request(prompt=prompt, sampling=sampling)).result()
    again = engine.submit(Request(prompt=prompt, sampling=sampling)).result()
    other = Request(prompt=[*prompt[:140], 65, 66, 67], sampling=sampling)
    found = engine.submit(other).result()
    assert first.usage.cached_tokens == 0 and again.usage.cached_tokens == 128 and found.usage.cached_tokens == 0
    assert again.token_ids == first.token_ids
    assert found.token_ids == fresh.submit(other).result().token_ids


def test_samples_and_forks_go_their_own_ways(make_engine: MakeEngine, masked: Model) -> None:
    engine = make_engine(masked)
    sampling = SamplingParameters(max_tokens=30, ignore_eos=True, temperature=1.5, seed=1)
    samples = engine.submit(Request(prompt=text_tokens(20), sampling=sampling, samples=2)).result().samples
    assert samples[0].token_ids != samples[1].token_ids
    handle = engine.submit(requests(1, tokens=60)[0])
    while handle.usage.generated_tokens < 5:
        engine.step()
    fork = handle.fork(SamplingParameters(max_tokens=10, ignore_eos=True))
    assert len(fork.result().token_ids) == 10 and len(handle.result().token_ids) == 60


def test_who_leaves_in_the_middle_of_a_canvas_leaves_nothing(make_engine: MakeEngine, masked: Model) -> None:
    engine = make_engine(masked)
    handles = [engine.submit(own) for own in requests(decoding=[{"technique": "lavida", "length": 30, "ratio": 1.0}])]
    for _ in range(9):
        engine.step()
    handles[1].cancel()
    assert len(handles[0].result().token_ids) == 40 and handles[1].finished


def test_one_with_weights_that_overflow_ends_with_an_error(make_engine: MakeEngine) -> None:
    model = tiny_model(layers=2, mask_id=MASK)
    model.norms["final_norm"][:] = np.nan
    with pytest.raises(ThriftyError, match="no token can be chosen"):
        make_engine(model).submit(requests(1)[0]).result()


def test_a_prompt_that_no_step_holds_is_refused(make_engine: MakeEngine, masked: Model) -> None:
    engine = make_engine(masked, chunk=128)
    with pytest.raises(PromptError, match="129 rows see ahead.*chunk = 256"):
        engine.submit(Request(prompt=text_tokens(129)))
    assert engine.submit(Request(prompt=text_tokens(128), sampling=SamplingParameters(max_tokens=3))).result()


REFUSED: dict[str, dict[str, Any]] = {
    "forced": {"forced": (65, 66)},
    "logits": {"logits": True},
    "session": {"session": "a"},
    "taps": {"taps": (0,)},
    "penalty": {"sampling": SamplingParameters(frequency_penalty=0.5)},
    "embeddings": {"prompt": [65, Embeddings(np.ones((2, 128), np.float32))]},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_refused_by_name(make_engine: MakeEngine, masked: Model, name: str) -> None:
    with pytest.raises(PromptError, match=f"{name}.* is set, and this model fills in masks"):
        make_engine(masked).submit(Request(**({"prompt": text_tokens(20)} | REFUSED[name])))


def test_strategies_are_for_one_kind_of_model(make_engine: MakeEngine, masked: Model, packed: Model) -> None:
    with pytest.raises(RecipeError, match="'prompt-lookup' predicts one token after the other.*'dimple'"):
        make_engine(masked).submit(Request(prompt=[65], decoding=[{"technique": "prompt-lookup"}]))
    with pytest.raises(RecipeError, match="'autoregressive' predicts"):
        make_engine(masked, decoding=[{"technique": "autoregressive"}])
    with pytest.raises(RecipeError, match="'dimple' fills in masks.*'autoregressive'"):
        make_engine(packed).submit(Request(prompt=[65], decoding=[{"technique": "dimple"}]))
    with pytest.raises(RecipeError, match="fills in masks and predicts no next token"):
        engine = make_engine(packed, drafts=("small",), load_draft=lambda name, fits: masked)
        engine.submit(Request(prompt=[65], decoding=[{"technique": "speculative", "draft": "small"}]))
    with pytest.raises(RecipeError, match="kvzip reads the prompt's tokens again"):
        make_engine(masked).submit(Request(prompt=text_tokens(90), cache=[{"technique": "kvzip", "keep": 0.5}]))
    with pytest.raises(PromptError, match="or a mask"):
        sampling = SamplingParameters(logit_bias={MASK: 5.0})
        make_engine(masked).submit(Request(prompt=[65], sampling=sampling))


def test_it_fills_in_masks_by_default(make_engine: MakeEngine, masked: Model) -> None:
    engine = make_engine(masked)
    asked = requests(1)[0]
    wanted = Request(prompt=asked.prompt, sampling=asked.sampling, decoding=[{"technique": "dimple"}])
    assert engine.submit(asked).result().token_ids == engine.submit(wanted).result().token_ids
    assert Dimple().rows == 13


def test_a_text_is_not_scored_token_by_token(make_engine: MakeEngine, masked: Model) -> None:
    with pytest.raises(PromptError, match="a prompt to score is read token by token.*a causal model"):
        list(make_engine(masked).prompt_logprobs(text_tokens(20)))


def test_weights_are_rounded_but_not_calibrated(make_engine: MakeEngine) -> None:
    """Calibration runs a text as causal models read it: what it saw would not be what this model sees."""
    model = tiny_model(layers=2, mask_id=MASK)
    with pytest.raises(RecipeError, match="'gptq' looks at a text token after token.*such as rtn"):
        prepare(model, [registry.build("weights", {"technique": "gptq", "bits": 4})])
    rounded = prepare(model, [registry.build("weights", {"technique": "rtn", "bits": 8})])
    assert rounded.config.mask_id == MASK
    assert len(make_engine(rounded).submit(requests(1)[0]).result().token_ids) == 40
