"""PuzzleMoE: its masks against plain loops, what its pairs hold, and what it does to a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thrifty import registry
from thrifty.arrays import BFLOAT16, Floats
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear, PairedLinear
from thrifty.models import load
from thrifty.models.compressed.layout import WEIGHTS
from thrifty.models.model import Model, random_model
from thrifty.recipe import Recipe
from thrifty.reference.loading import build
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.compressing.pipeline import compress
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.puzzlemoe import merge

TOKENS = CalibrationSet("random", np.random.default_rng(0).integers(0, 50, (4, 16)))
EXPERTS = [f"layers.1.mlp.experts.{part}.{number}" for part in ("gate", "up", "down") for number in range(4)]


def puzzlemoe(**options: Any) -> Any:
    return registry.build("weights", {"technique": "puzzlemoe"} | options)


def merged(model: Model, **options: Any) -> Model:
    return prepare(model, [puzzlemoe(**options)], calibration=TOKENS)


def random(*shape: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("similarity", [0.0, 0.4, 1.0])
def test_masks_and_magnitudes_are_those_of_the_paper(similarity: float) -> None:
    first, second = random(12, 20, seed=0), random(12, 20, seed=1)
    strengths = np.abs(random(20, seed=2)), np.abs(random(20, seed=3))
    first[0, 0] = second[0, 0] = 0
    found = merge(first, second, *strengths, similarity)
    for row in range(12):
        for column in range(20):
            a, b = abs(float(first[row, column])), abs(float(second[row, column]))
            difference = abs(a - b) / (a + b) if a + b else 0.0
            wins = a * strengths[0][column] >= b * strengths[1][column]
            similar = difference <= similarity
            magnitude = (a + b) / 2 if similar else a if wins else b
            assert found.magnitude[row, column] == pytest.approx(magnitude, rel=1e-6)
            assert found.has[0][row, column] == (similar or wins)
            assert found.has[1][row, column] == (similar or not wins)


def test_two_equal_experts_lose_nothing_but_their_bits() -> None:
    weight, ones = random(8, 8, seed=0), np.ones(8, np.float32)
    found = merge(weight, weight, ones, ones, 0.4)
    linears = PairedLinear.pair(found.magnitude, (weight < 0, weight < 0), found.has)
    for linear in linears:
        assert np.array_equal(linear.dequantize(), weight.astype(BFLOAT16).astype(np.float32))


def test_experts_share_words_two_by_two_and_nothing_else_changes(experts: Model) -> None:
    small = merged(experts)
    assert {name for name, linear in small.linears.items() if linear is not experts.linears[name]} == set(EXPERTS)
    words: dict[int, list[str]] = {}
    for name in EXPERTS:
        linear = small.linears[name]
        assert isinstance(linear, PairedLinear)
        words.setdefault(id(linear.words), []).append(name)
    assert sorted(map(len, words.values())) == [2] * 6
    stored = sum(small.linears[name].nbytes for name in EXPERTS)
    assert stored == sum(experts.linears[name].nbytes for name in EXPERTS) // 4  # of fp32: 8 bits a weight
    report = {entry.name: entry for entry in small.report}
    assert report[EXPERTS[0]].format == "paired" and 0 < report[EXPERTS[0]].error < 1
    assert small.version != experts.version


def test_a_pair_is_the_same_of_gate_up_and_down_and_drawn_by_the_seed(experts: Model) -> None:
    def partner(model: Model, part: str) -> list[int]:
        own = [model.linears[f"layers.1.mlp.experts.{part}.{number}"] for number in range(4)]
        return [next(b for b in range(4) if b != a and own[b].words is own[a].words) for a in range(4)]  # type: ignore[attr-defined]

    small = merged(experts)
    assert partner(small, "gate") == partner(small, "up") == partner(small, "down")
    others = {tuple(partner(merged(experts, seed=seed), "gate")) for seed in range(6)}
    assert len(others) > 1
    order = puzzlemoe().pairs(1, 8)
    assert sorted(expert for pair in order for expert in pair) == list(range(8)) and order == puzzlemoe().pairs(1, 8)


def test_what_an_expert_reads_decides_what_it_keeps(experts: Model) -> None:
    """Salience is |W|·‖X‖₂ of the tokens that were sent to the expert, written out with the reference decoder."""
    seen: dict[str, list[Floats]] = {}
    decoder = build(experts).decoder
    for name in EXPERTS:
        decoder.get_submodule(name).register_forward_pre_hook(
            lambda module, given, name=name: seen.setdefault(name, []).append(given[0].detach().numpy())
        )
    for row in TOKENS.sequences:
        build_logits(decoder, row)
    small = merged(experts, similarity=0.0)
    first, second = puzzlemoe().pairs(1, 4)[0]
    for part in ("gate", "up", "down"):
        names = [f"layers.1.mlp.experts.{part}.{expert}" for expert in (first, second)]
        strengths = [np.sqrt(np.square(np.concatenate(seen[name])).sum(0)) for name in names]
        a, b = (np.abs(experts.linears[name].dequantize()) for name in names)
        wins = a * strengths[0] >= b * strengths[1]
        close = np.isclose(a * strengths[0], b * strengths[1], rtol=1e-4)
        kept = small.linears[names[0]].dequantize() != 0
        tiny = np.maximum(a, b) < 2.0**-16
        assert (kept == wins)[~close & ~tiny].all()


def build_logits(decoder: Any, row: Any) -> None:
    import torch

    from thrifty.reference.attention import causal

    with torch.no_grad():
        decoder(torch.from_numpy(row), torch.arange(len(row)), causal(decoder.config))


def test_layers_may_be_left_alone(experts: Model) -> None:
    assert not any(isinstance(linear, PairedLinear) for linear in merged(experts, layers=[0]).linears.values())
    assert not any(isinstance(linear, PairedLinear) for linear in merged(experts, skip=["*.down.2"]).linears.values())


def test_what_it_cannot_merge_is_said(plain: Model, experts: Model) -> None:
    with pytest.raises(RecipeError, match="technique 'puzzlemoe' merges experts, and this tiny model has none"):
        merged(plain)
    assert experts.config.experts is not None
    odd = dataclasses.replace(experts.config, experts=dataclasses.replace(experts.config.experts, count=5))
    with pytest.raises(RecipeError, match="two by two; this model has 5 a layer"):
        merged(random_model(odd))
    broken = experts.linears[EXPERTS[0]].dequantize()
    broken[0, 0] = np.inf
    experts.replace(EXPERTS[0], DenseLinear.from_weight(broken))
    with pytest.raises(KernelError, match=EXPERTS[0]):
        merged(experts)


def test_a_folder_holds_the_words_of_a_pair_once(experts: Model, tmp_path: Path) -> None:
    """And what is loaded from it shares them again."""
    small = merged(experts)
    recipe = Recipe(weights=[{"technique": "puzzlemoe"}])
    told: list[tuple[int, int]] = []
    copy = dataclasses.replace(experts, linears=dict(experts.linears))
    compress(copy, recipe, tmp_path / "out", calibration=TOKENS, watch=lambda done, all: told.append((done, all)))
    assert told == [(0, 2), (1, 2), (2, 2)], "a layer of experts, and the end"
    loaded = load(tmp_path / "out")
    assert loaded.nbytes == small.nbytes
    file = tmp_path / "out" / WEIGHTS
    assert file.stat().st_size < small.nbytes * 1.05 + 40_000
    first, second = puzzlemoe().pairs(1, 4)[0]
    names = [f"layers.1.mlp.experts.up.{expert}" for expert in (first, second)]
    pair = [loaded.linears[name] for name in names]
    assert np.may_share_memory(*(linear.words for linear in pair))  # type: ignore[attr-defined]
    for name in EXPERTS:
        assert np.array_equal(loaded.linears[name].dequantize(), small.linears[name].dequantize())
