"""Techniques over a group of linears and the norm before them: the same function, moved between the two."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from tests.unit.weights.conftest import CONFIGS, build

from thrifty.arrays import Floats
from thrifty.errors import CheckpointError, RecipeError
from thrifty.formats.linear import DenseLinear
from thrifty.models.model import Model
from thrifty.reference.loading import build as build_reference
from thrifty.weights.calibration import Activations, CalibrationSet
from thrifty.weights.group_technique import GroupTechnique
from thrifty.weights.groups import LinearGroup, NormInfo, Replacement, groups, rescaled
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.rtn import RoundToNearest

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
TEXT = CalibrationSet("numbers", np.array([TOKENS, [2, 7, 1, 8, 2, 8, 1, 8]], np.int64))


def logits(model: Model) -> Floats:
    return build_reference(model).logits(TOKENS).numpy()


@dataclass(frozen=True, kw_only=True)
class Moving(GroupTechnique):
    """Divides every source by random factors of 1/4 to 4, and multiplies its readers by them."""

    name: ClassVar[str] = "moving"
    kinds: tuple[str, ...] = ("norm", "value", "neurons")

    def covers(self, group: LinearGroup) -> bool:
        return group.kind in self.kinds

    def transform(self, group: LinearGroup, calibration: Activations | None) -> Iterable[Replacement]:
        assert calibration is None
        random = np.random.default_rng(len(group.names[0]))
        return rescaled(group, np.exp2(random.uniform(-2, 2, group.width)).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Smoothing(GroupTechnique):
    """SmoothQuant's scale of half the strength (2211.10438, eq. 4), and what it was shown."""

    needs_calibration: ClassVar[bool] = True
    name: ClassVar[str] = "smoothing"
    shown: dict[str, Floats] = dataclasses.field(default_factory=dict)

    def transform(self, group: LinearGroup, calibration: Activations | None) -> Iterable[Replacement]:
        assert calibration is not None
        self.shown[group.readers[0].name] = calibration.inputs.copy()
        if group.kind == "value" or not len(calibration.inputs):
            return ()
        inputs = np.abs(calibration.inputs).max(axis=0) + 1e-3
        weights = np.max([np.abs(reader.linear.dequantize()).max(axis=0) for reader in group.readers], axis=0)
        return rescaled(group, np.sqrt(inputs / weights))


@pytest.mark.parametrize("kind", ["norm", "value", "neurons"])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_factor_that_moves_changes_nothing(name: str, kind: str) -> None:
    model = build(CONFIGS[name])
    before, expected = {key: linear.dequantize() for key, linear in model.linears.items()}, logits(model)
    moved = prepare(model, [Moving(kinds=(kind,))])
    changed = [key for key in before if not np.array_equal(before[key], moved.linears[key].dequantize())]
    assert len(changed) >= 2 * len(model.config.layers)
    assert np.abs(logits(moved) - expected).max() <= 2e-4 * np.abs(expected).max()
    assert moved.version.startswith(f"{model.version}+moving(kinds=")
    assert all(np.array_equal(before[key], model.linears[key].dequantize()) for key in before), "the given model stays"
    assert np.array_equal(logits(model), expected)


def test_norms_with_biases_and_an_untied_head_move_too() -> None:
    config = dataclasses.replace(CONFIGS["untied-biased"], norm="layer", norm_offset=0.5)
    model = build(config)
    norms = {name: norm.copy() for name, norm in model.norms.items()}
    moved = prepare(model, [Moving()])
    assert np.abs(logits(moved) - logits(model)).max() <= 2e-4 * np.abs(logits(model)).max()
    assert all(not np.array_equal(norms[name], moved.norms[name]) for name in norms), "the last norm and every bias"
    assert all(np.array_equal(norms[name], model.norms[name]) for name in norms)


def test_groups_are_named_with_all_that_reads_them(experts: Model) -> None:
    plain, mixture = [[group for group in groups(experts) if group.layer == layer] for layer in (0, 1)]
    assert [(group.kind, group.source.name) for group in plain] == [
        ("norm", "layers.0.attention_norm"), ("value", "layers.0.attention.value"),
        ("norm", "layers.0.mlp_norm"), ("neurons", "layers.0.mlp.up"),
    ]  # fmt: skip
    assert [reader.role for reader in plain[0].readers] == ["query", "key", "value"]
    assert [reader.name for reader in plain[3].readers] == ["layers.0.mlp.down"]
    assert isinstance(plain[0].source, NormInfo) and plain[0].width == 96 == len(plain[0].channels)
    assert plain[1].width == 32
    assert plain[1].channels.tolist() == [*range(16), *range(16), *range(16, 32), *range(16, 32)]
    roles = [reader.role for reader in mixture[2].readers]
    assert roles == ["router", *["gate"] * 4, *["up"] * 4, "gate", "up", "shared_gate"]
    assert [group.source.name for group in mixture[3:]] == [
        *(f"layers.1.mlp.experts.up.{expert}" for expert in range(4)), "layers.1.mlp.shared.up"
    ]  # fmt: skip
    assert [group.readers[0].name for group in mixture[3:]][-2:] == [
        "layers.1.mlp.experts.down.3", "layers.1.mlp.shared.down"
    ]  # fmt: skip
    assert mixture[2].names[:2] == ("layers.1.mlp_norm", "layers.1.mlp.router")


def test_what_is_no_group_is_left_out() -> None:
    """A norm behind a branch, a last norm with tied embeddings, neurons behind an activation."""
    gemma = list(groups(build(CONFIGS["gemma-like"])))
    assert {group.source.name.rpartition(".")[2] for group in gemma} == {"attention_norm", "value", "mlp_norm", "up"}
    no_norms = build(dataclasses.replace(CONFIGS["plain"], pre_norms=False, post_norms=True, mlp="plain"))
    assert {group.kind for group in groups(no_norms)} == {"value"}


def test_layers_and_skip_leave_groups_alone(plain: Model) -> None:
    moved = prepare(plain, [Moving(layers=(1,), skip=("*.attention.key", "*.down"))])
    changed = {name for name, linear in moved.linears.items() if linear is not plain.linears[name]}
    assert changed == {f"layers.1.{name}" for name in ("attention.value", "attention.output", "mlp.gate", "mlp.up")}
    with pytest.raises(RecipeError, match=r"skip '\*.dwon' matches no linear layer"):
        prepare(plain, [Moving(skip=("*.dwon",))])


def test_the_readers_inputs_are_shown_after_the_groups_before_changed(model: Model) -> None:
    """The factor that moved to the norm is in what comes out of it; and what the function is stays."""
    technique, expected = Smoothing(), logits(model)
    smoothed = prepare(model, [technique], calibration=TEXT)
    assert np.abs(logits(smoothed) - expected).max() <= 2e-4 * np.abs(expected).max()
    assert "[numbers:2x8:" in smoothed.version
    again = Smoothing()
    prepare(smoothed, [again], calibration=TEXT)
    for name, inputs in technique.shown.items():
        assert inputs.shape == again.shown[name].shape and inputs.shape[1] == model.linears[name].in_features
        if name.endswith(".output"):
            assert np.allclose(again.shown[name], inputs, atol=1e-4), "attention reads what it read"
    name = "layers.1.attention.query"
    factors = np.median(technique.shown[name] / again.shown[name], axis=0)
    assert np.allclose(technique.shown[name], again.shown[name] * factors, atol=1e-3) and np.ptp(factors) > 0.1


def test_a_stored_form_behind_it_reads_the_moved_weights(plain: Model) -> None:
    rtn = RoundToNearest(bits=8)
    stored = prepare(plain, [Moving(kinds=("norm",)), rtn])
    assert stored.linears["layers.0.attention.query"].label == "int8-g32"
    assert stored.version.count("+") == 2
    expected = logits(plain)
    assert np.abs(logits(stored) - expected).max() < 0.1 * np.abs(expected).max()


def test_the_report_tells_the_new_format_and_no_error(plain: Model) -> None:
    rounded = prepare(plain, [RoundToNearest(bits=8)])
    moved = prepare(rounded, [Moving(kinds=("neurons",))])
    before, after = ({entry.name: entry for entry in model.report} for model in (rounded, moved))
    assert list(before) == list(after)
    changed = after["layers.0.mlp.up"]
    assert changed.format == "f32" and changed.nbytes == moved.linears["layers.0.mlp.up"].nbytes
    assert changed.error == before["layers.0.mlp.up"].error > 0
    assert after["layers.0.attention.query"] == before["layers.0.attention.query"]


@dataclass(frozen=True, kw_only=True)
class Wrong(GroupTechnique):
    name: ClassVar[str] = "wrong"
    replacement: tuple[str, object] = ("", None)

    def transform(self, group: LinearGroup, calibration: Activations | None) -> Iterable[Replacement]:
        return [self.replacement]  # type: ignore[list-item]


SMALL = DenseLinear.from_weight(np.zeros((3, 4), np.float32))


@pytest.mark.parametrize(
    ("replacement", "error", "message"),
    [
        (
            ("embedding", SMALL),
            RecipeError,
            "which is not in the group of 'layers.0.attention_norm'",
        ),
        (("layers.0.attention.query", SMALL), CheckpointError, r"has shape \[3, 4\]; this decoder expects \[64, 96\]"),
        (("layers.0.attention_norm", np.zeros(4)), RecipeError, r"put an array of shape \[4\] in place of"),
        (("layers.0.attention.query", np.zeros(96)), RecipeError, r"put an array of shape \[96\] in place of"),
    ],
)
def test_what_does_not_fit_is_refused(
    plain: Model, replacement: tuple[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare(plain, [Wrong(replacement=replacement)])


@pytest.mark.parametrize("scale", [np.ones(3), np.zeros(96), np.full(96, np.nan), -np.ones(96)])
def test_a_scale_must_be_a_positive_number_a_channel(plain: Model, scale: Floats) -> None:
    with pytest.raises(RecipeError, match="a scale of 'layers.0.attention_norm' must be 96 finite numbers above 0"):
        list(rescaled(next(groups(plain)), scale))
