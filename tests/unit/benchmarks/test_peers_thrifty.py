"""Thrifty's side of the comparison on a tiny file: what is counted, and which row predicts what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.comparison.variants import FOUR_BIT_LOGITS, MAIN, variants
from benchmarks.peer_engines.protocol import Specification
from benchmarks.peer_engines.reference import write_reference
from benchmarks.peer_engines.thrifty import ThriftyEngine
from benchmarks.peer_engines.worker import random_prompts
from tests import gguf_files

from thrifty import reference
from thrifty.models.loading import load
from thrifty.recipe import Recipe
from thrifty.weights.structure import linears
from thrifty.weights.technique import prepare


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    return gguf_files.tiny(tmp_path / "tiny.gguf")


@pytest.fixture
def engine(file: Path) -> ThriftyEngine:
    return ThriftyEngine(Specification(str(file), 1, {"native": False}))


@pytest.mark.parametrize("batch", [1, 3])
def test_every_decoded_token_is_counted(engine: ThriftyEngine, batch: int) -> None:
    found = engine.measure(random_prompts(engine.vocabulary, 9, batch, seed=1), 5, reuse=False)
    assert (found.prefill_tokens, found.decode_tokens) == (9 * batch, 5 * batch)
    assert found.prefill_s and found.decode_s > 0
    assert found.bytes_per_token and found.bytes_per_token > 0
    assert not engine._engine.busy


def test_the_first_token_is_the_best_one(engine: ThriftyEngine, file: Path) -> None:
    prompt = list(range(5, 21))
    assert engine.first_token(prompt) == int(reference.load(file).logits(prompt)[-1].argmax())


def test_logits_are_those_after_the_last_tokens(engine: ThriftyEngine, file: Path) -> None:
    tokens = list(range(40, 60))
    found = engine.logits(tokens, 6)
    assert np.allclose(found, reference.load(file).logits(tokens)[-6:].numpy(), atol=5e-3)


def test_the_reference_is_the_files_own_predictions(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "reference.npz"
    write_reference(str(file), str(target), prefix=20, scored=8, threads=1)
    with np.load(target) as held:
        tokens, logits = held["tokens"], held["logits"]
    assert (tokens.shape, logits.shape) == ((28,), (8, 262))
    assert np.allclose(logits, reference.load(file).logits(tokens.tolist())[-8:].numpy(), rtol=0.05, atol=0.05)


def test_the_variant_of_the_ratios_changes_the_logits_matrix_only(file: Path) -> None:
    model = load(file)
    recipe = Recipe.from_document(variants(["thrifty"], 6144)[0].options["recipe"])
    assert recipe.weights == [FOUR_BIT_LOGITS] and variants(["thrifty"], 6144)[0].name == MAIN
    (technique,) = recipe.techniques("weights")
    labels = {linear.name: linear.linear.label for linear in linears(prepare(model, [technique]))}
    assert labels.pop("embedding") == "int4-g32"
    assert set(labels.values()) == {"bf16"}
