"""The small masked-diffusion model: its masks and loss against slow versions, its training, what is packaged."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from thrifty.engine.engine import Engine
from thrifty.evaluation.letters import Item, answers, draw, judged
from thrifty.models.embedded import MODELS
from thrifty.models.loading import load
from thrifty.reference.decoder import Decoder
from training.diffusion.network import (
    IGNORED,
    LEAST_RATE,
    Batch,
    Canvas,
    DiffusionShape,
    Example,
    causal_batch,
    diffusion_batch,
    draw_canvas,
    draw_masks,
    loss_of,
    sight,
)
from training.diffusion.train import Settings, Stage, _fresh, train
from training.diffusion.words import build_tokenizer

MASK, END = 3, 2
EXAMPLES = [
    Example([1, 4, 10, 11, 12, 7], [10, 11, 12, END]),
    Example([1, 5, 20, 21, 22, 23, 7], [23, 22, 21, 20, END]),
]


def pairs(complementary: bool = True, seed: int = 0) -> tuple[Batch, list[Canvas]]:
    """A batch, and the canvases that it drew."""
    chance = random.Random(seed)
    canvases = [draw_canvas(len(one.answer), 24, chance) for one in EXAMPLES]
    return diffusion_batch(EXAMPLES, DiffusionShape(True), random.Random(seed), complementary), canvases


@pytest.mark.parametrize("seed", range(12))
def test_every_token_of_an_answer_is_masked_in_one_of_two_rows(seed: int) -> None:
    """LaViDa's complementary masks; what is known before the canvas is masked in none."""
    batch, canvases = pairs(seed=seed)
    for index, (one, canvas) in enumerate(zip(EXAMPLES, canvases, strict=True)):
        first, second = (batch.tokens[2 * index + row].tolist() for row in (0, 1))
        start = len(one.prompt)
        assert first[:start] == second[:start] == one.prompt
        text = [*one.answer, *[END] * 40][: canvas.length]
        for place, token in enumerate(text):
            shown = [row[start + place] for row in (first, second)]
            assert sorted(shown) == sorted([token, MASK] if place > canvas.known else [token, token])


@pytest.mark.parametrize("complementary", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_row_predicts_the_masked_token_behind_it(seed: int, complementary: bool) -> None:
    batch, canvases = pairs(complementary, seed)
    for row in range(len(batch.tokens)):
        one, canvas = EXAMPLES[row // 2], canvases[row // 2]
        text, start = [*one.prompt, *one.answer, *[END] * 40], len(one.prompt)
        for place in range(batch.tokens.shape[1]):
            behind = place + 1
            asked = start + canvas.known == behind or (
                behind < batch.tokens.shape[1] and int(batch.tokens[row, behind]) == MASK
            )
            assert int(batch.targets[row, place]) == (text[behind] if asked else IGNORED)
            assert (float(batch.weights[row, place]) > 0) == asked


def test_what_a_row_sees() -> None:
    visible = sight(10, 4, 6, 9)
    for row in range(10):
        seen = 4 if row < 4 else 6 if row < 6 else 9
        assert visible[row].tolist() == [place < seen for place in range(10)]


def test_the_loss_by_hand() -> None:
    """Σ of −log p of masked tokens, each over its rate and the canvas's free places; the mean over rows."""
    decoder = _fresh(1)
    batch, _ = pairs(seed=5)
    with torch.no_grad():
        found = float(loss_of(decoder, batch))
        logits = _all_logits(decoder, batch)
    total = 0.0
    for row in range(len(batch.tokens)):
        for place in range(batch.tokens.shape[1]):
            target = int(batch.targets[row, place])
            if target != IGNORED:
                total -= float(logits[row, place].log_softmax(-1)[target]) * float(batch.weights[row, place])
    assert abs(found - total / (2 * len(batch.tokens))) < 1e-4


def _all_logits(decoder: Decoder, batch: Batch) -> torch.Tensor:
    """[sequences, length, vocabulary], sequence by sequence with its own mask."""
    config, out = decoder.config, []
    groups = config.heads // config.kv_heads
    for tokens, visible in zip(batch.tokens, batch.visible, strict=True):

        def attend(
            layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor = visible
        ) -> torch.Tensor:
            keys, values = (part.repeat_interleave(groups, 1) for part in (key, value))
            scores = torch.einsum("nhd,shd->hns", query, keys) * config.query_scale
            scores = scores.masked_fill(~seen, -1e30)
            return torch.einsum("hns,shd->nhd", scores.softmax(-1), values)

        hidden = decoder.embed(tokens)
        for layer in range(len(config.layers)):
            hidden = decoder.layer(layer, hidden, torch.arange(len(tokens)), attend, len(tokens))
        out.append(decoder.logits(hidden))
    return torch.stack(out)


def test_weights_are_one_over_the_rate() -> None:
    chance = random.Random(3)
    canvases = [draw_canvas(len(one.answer), 24, chance) for one in EXAMPLES]
    batch, _ = pairs(seed=3)
    for index, canvas in enumerate(canvases):
        free = canvas.length - canvas.known - 1
        start = len(EXAMPLES[index].prompt) + canvas.known
        for row, rate in ((2 * index, canvas.rate), (2 * index + 1, max(LEAST_RATE, 1 - canvas.rate))):
            masked = batch.weights[row, start:]
            assert all(abs(float(own) - 1 / (rate * free)) < 1e-3 / rate for own in masked[masked > 0])


def test_at_least_one_token_is_masked() -> None:
    assert all(sum(draw_masks(5, 0.001, random.Random(seed))) == 1 for seed in range(20))
    shares = [sum(draw_masks(40, 0.3, random.Random(seed))) / 40 for seed in range(200)]
    assert 0.27 < sum(shares) / 200 < 0.33


def test_causal_rows_predict_answers_alone() -> None:
    batch = causal_batch(EXAMPLES)
    assert batch.targets[0].tolist() == [IGNORED] * 5 + [10, 11, 12, END] + [IGNORED] * 3
    assert batch.visible[0].tolist() == torch.ones(12, 12).tril().bool().tolist()


def test_a_training_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    settings = Settings(first=2, second=3, examples=2)
    for folder, kills in ((tmp_path / "whole", False), (tmp_path / "killed", True)):
        stage = Stage("diffusion", _fresh(0), settings, 3, folder)
        if kills:
            stage._step()
            stage._save()
            stage = Stage("diffusion", _fresh(0), settings, 3, folder)
            assert stage.progress.step == 1
        stage.run()
        torch.save(stage.decoder.state_dict(), folder / "end.pt")
    one, two = (torch.load(tmp_path / name / "end.pt") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_short_training_writes_both_models(tmp_path: Path) -> None:
    train(tmp_path, Settings(first=1, second=1, examples=2))
    diffusion, twin = load(tmp_path / "diffusion"), load(tmp_path / "twin")
    assert (diffusion.config.family, diffusion.config.mask_id) == ("Dream", MASK)
    assert (twin.config.family, twin.config.mask_id) == ("llama", None)
    assert diffusion.nbytes == twin.nbytes
    tokenizer = diffusion.require_tokenizer()
    assert tokenizer.decode(tokenizer.encode("sort g a c =")) == "sort g a c ="


def test_items_are_right_to_the_letter_and_never_trained_on() -> None:
    item = Item("sort", ("g", "a", "c"))
    assert item.right(" a c g") and not item.right(" a g c") and not item.right(" a c") and not item.right(" a c g g")
    assert Item("flip", ("g", "a", "c")).right(" c a g")
    mix = Item("mix", ("g", "a", "c"))
    assert mix.right(" c g a") and mix.right(" a c g") and not mix.right(" a a c")
    chance = random.Random(0)
    trained = {draw(chance, held_out=False).prompt for _ in range(300)}
    assert not trained & {own.prompt for own in judged(100, 0)} and len(set(judged(100, 0))) == 100
    assert all(own.held_out for own in judged(20, 1))


@pytest.mark.parametrize(("name", "least"), [("letters-diffusion", 0.5), ("letters-twin", 0.6)])
def test_the_packaged_models_answer(name: str, least: float) -> None:
    assert MODELS[name].original == "training/diffusion"
    engine = Engine(load(name), threads=1)
    try:
        made = answers(engine, judged(40, "packaged"))
    finally:
        engine.close()
    assert sum(own.right for own in made) / len(made) >= least
    if name == "letters-twin":
        assert all(own.passes == own.tokens for own in made)


def test_vocabulary_is_within_the_models_matrix() -> None:
    words = build_tokenizer().get_vocab()
    assert len(words) <= DiffusionShape(True).vocabulary and words["<mask>"] == MASK and words["</s>"] == END
