"""SmoothQuant+: its formula written out, the search, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import KernelError, RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.model import Model
from thrifty.reference.loading import build as build_reference
from thrifty.weights.calibration import Activations, CalibrationSet, seen
from thrifty.weights.groups import groups
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import prepare
from thrifty.weights.techniques import smoothquant_plus
from thrifty.weights.techniques.smoothquant_plus import SmoothQuantPlus, peaks_of, smoothing

TEXT = CalibrationSet("numbers", np.random.default_rng(0).integers(0, 50, (2, 12), np.int64))


def technique(**options: Any) -> SmoothQuantPlus:
    made = registry.build("weights", {"technique": "smoothquant-plus"} | options)
    assert isinstance(made, SmoothQuantPlus)
    return made


def logits(model: Model) -> Floats:
    reference = build_reference(model)
    return np.concatenate([reference.logits(row.tolist()).numpy() for row in TEXT.sequences])


def test_the_scale_is_the_papers_written_out(plain: Model) -> None:
    group = next(group for group in groups(plain) if group.source.name == "layers.1.attention_norm")
    inputs = np.random.default_rng(1).standard_normal((7, 96)).astype(np.float32)
    inputs[:, 5] = 0
    scale = smoothing(peaks_of(Activations(inputs)), group, 0.35)
    weights = [reader.linear.dequantize() for reader in group.readers]
    for channel in range(96):
        largest_input = max(abs(float(row[channel])) for row in inputs)
        largest_weight = max(abs(float(row[channel])) for weight in weights for row in weight)
        expected = max(largest_input**0.35 / largest_weight ** (1 - 0.35), 1e-5)
        assert float(scale[channel]) == pytest.approx(expected, rel=1e-5), channel
    assert len(weights) == 3 and scale[5] == np.float32(1e-5)


def test_norms_are_divided_and_all_linears_rounded(plain: Model) -> None:
    stored = prepare(plain, [technique(alpha=0.5, group=32)], calibration=TEXT)
    ratio = plain.norms["layers.0.mlp_norm"] / stored.norms["layers.0.mlp_norm"]
    assert ratio.std() > 0.1
    for role in ("gate", "up"):
        smoothed = plain.linears[f"layers.0.mlp.{role}"].dequantize() * ratio
        expected = GroupLinear.quantize(smoothed, 4, 32).dequantize()
        found = stored.linears[f"layers.0.mlp.{role}"].dequantize()
        assert (np.abs(found - expected) < 1e-3 * np.abs(smoothed).max()).mean() > 0.99
    for role in ("attention.output", "mlp.down"):
        rounded = GroupLinear.quantize(plain.linears[f"layers.0.{role}"].dequantize(), 4, 32).dequantize()
        assert np.array_equal(stored.linears[f"layers.0.{role}"].dequantize(), rounded)
    labels = {name: linear.label for name, linear in stored.linears.items()}
    assert {label for name, label in labels.items() if name != "embedding"} == {"int4-g32"}
    report = {entry.name: entry for entry in stored.report}
    assert 0.01 < report["layers.0.mlp.gate"].error < 0.2
    assert "[numbers:2x12:" in stored.version and "alpha=0.5" in stored.version


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_with_8_bits_the_function_stays(name: str) -> None:
    model = build(CONFIGS[name])
    before = logits(model)
    stored = prepare(model, [technique(alpha=0.5, bits=8, group=32)], calibration=TEXT)
    apart = np.abs(logits(stored) - before)
    assert np.median(apart) < 0.02 * np.abs(before).max(), "a token or two may go to other experts"
    routers = [linear.label for key, linear in stored.linears.items() if key.endswith(("router", "shared_gate"))]
    assert set(routers) <= {"f32"}


def test_the_strength_is_that_of_the_least_error_of_the_logits(plain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothquant_plus, "GRID", (0.0, 0.4, 0.8))
    before, fixed, errors = logits(plain), {}, {}
    for alpha in smoothquant_plus.GRID:
        fixed[alpha] = logits(prepare(plain, [technique(alpha=alpha)], calibration=TEXT))
        errors[alpha] = float(np.square(fixed[alpha] - before).sum())
    best = min(errors, key=errors.__getitem__)
    searched = prepare(plain, [technique()], calibration=TEXT)
    assert np.array_equal(logits(searched), fixed[best])
    assert sorted(errors.values())[1] > 1.01 * errors[best], "the others would show"


def test_smoothing_beats_plain_rounding_where_a_channel_stands_out(plain: Model) -> None:
    name, norm = "layers.0.mlp.gate", plain.norms["layers.0.mlp_norm"]
    norm[7] *= 30
    inputs = seen(plain, TEXT, "a test")(LinearInfo(name, plain.linears[name])).inputs
    expected = inputs @ plain.linears[name].dequantize().T
    ours = prepare(plain, [technique(alpha=0.5, group=32)], calibration=TEXT)
    theirs = prepare(plain, [registry.build("weights", {"technique": "rtn"})])
    smoothed = inputs * (ours.norms["layers.0.mlp_norm"] / norm)
    apart = np.square(smoothed @ ours.linears[name].dequantize().T - expected).sum()
    assert apart < 0.5 * np.square(inputs @ theirs.linears[name].dequantize().T - expected).sum()
    assert {key: linear.nbytes for key, linear in ours.linears.items()} == {
        key: linear.nbytes for key, linear in theirs.linears.items()
    }


def test_layers_and_skip_leave_linears_alone(plain: Model) -> None:
    stored = prepare(plain, [technique(alpha=0.5, layers=[1], skip=["*.key"])], calibration=TEXT)
    kept = {name for name, linear in stored.linears.items() if linear is plain.linears[name]}
    assert kept == {"embedding", "layers.1.attention.key", *(name for name in plain.linears if "layers.0" in name)}
    assert np.array_equal(stored.norms["layers.1.attention_norm"], plain.norms["layers.1.attention_norm"])
    assert not np.array_equal(stored.norms["layers.1.mlp_norm"], plain.norms["layers.1.mlp_norm"])


def test_what_it_cannot_do_is_told() -> None:
    behind = build(dataclasses.replace(CONFIGS["plain"], pre_norms=False, post_norms=True))
    with pytest.raises(RecipeError, match="smooths norms in front of attention and MLP; this tiny model has none"):
        prepare(behind, [technique()], calibration=TEXT)
    with pytest.raises(RecipeError, match="option 'alpha'"):
        technique(alpha=1.5)
    broken = build(CONFIGS["plain"])
    weight = broken.linears["layers.1.mlp.down"].dequantize().copy()
    weight[3, 4] = np.nan
    broken.replace("layers.1.mlp.down", DenseLinear.from_weight(weight))
    with pytest.raises(KernelError, match="weight rows 0..95 has 1 NaN or infinite value"):
        prepare(broken, [technique(alpha=0.5)], calibration=TEXT)
