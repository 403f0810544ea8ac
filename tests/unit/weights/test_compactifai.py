"""CompactifAI: its tensors against plain loops, its counts against the paper's, and what it does to models."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, TensorTrainLinear
from thrifty.models.loading import load
from thrifty.models.model import Model
from thrifty.recipe import Recipe
from thrifty.reference.loading import build as decoder_of
from thrifty.training.loop.forward import logits_of
from thrifty.training.loop.losses import divergence
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.compressing.pipeline import compress
from thrifty.weights.sizes import Predictor
from thrifty.weights.technique import prepare
from thrifty.weights.tensor_trains import Shape, decomposed

TEXT = CalibrationSet("random", np.random.default_rng(0).integers(0, 50, (8, 16)))


def compactifai(**options: Any) -> Any:
    return registry.build("weights", {"technique": "compactifai", "healing": 0} | options)


def random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def train_of(weight: Floats, shape: Shape, chi: int) -> TensorTrainLinear:
    sites = [DenseLinear.from_weight(site) for site in decomposed(weight, shape, chi)]
    return TensorTrainLinear(sites, shape.rows, shape.columns)


def slowly(weight: Floats, shape: Shape, chi: int) -> Floats:
    """The paper's matrix product operator, number by number: n − 1 SVDs in 64 bits, then all bonds summed."""
    places = list(product(*(range(size) for pair in zip(shape.rows, shape.columns, strict=True) for size in pair)))

    def of(place: tuple[int, ...]) -> tuple[int, int]:
        row = column = 0
        for site, (outs, ins) in enumerate(zip(shape.rows, shape.columns, strict=True)):
            row, column = row * outs + place[2 * site], column * ins + place[2 * site + 1]
        return row, column

    rest = np.array([weight[of(place)] for place in places], np.float64)
    tensors, bond = [], 1
    for outs, ins in list(zip(shape.rows, shape.columns, strict=True))[:-1]:
        left, values, right = np.linalg.svd(rest.reshape(bond * outs * ins, -1), full_matrices=False)
        kept = min(chi, len(values))
        tensors.append(left[:, :kept].reshape(bond, outs, ins, kept))
        rest, bond = (values[:kept, None] * right[:kept]).ravel(), kept
    tensors.append(rest.reshape(bond, shape.rows[-1], shape.columns[-1], 1))
    made = np.zeros_like(weight)
    for place in places:
        chain = np.ones((1, 1))
        for site, tensor in enumerate(tensors):
            chain = chain @ tensor[:, place[2 * site], place[2 * site + 1], :]
        made[of(place)] = chain[0, 0]
    return made


@pytest.mark.parametrize("shape", [
    Shape((2, 16), (6, 4)), Shape((1, 37), (41, 1)), Shape((2, 2, 16), (3, 2, 4)), Shape((1, 3, 32), (5, 1, 3)),
])  # fmt: skip
@pytest.mark.parametrize("chi", [1, 5, 1000])
def test_tensors_are_those_of_sequential_decompositions(shape: Shape, chi: int) -> None:
    weight = random(int(np.prod(shape.rows)), int(np.prod(shape.columns)))
    linear = train_of(weight, shape, chi)
    np.testing.assert_allclose(linear.dequantize(), slowly(weight, shape, chi), atol=2e-5)
    assert linear.bonds == shape.bonds(chi) and linear.parameters == shape.parameters(chi)
    if chi == 1000:
        np.testing.assert_allclose(linear.dequantize(), weight, atol=2e-5)


def test_one_block_is_the_plain_truncated_decomposition() -> None:
    weight, shape = random(48, 40), Shape.of(48, 40, 2, 1)
    left, values, right = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    linear = train_of(weight, shape, 7)
    np.testing.assert_allclose(linear.dequantize(), (left[:, :7] * values[:7]) @ right[:7], atol=2e-5)
    first, last = (site.dequantize() for site in linear.sites)
    np.testing.assert_allclose(np.square(first).sum(1), values[:7], rtol=1e-4)  # √S on both sides of the bond
    np.testing.assert_allclose(np.square(last).sum(0), values[:7], rtol=1e-4)
    assert linear.parameters == 7 * (48 + 40)


def test_what_is_lost_are_the_values_that_were_cut() -> None:
    weight, shape = random(64, 36), Shape((4, 16), (6, 6))
    interleaved = weight.reshape(4, 16, 6, 6).transpose(0, 2, 1, 3).reshape(24, 96)
    values = np.linalg.svd(interleaved.astype(np.float64), compute_uv=False)
    lost = np.linalg.norm(train_of(weight, shape, 10).dequantize() - weight)
    assert lost == pytest.approx(float(np.sqrt(np.square(values[10:]).sum())), rel=1e-4)


@pytest.mark.parametrize("chi", [1, 20, 36])
def test_counts_are_the_papers(chi: int) -> None:
    """A matrix of 216 x 216 with three sites of 6 x 6: 72·χ + 36·χ²; with two sites: χ·(o_1·i_1 + o_2·i_2)."""
    assert Shape((6, 6, 6), (6, 6, 6)).parameters(chi) == 72 * chi + 36 * chi**2
    assert Shape((12, 18), (18, 12)).parameters(chi) == chi * (12 * 18 + 18 * 12)


@pytest.mark.parametrize("shape", [Shape((8, 72), (72, 8)), Shape((8, 6, 32), (9, 8, 8))])
def test_the_bond_of_a_share_is_the_largest_that_it_holds(shape: Shape) -> None:
    for count in (shape.parameters(1), 20_000, 100_000):
        chi = shape.chi_of(count)
        assert shape.parameters(chi) <= count
        assert shape.parameters(chi + 1) > count or shape.bonds(chi) == shape.bonds(chi + 1)


def test_shapes_leave_whole_lanes_of_rows() -> None:
    assert Shape.of(576, 576, 2, 8) == Shape((6, 96), (72, 8))
    assert Shape.of(1536, 576, 3, 8) == Shape((8, 6, 32), (9, 8, 8))
    assert Shape.of(37, 41, 2, 8) == Shape((1, 37), (41, 1))  # odd ones are not split


@pytest.mark.parametrize("sites", [2, 3])
def test_later_layers_keep_less_and_the_ends_all(sites: int) -> None:
    model = build(CONFIGS["untied-biased"])
    small = prepare(model, [compactifai(sites=sites, share=0.5, taper=0.4)])
    trains = {name: linear for name, linear in small.linears.items() if isinstance(linear, TensorTrainLinear)}
    assert len(trains) == 14 and {"embedding", "head"} <= small.linears.keys() - trains.keys()
    for name, linear in trains.items():
        dense = linear.out_features * linear.in_features
        kept = 0.5 * 0.4 if name.startswith("layers.1") else 0.5
        assert linear.parameters <= kept * dense < linear.parameters + dense * (0.2 if sites == 2 else 0.5), name
        assert np.array_equal(linear.bias, model.linears[name].bias), name  # type: ignore[arg-type]
    first, last = (trains[f"layers.{layer}.mlp.up"] for layer in (0, 1))
    assert max(last.bonds) < max(first.bonds)


def test_a_bond_is_the_same_for_all_matrices_and_what_would_grow_stays(plain: Model) -> None:
    small = prepare(plain, [compactifai(chi=14, taper=1.0)])
    for name, linear in small.linears.items():
        if isinstance(linear, TensorTrainLinear):
            assert max(linear.bonds) == 14 and linear.parameters < linear.out_features * linear.in_features, name
    assert small.linears["layers.0.attention.key"].label == "mpo-x14-bf16"
    larger = prepare(plain, [compactifai(chi=22, taper=1.0)])
    assert isinstance(larger.linears["layers.0.mlp.up"], TensorTrainLinear)
    assert larger.linears["layers.0.attention.key"] is plain.linears["layers.0.attention.key"]
    with pytest.raises(RecipeError, match=r"no linear that layers and skip leave would become smaller .*chi 5000"):
        prepare(plain, [compactifai(chi=5000)])


def test_experts_and_routers_stay(experts: Model) -> None:
    small = prepare(experts, [compactifai()])
    changed = {name for name in small.linears if small.linears[name] is not experts.linears[name]}
    assert "layers.1.mlp.shared.up" in changed and "layers.1.attention.query" in changed
    assert not any("experts" in name or name.endswith("router") for name in changed)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_damaged_layer_is_named(plain: Model, value: float) -> None:
    name = "layers.1.mlp.gate"
    weight = plain.linears[name].dequantize().copy()
    weight[3, 5] = value
    plain.replace(name, DenseLinear.from_weight(weight))
    for healing in (0, 1):
        with pytest.raises(RecipeError, match=rf"'{name}' has 1 NaN or infinite weights"):
            prepare(plain, [compactifai(healing=healing)], calibration=TEXT)


@pytest.mark.parametrize("distil", [True, False])
def test_healing_learns_the_model_or_the_text(plain: Model, distil: bool) -> None:
    plain = prepare(plain, [])
    tokens = torch.tensor(TEXT.sequences)

    def loss(model: Model) -> float:
        with torch.no_grad():
            mine = logits_of(decoder_of(model).decoder, tokens)
            if distil:
                return float(divergence(mine, logits_of(decoder_of(plain).decoder, tokens)))
            return float(torch.nn.functional.cross_entropy(mine[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()))

    options = {"share": 0.3, "rate": 3e-3, "distil": distil, "batch": 8}
    cut = prepare(plain, [compactifai(**options)])
    healed = prepare(plain, [compactifai(healing=12, **options)], calibration=TEXT)
    assert loss(healed) < 0.8 * loss(cut)
    for name, linear in healed.linears.items():
        assert linear.label == cut.linears[name].label, name
    assert healed.linears["embedding"] is plain.linears["embedding"]


@pytest.mark.parametrize(("values", "label"), [("int8", "int8-g32"), ("int4", "int4-g32"), ("bf16", "bf16")])
def test_tensors_have_formats_of_their_own(plain: Model, tmp_path: Path, values: str, label: str) -> None:
    made = compress(
        plain, Recipe(weights=[{"technique": "compactifai", "healing": 0, "values": values}]), tmp_path / "o"
    )
    read = load(tmp_path / "o")
    linear = read.linears["layers.0.mlp.down"]
    assert isinstance(linear, TensorTrainLinear) and [site.label for site in linear.sites] == [label] * 2
    assert made["totals"]["bytes"] == read.nbytes


def test_bytes_are_not_known_before(plain: Model) -> None:
    with pytest.raises(RecipeError, match="it changes more than one linear at a time"):
        Predictor([compactifai()])


def test_one_layer_alone_is_the_first(plain: Model) -> None:
    model = dataclasses.replace(plain, config=dataclasses.replace(plain.config, layers=plain.config.layers[:1]))
    model.linears = {name: linear for name, linear in plain.linears.items() if not name.startswith("layers.1.")}
    up = prepare(model, [compactifai(share=0.5)]).linears["layers.0.mlp.up"]
    assert isinstance(up, TensorTrainLinear) and up.parameters <= 0.5 * up.out_features * up.in_features
