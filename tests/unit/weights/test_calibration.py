"""Techniques with calibration: what a linear is shown, and that every door to the model shows it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tests.searches import LOOSE, MACHINE, fitted
from tests.tiny import tiny_model

from thrifty import Thrifty, registry
from thrifty.api import open_engine, open_model
from thrifty.arrays import Floats
from thrifty.claims.harness.context import Context
from thrifty.errors import RecipeError
from thrifty.evaluation.engines import Engines
from thrifty.evaluation.text import prose
from thrifty.formats.linear import DenseLinear, PackedLinear
from thrifty.frontier.candidates import Candidate, Grid
from thrifty.frontier.fit import BASE
from thrifty.models.model import Model
from thrifty.recipe import Recipe
from thrifty.reference.attention import causal
from thrifty.reference.decoder import Decoder
from thrifty.reference.layer_inputs import LayerInputs
from thrifty.reference.loading import build
from thrifty.weights import calibration
from thrifty.weights.calibration import Activations, CalibrationSet, default_calibration
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import WeightTechnique, prepare

TEXT = CalibrationSet("numbers", np.array([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]], np.int64))
TECHNIQUE = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from thrifty.card import Card
from thrifty.formats.linear import GroupLinear
from thrifty.registry import technique
from thrifty.weights.technique import WeightTechnique


@technique(stage="weights", card=Card(title="T", paper="none", year=2026, mechanism="m", claim="c"))
@dataclass(frozen=True, kw_only=True)
class BetterRounding(WeightTechnique):
    """Of codes with and without a minimum, those that change a layer's outputs on the calibration text less."""

    needs_calibration: ClassVar[bool] = True

    def compress(self, linear, calibration):
        exact = calibration.inputs @ linear.linear.dequantize().T
        forms = [GroupLinear.requantize(linear.linear, 4, 32, symmetric) for symmetric in (True, False)]
        return min(forms, key=lambda form: float(np.abs(calibration.inputs @ form.dequantize().T - exact).sum()))
'''


@dataclass(frozen=True, kw_only=True)
class Halving(WeightTechnique):
    """Keeps what it was shown, and halves the weights: whatever comes later sees another input."""

    needs_calibration: ClassVar[bool] = True
    name: ClassVar[str] = "halving"

    shown: dict[str, Floats] = dataclasses.field(default_factory=dict)
    everything: bool = False

    def covers(self, linear: LinearInfo) -> bool:
        return self.everything or super().covers(linear)

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        assert calibration is not None
        self.shown[linear.name] = calibration.inputs.copy()
        return DenseLinear.from_weight(linear.linear.dequantize() / 2, bias=linear.linear.bias)


@contextmanager
def watched(decoder: Decoder, name: str) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    module = decoder.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2)))
    try:
        yield seen
    finally:
        handle.remove()


def inputs_of(model: Model, name: str) -> Floats:
    """What a linear reads while whole sequences pass the whole model."""
    decoder = build(model).decoder
    with watched(decoder, name) as seen, torch.no_grad():
        for tokens in torch.from_numpy(TEXT.sequences):
            decoder(tokens, torch.arange(len(tokens)), causal(model.config))
    width = model.linears[name].in_features
    return torch.cat(seen).numpy() if seen else np.empty((0, width), np.float32)


def test_every_linear_is_shown_what_it_reads_after_those_before_it_changed(model: Model) -> None:
    technique = Halving(everything=True)
    prepare(model, [technique], calibration=TEXT)
    changing = dataclasses.replace(model, linears=dict(model.linears))
    for linear in linears(changing):
        if linear.name == "embedding":
            tied = model.config.tied_embeddings
            assert len(technique.shown["embedding"]) == (TEXT.sequences.size if tied else 0)
        else:
            expected = inputs_of(changing, linear.name)
            assert np.allclose(technique.shown[linear.name], expected, atol=1e-5), linear.name
        half = DenseLinear.from_weight(linear.linear.dequantize() / 2, bias=linear.linear.bias)
        changing.replace(linear.name, half)


def test_a_tied_embedding_is_shown_what_the_logits_are_made_of(plain: Model) -> None:
    shown = LayerInputs(plain, TEXT.sequences)("embedding")
    assert np.allclose(shown, inputs_of(plain, "embedding"), atol=1e-5)


def test_each_technique_sees_the_model_that_those_before_left(plain: Model) -> None:
    """Also where the one between changes the embedding, before the first layer."""
    first, second = Halving(layers=(0,)), Halving(layers=(0,))
    rtn = registry.build("weights", {"technique": "rtn", "embedding_bits": 4, "layers": [1]})
    prepare(plain, [first, rtn, second], calibration=TEXT)
    before = prepare(plain, [rtn])
    name = "layers.0.attention.query"
    assert np.allclose(first.shown[name], inputs_of(plain, name), atol=1e-5)
    assert np.allclose(second.shown[name], inputs_of(before, name), atol=1e-5)
    assert not np.array_equal(first.shown[name], second.shown[name])


def test_it_holds_one_hidden_state_and_the_inputs_of_one_place(plain: Model) -> None:
    shown = LayerInputs(plain, TEXT.sequences)
    passes = []
    for linear in linears(plain):
        if linear.layer is not None:
            with watched(shown._decoder, "layers.1.attention.output") as seen:
                shown(linear.name)
            passes.append(len(seen))
            assert set(shown._kept) <= {f"layers.{linear.layer}.attention.{role}" for role in ("key", "value")} | {
                f"layers.{linear.layer}.mlp.up"
            }
    assert shown._hidden.shape == (2, 8, plain.config.hidden_size)
    assert sum(passes) == 3, "output, gate and down of a layer: one pass each; that for query ends before"


def test_sequences_that_pass_together_give_what_single_ones_do(model: Model) -> None:
    """Of every architecture, a mixture's experts and recurrent layers included."""
    together, single = LayerInputs(model, TEXT.sequences), LayerInputs(model, TEXT.sequences, workspace=1)
    for linear in linears(model):
        shown, expected = together(linear.name), single(linear.name)
        assert shown.shape == expected.shape, linear.name
        assert np.allclose(shown, expected, rtol=1e-5, atol=1e-5), linear.name


def test_the_workspace_bounds_how_many_sequences_pass_together(plain: Model) -> None:
    text = np.tile(TEXT.sequences, (4, 1))
    narrow = LayerInputs(plain, text, workspace=1)
    narrow("layers.0.attention.query")
    assert [len(part) for part in narrow._batches(0)] == [1] * 8, "at least one"
    config = plain.config
    heads, kv_heads, head_dim = config.widths(0)
    values = 4 * config.hidden_size + 3 * config.inner(0) + 2 * (heads + kv_heads) * head_dim
    narrow.workspace = 3 * 8 * 4 * values
    assert [len(part) for part in narrow._batches(0)] == [3, 3, 2]


def test_the_version_names_the_calibration(plain: Model) -> None:
    technique = Halving()
    version = prepare(plain, [technique], calibration=TEXT).version
    assert version.startswith(f"{plain.version}+halving(") and "[numbers:2x8:" in version
    other = CalibrationSet("numbers", TEXT.sequences + 1)
    assert prepare(plain, [technique], calibration=other).version != version
    assert "numbers" not in prepare(plain, [registry.build("weights", {"technique": "rtn"})], calibration=TEXT).version


def test_without_a_tokenizer_the_text_is_asked_for(plain: Model) -> None:
    with pytest.raises(RecipeError, match="needs a tokenizer and this model has none: pass a CalibrationSet"):
        prepare(plain, [Halving()])
    assert prepare(plain, []) is plain


def test_the_default_text_is_long_enough_and_scored_by_nothing() -> None:
    model = tiny_model()
    chosen = default_calibration(model)
    assert chosen.sequences.shape == (calibration.SEQUENCES, calibration.TOKENS)
    assert chosen.label.startswith("thrifty-docs:16x256:")
    short = default_calibration(tiny_model(context_length=40))
    assert short.sequences.shape == (16, 40)
    scored, text = prose(), calibration._text()
    lines = [line for line in text.splitlines() if line]
    assert len(text) > 20_000 and not any(line[:80] in scored for line in lines)


def test_a_tokenizer_that_makes_nothing_of_the_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_text", lambda: "a")
    with pytest.raises(RecipeError, match="makes 1 tokens of the calibration text; it must make at least 2"):
        default_calibration(tiny_model())


def install(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The table of a calibrated technique of another package."""
    (tmp_path / "better_rounding.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "better_rounding", raising=False)
    point = importlib.metadata.EntryPoint(
        "weights.better-rounding", "better_rounding:BetterRounding", registry.ENTRY_POINT_GROUP
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    assert "better-rounding" in registry.names("weights")
    return {"technique": "better-rounding"}


@pytest.fixture
def better_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a technique whose bytes depend on the text."""
    return install(TECHNIQUE, tmp_path, monkeypatch)


def by_evaluation(model: Model, recipe: Recipe) -> Model:
    engines = Engines(threads=1)
    with engines.open(model) as baseline, engines.beside(baseline, recipe) as engine:
        return engine.model


def by_claims(model: Model, recipe: Recipe) -> Model:
    with Context(model, "tiny", threads=1) as context:
        engine = context.fresh(model, recipe)
        engine.close()
        return engine.model


DOORS: dict[str, Callable[[Model, Recipe], Model]] = {
    "prepare": lambda model, recipe: prepare(model, recipe.techniques("weights")),
    "Thrifty": lambda model, recipe: Thrifty(model, recipe=recipe).model,
    "open_model": open_model,
    "open_engine": lambda model, recipe: open_engine(model, recipe).model,
    "evaluation": by_evaluation,
    "claims": by_claims,
}


@pytest.mark.parametrize("door", sorted(DOORS))
def test_a_recipe_with_a_calibrated_technique_runs(better_rounding: dict[str, Any], door: str) -> None:
    model = tiny_model(layers=1, context_length=40)
    compressed = DOORS[door](
        model, Recipe(weights=[better_rounding, {"technique": "rtn", "skip": ["layers.*"], "embedding_bits": 8}])
    )
    labels = {linear.name: linear.linear.label for linear in linears(compressed)}
    assert all(label.startswith("int4-g32") for name, label in labels.items() if name != "embedding")
    assert "+better-rounding(" in compressed.version and "[thrifty-docs:" in compressed.version
    assert compressed.nbytes < model.nbytes


def test_another_text_goes_through_the_front_door(better_rounding: dict[str, Any]) -> None:
    model, recipe = tiny_model(layers=1, context_length=40), Recipe(weights=[better_rounding])
    assert "[numbers:2x8:" in open_model(model, recipe, calibration=TEXT).version
    engine = open_engine(model, recipe, calibration=TEXT, prefix_tree=False)
    assert "[numbers:2x8:" in engine.model.version
    engine.close()


@pytest.mark.parametrize("by_shape", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_search_measures_what_it_can_predict(by_shape: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a calibrated technique: whose bytes follow from shapes. Another is left out, and the reason is told."""
    monkeypatch.setattr("thrifty.frontier.workshop.this_machine", lambda threads, sparing: MACHINE)
    source = TECHNIQUE
    if by_shape:
        flags = "needs_calibration: ClassVar[bool] = True"
        source = source.replace(flags, f"{flags}\n    bytes_need_calibration: ClassVar[bool] = False")
        source = source.replace("for symmetric in (True, False)", "for symmetric in (False,)")
    recipe = Recipe(weights=[install(source, tmp_path, monkeypatch)])
    wanted = Candidate(recipe, Grid.ON)
    fit = fitted(tiny_model(packed=True), LOOSE, [BASE, wanted])
    keys = {row.candidate.key for row in fit.rows()}
    if by_shape:
        assert keys == {BASE.key, wanted.key} and not fit.skipped
        engine = open_engine(fit.question.model, recipe)
        assert fit.predictions[wanted.key].need.weights == engine.model.nbytes
        engine.close()
    else:
        ((skipped, reason),) = fit.skipped
        assert keys == {BASE.key} and skipped is wanted and "not known before it ran: it needs calibration" in reason
