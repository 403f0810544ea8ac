"""Quality and speed through the real engine on a tiny random model."""

from __future__ import annotations

import dataclasses
import errno
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model

from thrifty.engine.engine import Engine
from thrifty.errors import PromptError, StorageError
from thrifty.evaluation import forcing, quality
from thrifty.evaluation.forcing import MeasurementError, force
from thrifty.evaluation.measuring import speed
from thrifty.evaluation.quality import Baseline, Passage
from thrifty.evaluation.roofline import roofline
from thrifty.reference import build

KIVI = [{"technique": "kivi", "bits": 2, "residual": 64}]
SNAPKV = [{"technique": "snapkv", "keep": 0.5}]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def passage(engine: Engine) -> Passage:
    return quality.passage(engine.model.tokenizer, 4096, prefix=300, scored=40)


@pytest.fixture(scope="module")
def baseline(engine: Engine, passage: Passage) -> Iterator[Baseline]:
    with Baseline.measure(engine, passage) as baseline:
        yield baseline


def test_forced_logits_are_those_of_the_whole_text(passage: Passage) -> None:
    model = tiny_model()
    engine = Engine(model, native=False, prefix_tree=False, threads=1)
    prompt, answer = passage.prompt[:70], passage.answer[:9]
    expected = build(model).logits([*prompt, *answer])
    steps = list(force(engine, prompt, answer, logits=True))
    assert [step.index for step in steps] == list(range(9))
    for step in steps:
        assert step.logits is not None
        torch.testing.assert_close(torch.from_numpy(step.logits), expected[69 + step.index], atol=1e-3, rtol=1e-3)


def test_evidence_tells_full_quantised_and_evicted_apart(engine: Engine, passage: Passage) -> None:
    def last(cache: list[dict[str, Any]]) -> Any:
        return list(force(engine, passage.prompt, passage.answer, cache, inspect=range(1, 100)))[-1].evidence

    full, kivi, snapkv = last([]), last(KIVI), last(SNAPKV)
    heads = 3 * 2
    assert full.slots == heads * 339 and not full.compressed
    assert kivi.slots == full.slots and kivi.quantised == heads * 192 and kivi.missing == 0
    assert snapkv.quantised == 0 and 0 < snapkv.missing == full.slots - snapkv.slots
    assert kivi.nbytes < full.nbytes and snapkv.nbytes < full.nbytes


def test_the_baseline_agrees_with_itself(engine: Engine, baseline: Baseline) -> None:
    run = quality.measure(engine, baseline, [], compresses=False)
    assert run.quality is not None
    assert run.quality.kl.value == 0.0
    assert run.quality.top1.value == 1.0
    assert run.quality.tokens == 40


def test_compression_costs_something_and_saves_something(engine: Engine, baseline: Baseline) -> None:
    run = quality.measure(engine, baseline, KIVI, compresses=True)
    assert run.quality is not None and baseline.run is not None
    assert run.quality.kl.value > 1e-4
    assert run.quality.kl.low <= run.quality.kl.value <= run.quality.kl.high
    assert run.cache_bytes < baseline.run.cache_bytes
    assert run.steady < baseline.run.steady


def test_kl_is_what_the_definition_says(engine: Engine, baseline: Baseline, passage: Passage) -> None:
    run = quality.measure(engine, baseline, KIVI, compresses=True)
    steps = list(force(engine, passage.prompt, passage.answer, KIVI, logits=True))[1:]
    reference = torch.from_numpy(np.stack(list(baseline.rows()))).double().log_softmax(-1)
    logits = [step.logits for step in steps if step.logits is not None]
    mine = torch.from_numpy(np.stack(logits)).double().log_softmax(-1)
    expected = torch.nn.functional.kl_div(mine, reference, log_target=True, reduction="batchmean")
    assert run.quality is not None
    assert run.quality.kl.value == pytest.approx(float(expected), rel=1e-6)


def test_a_run_that_compresses_nothing_is_refused(engine: Engine, baseline: Baseline) -> None:
    idle = [{"technique": "kivi", "bits": 4, "residual": 100_000}]
    with pytest.raises(MeasurementError, match="scored token 1 read no compressed segment .* Use a longer prefix"):
        quality.measure(engine, baseline, idle, compresses=True)


def test_a_passage_that_does_not_fit_is_refused_with_the_numbers(engine: Engine) -> None:
    tokenizer = engine.model.tokenizer
    with pytest.raises(PromptError, match=r"takes 1282 tokens \(1024 compressed, 256 scored\); this context holds 512"):
        quality.passage(tokenizer, 512)
    with pytest.raises(PromptError, match="measures nothing"):
        quality.passage(tokenizer, 512, prefix=0)


def test_speed_at_a_context(engine: Engine) -> None:
    found = speed.measure(engine, 200, steps=8)
    assert found.context == 200
    assert found.prefill_rate > 0 and found.decode_rate > 0 and 1 <= found.rounds <= speed.ROUNDS
    assert found.cache_bytes > 200 * 3 * 2 * 64 * 2 * 2 - 1


def test_a_context_that_leaves_no_room_is_refused(engine: Engine) -> None:
    with pytest.raises(PromptError, match="the engine holds 4096; use 1 to 4031"):
        speed.measure(engine, 4090)


def test_a_decode_step_reads_every_linear_once(engine: Engine) -> None:
    weights = roofline.weight_bytes_per_token(engine.model)
    assert weights == sum(linear.nbytes for linear in engine.model.linears.values())
    roof = roofline.Roofline(bytes_per_token=50_000_000, bandwidth=25.0)
    assert roof.rate == 500.0
    assert roof.fraction(125.0) == 0.25


def test_of_an_untied_embedding_no_byte_counts_and_of_experts_the_active_ones() -> None:
    untied = tiny_model(packed=True, tied_embeddings=False)
    expected = sum(linear.nbytes for name, linear in untied.linears.items() if name != "embedding")
    assert roofline.weight_bytes_per_token(untied) == expected


def test_timed_tokens_come_before_the_scored_ones_and_with_nothing_between(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passage = quality.passage(engine.model.tokenizer, 4096, prefix=300, scored=12, timed=20)
    assert (passage.scored, passage.first, len(passage.answer)) == (12, 21, 33)
    looked: list[int] = []
    seen = forcing.evidence
    monkeypatch.setattr(forcing, "evidence", lambda cache: looked.append(cache.length) or seen(cache))
    with Baseline.measure(engine, passage) as baseline:
        looked.clear()
        run = quality.measure(engine, baseline, KIVI, compresses=True)
    assert run.quality is not None and run.quality.tokens == 12 and run.cache_bytes > 0
    assert looked == list(range(320, 332)), "only what scored steps read is inspected"


def test_the_rate_is_the_mean_of_the_timed_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    passage = quality.passage(engine.model.tokenizer, 4096, prefix=300, scored=4, timed=4)
    real = forcing.force

    def clocked(*words: Any, **options: Any) -> Iterator[Any]:
        for step in real(*words, **options):
            yield dataclasses.replace(step, seconds=float(step.index**2 or 1))

    monkeypatch.setattr(quality, "force", clocked)
    with Baseline.measure(engine, passage) as baseline:
        assert baseline.run is not None and baseline.run.decode_rate == pytest.approx(4 / (1 + 4 + 9 + 16))


def test_a_full_disk_of_the_baseline_is_named(
    engine: Engine, passage: Passage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quality.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(StorageError, match="No space left on device. They take .* MB: make room there, or set TMPDIR"):
        Baseline.measure(engine, passage)
