"""AMP: scores against the paper's sums written out, what is left, what the share means, recovery."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, PLAIN, build

from thrifty import registry
from thrifty.arrays import BFLOAT16, Floats
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.model import Model
from thrifty.reference.layer_inputs import LayerInputs
from thrifty.reference.loading import build as build_reference
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.results import Results
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.amp import AMP, head_importance, kept_heads, neuron_importance, sizes

TEXT = CalibrationSet("numbers", np.random.default_rng(0).integers(0, 50, (4, 12)))


def amp(**options: Any) -> AMP:
    made: AMP = registry.build("weights", {"technique": "amp"} | options)
    return made


def pruned(model: Model, **options: Any) -> Model:
    return prepare(model, [amp(**options)], calibration=TEXT)


def block_weights(model: Model) -> int:
    """Of attention and MLP."""
    return sum(one.in_features * one.out_features for name, one in model.linears.items() if name.startswith("layers."))


def loss(model: Model) -> float:
    """Mean negative log-likelihood of the text."""
    reference, total = build_reference(model), 0.0
    for row in TEXT.sequences:
        logits = reference.logits(row).numpy()[:-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(row) - 1), row[1:]] - np.log(np.exp(logits).sum(axis=1))
        total -= float(chosen.mean())
    return total / len(TEXT.sequences)


def test_a_head_is_scored_by_what_it_adds_to_the_hidden_state() -> None:
    random = np.random.default_rng(1)
    inputs, output = random.standard_normal((7, 12), np.float32), random.standard_normal((5, 12), np.float32)
    slow = np.zeros(3)
    for head in range(3):
        for token in range(7):
            for channel in range(5):
                added = sum(float(inputs[token, 4 * head + i]) * float(output[channel, 4 * head + i]) for i in range(4))
                slow[head] += abs(added) / 7
    np.testing.assert_allclose(head_importance(inputs, output, 3), slow, rtol=1e-5)
    by_neuron = [sum(abs(float(row[i])) for row in inputs) / 7 for i in range(12)]
    np.testing.assert_allclose(neuron_importance(inputs), by_neuron, rtol=1e-5)


def test_grouped_queries_keep_equally_many_or_whole_groups() -> None:
    importance = np.array([5, 1, 2, 9, 8, 7, 3, 4, 0], np.float32)
    assert kept_heads(importance, 6, 3, "each").tolist() == [0, 2, 3, 4, 6, 7]
    assert kept_heads(importance, 6, 3, "whole").tolist() == [0, 1, 2, 3, 4, 5]
    assert kept_heads(importance, 4, 9, "each").tolist() == [0, 3, 4, 5], "a KV head a query head: the best"


def test_what_stays_is_what_scores_highest(plain: Model) -> None:
    left = pruned(plain, share=0.5)
    inputs = LayerInputs(plain, TEXT.sequences)
    for layer in range(2):
        name = f"layers.{layer}.mlp.down"
        scores = np.abs(inputs(name)).mean(axis=0)
        kept = np.sort(np.argsort(-scores)[: left.config.intermediate_size])
        assert np.array_equal(left.linears[name].dequantize(), plain.linears[name].dequantize()[:, kept])
    assert (left.config.heads, left.config.kv_heads) == (2, 2)


@pytest.mark.parametrize("kv_heads", ["each", "whole"])
@pytest.mark.parametrize("heads", [True, False])
@pytest.mark.parametrize("name", ["plain", "gemma-like", "full-norm", "untied-biased"])
def test_the_share_of_the_weights_goes(name: str, heads: bool, kv_heads: str) -> None:
    model = build(CONFIGS[name])
    share = 0.3
    left = pruned(model, share=share, heads=heads, kv_heads=kv_heads)
    neuron = 3 * model.config.hidden_size * len(model.config.layers)
    assert abs(block_weights(left) - (1 - share) * block_weights(model)) <= neuron / 2 + 1
    assert build_reference(left).logits([1, 2, 3]).shape == (3, 50)
    if not heads:
        assert left.config.heads == model.config.heads
    assert "~amp(" in left.version and "[numbers:" in left.version


def test_heads_of_one_kv_head_each_go_one_by_one() -> None:
    config = dataclasses.replace(PLAIN, heads=4, kv_heads=4)
    assert sizes(config, 0.25, True, "each")[0] == 3


def test_recovery_learns_and_keeps_the_type(plain: Model) -> None:
    for name in plain.linears:
        plain.replace(name, DenseLinear.from_weight(plain.linears[name].dequantize(), BFLOAT16, packed=True))
    damaged = pruned(plain, share=0.4)
    healed = pruned(plain, share=0.4, recovery=12, rate=0.02, dropout=0.0)
    assert loss(healed) < loss(damaged) - 0.05
    labels = {name: (one.label, one.packed) for name, one in healed.linears.items() if isinstance(one, DenseLinear)}
    assert set(labels.values()) == {("bf16", True)} and set(labels) == set(plain.linears)
    entries = {entry.name: entry for entry in healed.report}
    assert all(entry.format == "bf16" for entry in entries.values())


def test_recovery_from_the_whole_models_predictions(plain: Model) -> None:
    def apart(model: Model) -> float:
        found, wanted = (build_reference(one).logits(TEXT.sequences[0]).numpy() for one in (model, plain))
        return float(np.abs(found - wanted).mean())

    damaged, healed = pruned(plain, share=0.4), pruned(plain, share=0.4, recovery=12, rate=0.02, distil=True)
    assert apart(healed) < 0.95 * apart(damaged)


@pytest.mark.long
def test_a_recovery_that_was_stopped_goes_on_to_the_same_bits(plain: Model, tmp_path: Path) -> None:
    options = [amp(share=0.4, recovery=25, rate=0.01)]
    whole = prepare(plain, options, calibration=TEXT)
    results = Results()
    results.folder = tmp_path
    left = 22

    def stop() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(plain, options, calibration=TEXT, before=stop, results=results)
    assert len(list(tmp_path.iterdir())) == 1
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    resumed = prepare(plain, options, calibration=TEXT, before=count, results=results)
    assert steps == 1 + 5, "20 of 25 steps were on the disk"
    for name, linear in whole.linears.items():
        assert np.array_equal(linear.dequantize(), resumed.linears[name].dequantize()), name


def test_what_it_cannot_prune_is_refused(experts: Model, plain: Model) -> None:
    with pytest.raises(
        RecipeError, match=r"have no experts and are as wide as the model; layers\.1 is of another kind"
    ):
        pruned(experts)
    with pytest.raises(RecipeError, match=r"a share of 0\.85 takes \d+ neurons of 160: use a smaller share, or let"):
        pruned(plain, share=0.85, heads=False)
    with pytest.raises(RecipeError, match="option 'share'"):
        amp(share=1.0)


def test_recovered_codes_become_plain_numbers_for_a_technique_behind_it(plain: Model) -> None:
    for name in plain.linears:
        plain.replace(name, GroupLinear.quantize(plain.linears[name].dequantize(), 8, 32))
    rtn = registry.build("weights", {"technique": "rtn", "bits": 8})
    recovering = amp(share=0.4, recovery=1)
    healed = prepare(plain, [recovering], calibration=TEXT)
    assert {one.label for name, one in healed.linears.items() if name != "embedding"} == {"f32"}
    rounded = prepare(plain, [recovering, rtn], calibration=TEXT)
    assert {one.label for one in rounded.linears.values()} == {"int8-g32"}


def test_scores_are_plain_numbers(plain: Model) -> None:
    """A layer with NaN makes importances NaN: refused, not chosen by chance."""
    weight: Floats = plain.linears["layers.0.mlp.up"].dequantize().copy()
    weight[3] = np.nan
    plain.replace("layers.0.mlp.up", DenseLinear.from_weight(weight))
    with pytest.raises(RecipeError, match=r"layers\.0\.mlp\.down reads numbers that are NaN or infinite"):
        pruned(plain)


def test_the_report_tells_how_far_recovery_moved_the_weights(plain: Model) -> None:
    cut, healed = pruned(plain, share=0.4), pruned(plain, share=0.4, recovery=2, rate=0.02)
    report = {entry.name: entry for entry in healed.report}
    for name in cut.linears:
        before, after = cut.linears[name].dequantize(), healed.linears[name].dequantize()
        if name.startswith("layers."):
            moved = np.linalg.norm(after - before) / np.linalg.norm(before)
            assert moved > 0 and report[name].error == pytest.approx(moved, rel=1e-3), name
