"""The recall model's training: what examples say, how the curriculum goes on, and that a killed run goes on alike."""

from __future__ import annotations

import functools
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn.functional import scaled_dot_product_attention

from thrifty.evaluation.tasks import _lists, recall
from thrifty.reference import load
from training.recall.curriculum import Plan, Stage
from training.recall.examples import PLAIN, Example, Writer, spread
from training.recall.network import IGNORED, Shape, batched, evaluate
from training.recall.train import Settings, Training
from training.recall.vocabulary import build_tokenizer
from training.recall.wiring import Wiring, first_weights

SMALL = Shape(vocabulary=512, hidden=64, intermediate=64, layers=2, heads=2, kv_heads=1, context=512)
STAGES = (
    Stage(48, 4, 2, {"drill": 1.0}, goal=0.0, most=3, at_once=2),
    Stage(96, 2, 3, {"recall": 0.5, "tracing": 0.5}, gaps=0.5, goal=2.0, most=10**9),
)
SETTINGS = Settings(steps=8, warm_up=2, decay=3, shape=SMALL, plan=Plan(STAGES, context=512), wiring=None)


@pytest.fixture(scope="module")
def writer() -> Writer:
    return Writer(tokenizer())


@functools.cache
def tokenizer() -> Tokenizer:
    return build_tokenizer()


def text_of(tokens: list[int]) -> str:
    return tokenizer().decode(tokens, skip_special_tokens=True)


def answers_of(example: Example) -> list[tuple[str, str]]:
    """(all text before an answer, the answer)."""
    found = []
    for number in range(example.count):
        places = [place for place, one in enumerate(example.answers) if one == number]
        if places:
            before = text_of(example.tokens[: places[0]])
            found.append((before, text_of(example.tokens[places[0] : places[-1] + 1])))
    return found


@pytest.mark.parametrize("length", [200, 512, 1024])
def test_a_recall_example_asks_for_what_its_context_told(writer: Writer, length: int) -> None:
    for seed in range(20):
        example = writer.write("recall", random.Random(seed), length, 12)
        assert length - 40 < len(example.tokens) <= length
        found = answers_of(example)
        assert len(found) >= 2
        for before, answer in found:
            lead = before.rsplit("\n", 1)[1]
            assert f"{lead}{answer.rstrip()}" in before.removesuffix(lead)
            name = lead.removeprefix("The secret number of ").removesuffix(" is")
            assert before.endswith("\n".join([recall.QUESTION.format(name=name), recall.LEAD.format(name=name)]))


@pytest.mark.parametrize("seed", range(6))
def test_the_answer_of_an_aggregation_is_the_commonest_words(writer: Writer, seed: int) -> None:
    example = writer.write("aggregation", random.Random(seed), 256, 1)
    ((before, answer),) = answers_of(example)
    words = [one.strip(",.") for one in before.split("\n")[0].split()]
    named = answer.strip().rstrip(".").split(", ")
    ranked = sorted(set(words), key=words.count)
    assert set(named) == set(ranked[-len(named) :]) and set(named) <= set(_lists.WORDS)
    asked = _lists.QUESTION if len(named) == 1 else _lists.QUESTION_MANY.format(count=len(named))
    assert asked in before


def test_tracing_names_the_cities_that_hand_the_number_on(writer: Writer) -> None:
    example = writer.write("tracing", random.Random(5), 512, 16)
    found = answers_of(example)
    assert found
    for before, answer in found:
        number = before.rsplit("secret number ", 1)[1].split()[0]
        names = answer.strip().rstrip(".").split(", ")
        assert f"of {names[0]} is {number}." in before
        for other, name in pairwise(names):
            assert f"of {name} is that of {other}." in before


def test_gaps_keep_the_order_and_stay_inside_the_context(writer: Writer) -> None:
    gapped = 0
    for seed in range(20):
        chance = random.Random(seed)
        example = writer.write("recall", chance, 257, 6)
        positions = spread(chance, example, 256, 4096)
        steps = [b - a for a, b in pairwise(positions)]
        assert len(positions) == 256 and min(steps) == 1 and positions[-1] < 4096
        gapped += any(step > 1 for step in steps)
    assert gapped > 10


def test_attention_of_a_batch_is_causal_attention_of_each_sequence() -> None:
    generator = torch.Generator().manual_seed(0)
    config = SMALL.config()
    query = torch.randn(3, 300, 2, 64, generator=generator)
    key, value = torch.randn(2, 3, 300, 1, 64, generator=generator)
    found = batched(3, config)(0, query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1))
    swapped = [x.transpose(1, 2) for x in (query, key, value)]
    expected = scaled_dot_product_attention(*swapped, is_causal=True, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(found.view(3, 300, 2, 64), expected)


def test_first_heads_look_back_and_the_next_ones_tend_to_what_followed_before() -> None:
    """The last words came before: second-layer scores of the place behind them stand out, over many draws of words."""
    shape = Shape()
    decoder = first_weights(shape, 0, Wiring())
    seen: dict[int, torch.Tensor] = {}

    def attend(layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("nhd,shd->hns", query, key.repeat_interleave(2, 1)) * shape.config().query_scale
        seen[layer] = scores.masked_fill(torch.ones(200, 200).triu(1) > 0, -1e9)
        return batched(1, decoder.config)(layer, query, key, value)

    standing = []
    for seed in range(8):
        tokens = torch.randint(50, 2000, (200,), generator=torch.Generator().manual_seed(seed))
        tokens[-8:] = tokens[100:108]
        with torch.no_grad():
            decoder(tokens, torch.arange(200), attend)
        back = torch.arange(200) - seen[0].argmax(-1)
        assert [int(one[20:].mode().values) for one in back[:6]] == [1, 2, 3, 4, 5, 6]
        last = seen[1][:, -1]
        standing.append((last[:, 108] - last.mean(-1)) / last.std(-1))
    assert torch.stack(standing).mean() > 0.7


def test_a_shape_too_small_to_be_wired_is_refused() -> None:
    with pytest.raises(ValueError, match="2 heads in 2 layers are too few"):
        first_weights(SMALL, 0, Wiring())


def test_targets_are_the_next_tokens_and_never_unknown_words(writer: Writer) -> None:
    plan = Plan()
    (batch,) = plan.batches(plan.stages[2], writer, random.Random(0), 4)
    wanted = batch.targets != IGNORED
    shifted = batch.tokens[:, 1:]
    assert torch.equal(batch.targets[:, :-1][wanted[:, :-1]], shifted[wanted[:, :-1]])
    assert not (batch.targets[batch.answers == PLAIN] == writer.unknown).any()
    assert (batch.weights[batch.answers >= 0] == 1).all() and (batch.weights[batch.answers < PLAIN] > 1).all()


def test_right_answers_are_counted_whole(writer: Writer) -> None:
    training = Training(SETTINGS, Path("unused"))
    (batch, _) = SETTINGS.plan.batches(STAGES[0], training.writer, random.Random(0), 4)
    outcome = evaluate(training.decoder, batch)
    assert outcome.answers == len(batch.answers[(batch.answers != PLAIN) & (batch.targets != IGNORED)].unique())
    assert 0 <= outcome.right < outcome.answers


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    lines: list[str] = []
    whole = Training(SETTINGS, tmp_path / "whole", lines.append)
    whole.run()
    half = Training(SETTINGS, tmp_path / "half", lines.append)
    for _ in range(4):
        half.step()
    half.save()
    rest = Training(SETTINGS, tmp_path / "half", lines.append)
    assert rest.progress.step == 4 and rest.progress.stage == 1
    rest.run()
    assert rest.progress.step == SETTINGS.steps
    for (name, one), (_, other) in zip(whole.decoder.named_parameters(), rest.decoder.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert any("stage 0 ends at step 3" in line for line in lines)


def test_training_lowers_the_loss_and_the_export_is_the_model(cache: Path, tmp_path: Path) -> None:
    training = Training(SETTINGS, tmp_path, lambda line: None)
    (batch, _) = SETTINGS.plan.batches(STAGES[0], training.writer, random.Random(9), 4)
    before = float(evaluate(training.decoder, batch).loss.detach())
    training.run()
    assert float(evaluate(training.decoder, batch).loss.detach()) < before - 0.2
    model = load(tmp_path / "model", dtype=torch.float32)
    tokens = batch.tokens[0]
    with torch.no_grad():
        expected = training.decoder(tokens, torch.arange(len(tokens)), batched(1, training.decoder.config))
    torch.testing.assert_close(model.logits(tokens), expected, atol=0.05, rtol=0.05)


def test_the_rate_rises_stays_and_falls() -> None:
    settings = Settings(steps=100, warm_up=10, decay=20, rate=1.0)
    assert settings.rate_at(0) == pytest.approx(0.1)
    assert settings.rate_at(50) == 1.0
    assert settings.rate_at(90) == pytest.approx(0.525)
    assert settings.rate_at(99) < 0.06
