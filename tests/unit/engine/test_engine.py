"""What an engine promises to one request."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.tiny import EOS, VOCABULARY, text_tokens, tiny_config, tiny_model

from thrifty.arrays import BFLOAT16, softmax
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import BudgetError, ConfigError, KernelError, PromptError, QueueFullError, RecipeError, ThriftyError
from thrifty.formats.linear import DenseLinear
from thrifty.kernels import dispatch
from thrifty.models.model import Model
from thrifty.reference import build


def request(prompt: int | list[int] = 40, /, **options: Any) -> Request:
    names = {"samples", "cache", "forced", "logits", "salt", "share_prefix", "decoding"}
    outer = {name: options.pop(name) for name in names & options.keys()}
    tokens = text_tokens(prompt) if isinstance(prompt, int) else prompt
    return Request(
        prompt=tokens, sampling=SamplingParameters.of(**({"max_tokens": 12, "ignore_eos": True} | options)), **outer
    )


def test_greedy_answers_are_those_of_the_plain_forward_pass(plain: Model, make_engine: Any) -> None:
    prompt, answer, whole = text_tokens(150), [], build(plain)
    for _ in range(64):
        answer.append(int(whole.logits(prompt + answer)[-1].argmax()))
    assert make_engine(plain).submit(request(prompt, max_tokens=64)).result().token_ids == answer


def test_logits_are_those_of_the_plain_forward_pass(plain: Model, make_engine: Any) -> None:
    prompt, forced = text_tokens(150), text_tokens(40, seed=3)
    handle = make_engine(plain).submit(request(prompt, forced=forced, logits=True, logprobs=2))
    events = list(handle)
    found = np.stack([event.logits for event in events])
    expected = build(plain).logits(prompt + forced)[len(prompt) - 1 : -1].numpy()
    assert [event.token for event in events] == forced
    difference = np.abs(found - expected)
    assert (float(difference.max()) < 5e-4, float(difference.mean()) < 2e-5) == (True, True)
    wanted = np.log(softmax(expected))[range(40), forced]
    assert np.allclose([one.logprob for one in handle.samples[0].logprobs], wanted, atol=1e-4)


def test_streaming_gives_the_result_piece_by_piece(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    whole = engine.submit(request()).result()
    assert "".join(engine.submit(request()).text()) == whole.text
    assert list(engine.submit(request()).tokens()) == whole.token_ids
    assert whole.finish_reason == "length"
    assert whole.usage.generated_tokens == 12


def test_every_end_of_sequence_id_stops(plain: Model, make_engine: Any) -> None:
    engine = make_engine(plain)
    for end in (EOS, EOS + 1):
        result = engine.submit(request(logit_bias={end: 1000.0}, ignore_eos=False)).result()
        assert (result.token_ids, result.text, result.finish_reason) == ([end], "", "stop")
    assert len(engine.submit(request(logit_bias={EOS: 1000.0})).result().token_ids) == 12


def test_stop_strings_and_ids(plain: Model, make_engine: Any) -> None:
    engine = make_engine(plain)
    bias = dict.fromkeys(range(65, 91), 1000.0)
    free = engine.submit(request(logit_bias=bias)).result()
    stop = free.text[5:8]
    place = free.text.find(stop)
    stopped = engine.submit(request(logit_bias=bias, stop=stop)).result()
    assert (stopped.text, stopped.finish_reason) == (free.text[:place], "stop")
    by_id = engine.submit(request(logit_bias=bias, stop_token_ids=(ord(free.text[3]),))).result()
    assert by_id.text == free.text[: free.text.find(free.text[3])]


def test_samples_share_a_prefill_and_differ_by_their_stream(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    result = engine.submit(request(200, samples=4, temperature=1.0, seed=5)).result()
    answers = [tuple(sample.token_ids) for sample in result.samples]
    assert len(set(answers)) == 4
    assert result.usage.generated_tokens == 48
    again = engine.submit(request(200, samples=4, temperature=1.0, seed=5)).result()
    assert [tuple(sample.token_ids) for sample in again.samples] == answers
    single = engine.submit(request(200, temperature=1.0, seed=5)).result()
    assert tuple(single.token_ids) == answers[0]


def test_a_fork_continues_from_where_its_parent_is(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    parent = engine.submit(request(100, max_tokens=30))
    events = iter(parent)
    for _ in range(10):
        next(events)
    child = parent.fork()
    drawn = parent.fork(SamplingParameters(temperature=1.0, seed=1, max_tokens=5, ignore_eos=True))
    whole = parent.result().token_ids
    assert child.result().token_ids == whole[10:]
    assert len(drawn.result().token_ids) == 5
    with pytest.raises(PromptError, match="is not decoding: it can be forked while it is"):
        parent.fork()


def test_cancelling_frees_everything_at_any_stage(model: Model, make_engine: Any) -> None:
    engine = make_engine(model, prefix_tree=False)
    free = engine.memory.ledger.bytes_of("cache")
    for steps in range(8):
        handle = engine.submit(request(700, samples=2, cache=[{"technique": "kivi"}] if steps % 2 else None))
        other = engine.submit(request(50))
        for _ in range(steps):
            engine.step()
        handle.cancel()
        handle.cancel()
        assert [sample.finish_reason for sample in handle.samples] == ["cancelled", "cancelled"]
        assert len(handle.result().samples) == 2
        other.result()
        ledger = engine.memory.ledger
        assert (ledger.bytes_of("cache"), ledger.bytes_of("scratch")) == (free, 0)
        assert ledger.committed == ledger.current
        assert not engine.busy


def poisoned(engine: Engine, token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the engine's runner fail where the token is in the batch."""
    run = engine.runner.decode

    def decode(batch: Any) -> Any:
        scores = run(batch)  # rows are in the caches already: they must be taken back
        if any(token in rows.tokens for rows in batch):
            raise RuntimeError("poisoned")
        return scores

    monkeypatch.setattr(engine.runner, "decode", decode)


def test_an_error_in_one_request_leaves_its_batch_as_it_would_have_been(
    model: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (100, 63, 128)
    clean = make_engine(model)
    expected = [clean.submit(request(n, max_tokens=30)).result().token_ids for n in lengths]
    engine = make_engine(model)
    poison = 7
    engine._stepper.ahead = None  # all rows go through Runner.decode
    poisoned(engine, poison, monkeypatch)
    bias = {poison: -1000.0}
    good = [engine.submit(request(n, max_tokens=30, logit_bias=bias)) for n in lengths]
    bad = engine.submit(request(90, forced=[1, 2, 3, poison, 4, 5]))
    with pytest.raises(RuntimeError, match="poisoned"):
        bad.result()
    assert (bad.samples[0].finish_reason, bad.samples[0].token_ids) == ("error", [1, 2, 3, poison])
    results = [handle.result().token_ids for handle in good]
    unbiased = [a for a, b in zip(results, expected, strict=True) if poison not in b]
    assert unbiased == [b for b in expected if poison not in b]


def test_a_policy_that_fails_ends_only_its_own_request(
    plain: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.cache.policies.kivi import Kivi

    def fail(*_: Any) -> None:
        raise ArithmeticError("a policy's bug")

    monkeypatch.setattr(Kivi, "after_prefill", fail)
    engine = make_engine(plain)
    bad = engine.submit(request(100, cache=[{"technique": "kivi"}], samples=3))
    good = engine.submit(request(100))
    with pytest.raises(ArithmeticError, match="a policy's bug"):
        bad.result()
    assert [sample.finish_reason for sample in bad.samples] == ["error"] * 3
    assert len(good.result().token_ids) == 12


REFUSED = [
    (lambda: request([]), PromptError, "the prompt is empty; it needs at least 1 token"),
    (
        lambda: request(4096),
        PromptError,
        "the prompt has 4096 tokens; the context holds 4096, the answer included: use at most 4095",
    ),
    (lambda: request(5000), PromptError, "use at most 4095"),
    (
        lambda: request(100, max_tokens=4000),
        PromptError,
        "max_tokens = 4000 after a prompt of 100 tokens exceeds the context of 4096; use at most 3996",
    ),
    (
        lambda: request([1, VOCABULARY]),
        PromptError,
        f"the prompt names token {VOCABULARY}; the vocabulary ends at {VOCABULARY - 1}",
    ),
    (lambda: request([-1]), PromptError, "the prompt names token -1"),
    (lambda: request(samples=0), PromptError, "samples = 0 is out of range; use 1 or more"),
    (lambda: request(samples=33), PromptError, "use at most 32, or an engine with a larger batch"),
    (lambda: request(forced=[]), PromptError, "forced is empty; it needs at least 1 token"),
    (lambda: request(forced=[VOCABULARY]), PromptError, "forced names token"),
    (lambda: request(forced=[1], samples=2), PromptError, "use samples = 1"),
    (lambda: request(cache=[{"technique": "kiwi"}]), RecipeError, "Did you mean 'kivi'?"),
    (lambda: request(decoding=[{"technique": "autoregressive"}] * 2), RecipeError, "keep one"),
]


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED, ids=[message[:30] for *_, message in REFUSED])
def test_what_cannot_be_served_is_refused_with_what_would_work(
    plain: Model, make_engine: Any, make: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        make_engine(plain).submit(make())
    assert message in str(caught.value)


def test_the_number_that_a_refusal_names_works(plain: Model, make_engine: Any) -> None:
    engine = make_engine(plain, context=128)
    with pytest.raises(PromptError, match="use at most 28"):
        engine.submit(request(100, max_tokens=29))
    assert len(engine.submit(request(100, max_tokens=28)).result().token_ids) == 28
    assert len(engine.submit(request(100, max_tokens=None)).result().token_ids) == 28
    with pytest.raises(PromptError, match="context = 5000 is out of range; this model takes 2 to 4096 tokens"):
        make_engine(plain, context=5000)


def test_a_budget_names_the_tokens_and_the_bytes_that_would_do(plain: Model, make_engine: Any) -> None:
    with pytest.raises(BudgetError, match="one token does not fit") as caught:
        make_engine(plain, memory=plain.nbytes)
    need = int(str(caught.value).split("use a budget of ")[1].split(" bytes")[0])
    engine = make_engine(plain, memory=need)
    with pytest.raises(BudgetError):
        make_engine(plain, memory=need - 1)
    with pytest.raises(BudgetError, match="the request does not fit") as caught:
        engine.submit(request(300))
    tokens = int(str(caught.value).split("at most ")[1].split(" tokens")[0])
    with pytest.raises(BudgetError):
        engine.submit(request(tokens - 11, max_tokens=12))
    assert len(engine.submit(request(tokens - 12, max_tokens=12)).result().token_ids) == 12
    larger = int(str(caught.value).split("use a budget of ")[1].split(" bytes")[0])
    bigger = make_engine(plain, memory=larger)
    assert len(bigger.submit(request(300)).result().token_ids) == 12
    assert bigger.memory.ledger.peak <= larger
    unbounded = bigger.submit(request(50, max_tokens=None))
    assert 12 < len(unbounded.result().token_ids) < 4000


def test_a_full_queue_is_an_error_with_a_wait(plain: Model, make_engine: Any) -> None:
    engine = make_engine(plain, queue=2)
    handles = [engine.submit(request()) for _ in range(2)]
    with pytest.raises(QueueFullError) as caught:
        engine.submit(request())
    assert caught.value.retry_after > 0
    engine.step()
    handles.append(engine.submit(request()))
    assert len({tuple(handle.result().token_ids) for handle in handles}) == 1


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [("batch", 0, "1 or more"), ("queue", 0, "1 or more"), ("chunk", 100, "a multiple of 128")],
)
def test_impossible_engines_are_refused(plain: Model, make_engine: Any, option: str, value: int, hint: str) -> None:
    with pytest.raises(PromptError, match=f"{option} = {value} is out of range; use {hint}"):
        make_engine(plain, **{option: value})


def test_a_closed_engine_takes_nothing(plain: Model, make_engine: Any) -> None:
    engine = make_engine(plain)
    handle = engine.submit(request())
    engine.close()
    assert handle.result().finish_reason == "cancelled"
    with pytest.raises(ThriftyError, match="the engine is closed"):
        engine.submit(request())


def test_the_runner_says_why_it_was_chosen(packed: Model, make_engine: Any) -> None:
    assert make_engine(packed, native=False).describe()["runner"] == {
        "name": "reference",
        "reason": "native code was turned off",
    }
    assert make_engine(packed).runner.reason.startswith("native plan of 3 layers, ")


@pytest.mark.parametrize("native", [None, True])
def test_what_no_kernel_does_is_an_error_that_names_the_reference(native: bool | None) -> None:
    model = tiny_model(packed=True)
    weight = model.linears["layers.1.mlp.up"].dequantize()
    model.replace("layers.1.mlp.up", DenseLinear.from_weight(weight, BFLOAT16, packed=False))
    with pytest.raises(KernelError, match=r"layers.1.mlp.up: no native kernel for DenseLinear bf16; native=False \("):
        Engine(model, native=native)


@pytest.mark.parametrize("native", [None, True, False])
def test_layers_that_no_cache_holds_get_no_remedy_that_does_not_help(native: bool | None) -> None:
    model = tiny_model(packed=True, config=tiny_config(2))
    latent = dataclasses.replace(model.config.layers[1], mixer="latent")
    model.config = dataclasses.replace(model.config, layers=(model.config.layers[0], latent))
    with pytest.raises(
        ConfigError, match=r"layers\.1 mixes by latent attention, which the cache does not hold"
    ) as error:
        Engine(model, native=native)
    assert "native=False" not in str(error.value)


@pytest.mark.parametrize("native", [None, True])
def test_a_missing_module_is_an_error_and_no_silent_fallback(
    packed: Model, native: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "native", lambda: None)
    with pytest.raises(KernelError, match=r"native=False \(--reference\) runs the slow torch reference instead"):
        Engine(packed, native=native)


def test_usage_adds_up(model: Model, make_engine: Any) -> None:
    engine = make_engine(model)
    first = engine.submit(request(300)).result().usage
    second = engine.submit(request(300)).result().usage
    assert (first.prompt_tokens, first.cached_tokens, first.generated_tokens) == (300, 0, 12)
    assert second.cached_tokens == 256
    assert first.prefill_seconds > 0
    assert first.decode_seconds > 0
    assert first.decode_rate == pytest.approx(11 / first.decode_seconds)
