"""Models with fewer layers, heads, neurons or experts, held against the reference with the same parts removed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tests.tiny import hybrid_config, tiny_model
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import Thrifty
from thrifty.arrays import BFLOAT16, Floats
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, GroupLinear, PackedLinear
from thrifty.kernels import dispatch
from thrifty.models.head_scores import checkpoint_version
from thrifty.models.model import Model
from thrifty.models.parts import parts
from thrifty.reference.attention import causal
from thrifty.reference.linear import Linear
from thrifty.reference.loading import build as build_reference
from thrifty.weights.calibration import Calibration, CalibrationSet
from thrifty.weights.cutting import Structure
from thrifty.weights.slicing import take
from thrifty.weights.structure import LinearInfo
from thrifty.weights.structure_technique import StructureTechnique
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.rtn import RoundToNearest

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
TEXT = CalibrationSet("numbers", np.array([TOKENS], np.int64))


@dataclass(frozen=True, kw_only=True)
class Leaving(StructureTechnique):
    """Leaves what it is told to."""

    name: ClassVar[str] = "leaving"
    structure: Structure

    def choose(self, model: Model, calibration: Calibration | None) -> Structure:
        assert calibration is None
        return self.structure


@dataclass(frozen=True, kw_only=True)
class Strongest(StructureTechnique):
    """Half of the neurons of every layer, those that are largest on the calibration text."""

    needs_calibration: ClassVar[bool] = True
    name: ClassVar[str] = "strongest"

    def choose(self, model: Model, calibration: Calibration | None) -> Structure:
        assert calibration is not None
        kept = {}
        for layer in range(len(model.config.layers)):
            name = f"layers.{layer}.mlp.down"
            inputs = np.abs(calibration(LinearInfo(name, model.linears[name])).inputs).mean(axis=0)
            kept[layer] = np.sort(np.argsort(-inputs)[: len(inputs) // 2]).tolist()
        return Structure(neurons=kept)


def leaving(model: Model, **kept: Any) -> Model:
    return prepare(model, [Leaving(structure=Structure(**kept))])


def logits(model: Model) -> Floats:
    return build_reference(model).logits(TOKENS).numpy()


def without(model: Model, columns: dict[str, list[int]]) -> Model:
    """The whole model with columns of some linears at zero."""
    changed = dataclasses.replace(model, linears=dict(model.linears))
    for name, zeros in columns.items():
        weight = model.linears[name].dequantize().copy()
        weight[:, zeros] = 0
        changed.linears[name] = DenseLinear.from_weight(weight, bias=model.linears[name].bias)
    return changed


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_layer_less_is_the_decoder_without_that_layer(name: str) -> None:
    model = build(CONFIGS[name])
    for kept in ([0], [1], [1, 0]):
        cut = leaving(model, layers=kept)
        assert cut.config.layers == tuple(model.config.layers[layer] for layer in kept)
        decoder = build_reference(model).decoder
        with torch.no_grad():
            hidden, positions = decoder.embed(torch.tensor(TOKENS)), torch.arange(len(TOKENS))
            for layer in kept:
                hidden = decoder.layer(layer, hidden, positions, causal(model.config))
            assert np.array_equal(logits(cut), decoder.logits(hidden).numpy())
    assert len(model.config.layers) == 2 and list(model.linears)[1] == "layers.0.attention.query"


def test_nothing_is_copied_of_what_stays_whole(plain: Model) -> None:
    cut = leaving(plain, layers=[1])
    assert cut.linears["layers.0.mlp.up"] is plain.linears["layers.1.mlp.up"]
    assert cut.norms["layers.0.mlp_norm"] is plain.norms["layers.1.mlp_norm"]
    assert list(cut.linears) == [name for name in parts(cut.config) if name in cut.linears]


HEADS = [
    ({0: [0, 1], 1: [2, 3]}, 2, 1),  # one of two KV heads, another one in each layer
    ({0: [1, 2], 1: [0, 3]}, 2, 2),  # half of the query heads of both
    ({0: [1], 1: [3]}, 1, 1),
]


@pytest.mark.parametrize(("heads", "count", "kv_count"), HEADS)
@pytest.mark.parametrize("name", ["plain", "untied-biased", "experts"])
def test_heads_less_are_heads_that_say_nothing(
    name: str, heads: dict[int, list[int]], count: int, kv_count: int
) -> None:
    model = build(CONFIGS[name])
    cut = leaving(model, heads=heads)
    assert (cut.config.heads, cut.config.kv_heads) == (count, kv_count)
    assert cut.linears["layers.0.attention.key"].out_features == 16 * kv_count
    silent = {
        f"layers.{layer}.attention.output": [
            16 * head + channel for head in range(4) if head not in kept for channel in range(16)
        ]
        for layer, kept in heads.items()
    }
    assert np.allclose(logits(cut), logits(without(model, silent)), atol=1e-5)
    assert not np.allclose(logits(cut), logits(model), atol=1e-2)


def test_norms_of_heads_go_with_them() -> None:
    """A norm of each head is shared by all; one over the whole projection is of the heads that stay."""
    each = build(CONFIGS["gemma-like"])
    cut = leaving(each, heads={0: [0, 3], 1: [1, 2]})
    assert cut.config.kv_heads == 1 and cut.norms["layers.0.attention.query_norm"].shape == (16,)
    silent = {
        f"layers.{layer}.attention.output": [16 * head + channel for head in gone for channel in range(16)]
        for layer, gone in ((0, (1, 2)), (1, (0, 3)))
    }
    assert np.allclose(logits(cut), logits(without(each, silent)), atol=1e-5)
    whole = build(CONFIGS["full-norm"])
    cut = leaving(whole, heads={0: [0, 1], 1: [4, 5]})
    assert (cut.config.heads, cut.config.kv_heads) == (2, 1)
    norm = whole.norms["layers.1.attention.query_norm"]
    assert np.array_equal(cut.norms["layers.1.attention.query_norm"], norm[64:96])
    assert np.array_equal(cut.norms["layers.1.attention.key_norm"], whole.norms["layers.1.attention.key_norm"][32:])


@pytest.mark.parametrize("name", ["plain", "untied-biased", "gemma-like"])
def test_neurons_less_are_neurons_that_say_nothing(name: str) -> None:
    model, random = build(CONFIGS[name]), np.random.default_rng(1)
    kept = {layer: np.sort(random.permutation(160)[:97]).tolist() for layer in (0, 1)}
    cut = leaving(model, neurons=kept)
    assert cut.config.intermediate_size == 97
    silent = {f"layers.{layer}.mlp.down": sorted(set(range(160)) - set(own)) for layer, own in kept.items()}
    assert np.allclose(logits(cut), logits(without(model, silent)), atol=1e-5)


def test_experts_less_are_a_choice_among_those_that_stay(experts: Model) -> None:
    kept = [3, 0, 2]
    cut = leaving(experts, experts={1: kept}, neurons={0: list(range(0, 160, 2))})
    assert cut.config.experts is not None and cut.config.experts.count == 3 and cut.config.intermediate_size == 80
    decoder = build_reference(leaving(experts, neurons={0: list(range(0, 160, 2))})).decoder
    mixture: Any = decoder.layers[1].mlp
    router = experts.linears["layers.1.mlp.router"].dequantize()
    mixture.router = Linear(DenseLinear.from_weight(router[kept]))
    for part in ("gate", "up", "down"):
        modules = getattr(mixture.experts, part)
        setattr(mixture.experts, part, torch.nn.ModuleList([modules[expert] for expert in kept]))
    with torch.no_grad():
        expected = decoder(torch.tensor(TOKENS), torch.arange(len(TOKENS)), causal(experts.config))
    assert np.allclose(logits(cut), expected.numpy(), atol=1e-5)
    dense = leaving(experts, layers=[0])
    assert dense.config.experts is None and not any("experts" in name for name in dense.linears)


def test_all_kinds_at_once_in_the_order_that_is_asked_for(plain: Model) -> None:
    cut = leaving(plain, layers=[1, 0], heads={1: [0, 2], 0: [1, 3]}, neurons={0: [5, 7], 1: [3, 1]})
    assert (cut.config.heads, cut.config.kv_heads, cut.config.intermediate_size) == (2, 2, 2)
    up = plain.linears["layers.1.mlp.up"].dequantize()
    assert np.array_equal(cut.linears["layers.0.mlp.up"].dequantize(), up[[3, 1]])
    assert cut.config.layers[0].window == 5 and cut.config.layers[1].window is None
    assert logits(cut).shape == (8, 50)


def test_what_a_technique_chooses_by_is_what_linears_read(plain: Model) -> None:
    cut = prepare(plain, [Strongest(), RoundToNearest(bits=8)], calibration=TEXT)
    assert cut.config.intermediate_size == 80
    assert cut.linears["layers.1.mlp.down"].label == "int8-g32" and "[numbers:1x8:" in cut.version
    weakest = prepare(plain, [Strongest()], calibration=TEXT)
    up = plain.linears["layers.0.mlp.up"].dequantize()
    kept = [np.flatnonzero((up == row).all(axis=1))[0] for row in weakest.linears["layers.0.mlp.up"].dequantize()]
    assert len(set(kept)) == 80 and kept == sorted(kept)


def test_a_later_technique_is_checked_against_what_is_left(plain: Model) -> None:
    with pytest.raises(RecipeError, match=r"layer 1 is outside 0\.\.0"):
        prepare(plain, [Leaving(structure=Structure(layers=[0])), RoundToNearest(layers=(1,))])


def test_its_version_is_another_checkpoints(plain: Model) -> None:
    """Scores of heads are kept by the checkpoint: those of the whole model say nothing of what is left."""
    rounded = prepare(plain, [RoundToNearest(bits=8)])
    assert checkpoint_version(rounded) == checkpoint_version(plain)
    cut = leaving(rounded, layers=[1])
    assert checkpoint_version(cut) != checkpoint_version(plain) != checkpoint_version(leaving(plain, layers=[0]))
    assert "+rtn(" in cut.version
    assert checkpoint_version(leaving(plain, layers=[0])) != checkpoint_version(leaving(plain, layers=[1]))


def test_the_report_is_of_what_is_left(plain: Model) -> None:
    rounded = prepare(plain, [RoundToNearest(bits=8)])
    cut = leaving(rounded, layers=[1], neurons={1: list(range(32))})
    entries = {entry.name: entry for entry in cut.report}
    assert set(entries) == {name for name in cut.linears if name != "embedding"}
    assert entries["layers.0.mlp.down"].nbytes == cut.linears["layers.0.mlp.down"].nbytes
    assert entries["layers.0.mlp.down"].format == "int8-g32" and entries["layers.0.mlp.down"].error > 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"layers": []}, r"layers: \[\] must be one or more different numbers from 0 to 1"),
    ({"layers": [0, 0]}, r"layers: \[0, 0\] must be"),
    ({"layers": [2]}, r"layers: \[2\] must be"),
    ({"heads": {0: [0]}}, r"heads are chosen for layers \[0\]; choose them for \[0, 1\], one by one"),
    ({"heads": {0: [0, 1, 2], 1: [0, 1, 2]}}, "do not share 2 KV heads evenly: keep equally many of each group of 2"),
    ({"heads": {0: [2, 0], 1: [0, 2]}}, "do not share 2 KV heads evenly"),
    ({"heads": {0: [0], 1: [0, 1]}}, "layers keep different numbers of heads: {0: 1, 1: 2}"),
    ({"heads": {0: [4], 1: [0]}}, r"heads of layer 0: \[4\] must be one or more different numbers from 0 to 3"),
    ({"neurons": {0: [1], 1: [1, 2]}}, "different numbers of neurons"),
    ({"neurons": {0: [1, 160], 1: [1, 2]}}, "from 0 to 159"),
    ({"layers": [0], "neurons": {0: [1], 1: [1]}}, r"chosen for layers \[0, 1\]; choose them for \[0\]"),
    ({"experts": {0: [1]}}, r"experts are chosen for layers \[0\]; choose them for \[\]"),
]


@pytest.mark.parametrize(("kept", "message"), WRONG)
def test_what_the_model_does_not_have_is_refused(plain: Model, kept: dict[str, Any], message: str) -> None:
    before = dict(plain.linears)
    with pytest.raises(RecipeError, match=message):
        leaving(plain, **kept)
    assert plain.linears == before


NO_NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"layers": [1.0]}, r"layers: 1\.0 must be a whole number from 0 to 1"),
    ({"layers": [True]}, "layers: True must be a whole number"),
    ({"layers": "01"}, "layers: '0' must be a whole number"),
    ({"heads": {0: [0.5], 1: [1]}}, r"heads of layer 0: 0\.5 must be a whole number"),
    ({"neurons": {0: ["a"], 1: [1]}}, "neurons of layer 0: 'a' must be a whole number"),
    ({"heads": "ab"}, "heads: 'ab' must be a mapping"),
    ({"heads": {0: [0], "b": [1]}}, "heads are chosen for layers"),
    ({"layers": 1}, "layers: 1 must be a sequence of whole numbers"),
    ({"heads": {0: 0, 1: [1]}}, "heads of layer 0: 0 must be a sequence of whole numbers"),
]


@pytest.mark.parametrize(("kept", "message"), NO_NUMBERS)
def test_what_is_no_number_is_refused(plain: Model, kept: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        leaving(plain, **kept)


def test_numbers_may_come_as_an_array(plain: Model) -> None:
    assert len(leaving(plain, layers=np.array([1])).config.layers) == 1


@pytest.fixture(scope="module")
def hybrid() -> Model:
    """Layers 0 and 3 are recurrent, 1 and 2 attend."""
    return tiny_model(config=hybrid_config("rawr"))


def test_heads_of_a_hybrid_are_those_of_the_layers_that_attend(hybrid: Model) -> None:
    config, size = hybrid.config, hybrid.config.head_dim
    group = config.heads // config.kv_heads
    kept, gone = list(range(group)), np.arange(group * size, config.heads * size)
    cut = leaving(hybrid, heads={1: kept, 2: kept})
    assert (cut.config.heads, cut.config.kv_heads) == (group, 1)
    assert cut.linears["layers.0.recurrent.query"] is hybrid.linears["layers.0.recurrent.query"]
    silent = without(hybrid, {f"layers.{layer}.attention.output": gone.tolist() for layer in (1, 2)})
    np.testing.assert_allclose(logits(cut), logits(silent), rtol=0, atol=1e-4)
    with pytest.raises(RecipeError, match=r"choose them for \[1, 2\], one by one"):
        leaving(hybrid, heads=dict.fromkeys(range(4), kept))


def test_neurons_of_a_hybrid_are_those_of_its_mlps(hybrid: Model) -> None:
    width = hybrid.config.intermediate_size
    half = list(range(width // 2))
    cut = leaving(hybrid, neurons=dict.fromkeys(range(4), half))
    for name in ("gate", "output", "decay"):
        assert cut.linears[f"layers.3.recurrent.{name}"] is hybrid.linears[f"layers.3.recurrent.{name}"]
    silent = without(hybrid, {f"layers.{layer}.mlp.down": list(range(width // 2, width)) for layer in range(4)})
    np.testing.assert_allclose(logits(cut), logits(silent), rtol=0, atol=1e-4)


def test_too_few_experts_are_refused(experts: Model) -> None:
    with pytest.raises(RecipeError, match="1 experts are left; a token takes 2"):
        leaving(experts, experts={1: [2]})


def sliced() -> list[PackedLinear]:
    random = np.random.default_rng(5)
    weight, bias = random.standard_normal((40, 96)).astype(np.float32), random.standard_normal(40).astype(np.float32)
    dense = DenseLinear.from_weight
    return [
        dense(weight, bias=bias), dense(weight, np.float16), dense(weight, BFLOAT16),
        dense(weight, BFLOAT16, True, bias),
        *(GroupLinear.quantize(weight, bits, 32, symmetric, bias) for bits in (4, 8) for symmetric in (False, True)),
        GroupLinear.from_codes(random.integers(0, 32, (40, 96)), np.abs(weight[:, :3]), weight[:, 3:6], 5, 32),
        GroupLinear.from_codes(random.integers(0, 16, (40, 96)), np.abs(weight[:, :3]), None, 4, 32, codebook="iq4"),
        GroupLinear.quantize(weight, 4, 64),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(sliced())))
def test_slices_hold_the_same_values(number: int) -> None:
    linear = sliced()[number]
    rows, groups = np.array([3, 39, 17, 0, 16]), np.array([*range(64, 96), *range(32)])
    single = np.array([5, 4, 90])
    whole = linear.dequantize()
    assert take(linear) is linear
    for chosen, columns in ((rows, None), (None, groups), (rows, groups), (None, single), (rows, single)):
        part = take(linear, chosen, columns)
        expected = whole if chosen is None else whole[chosen]
        assert np.array_equal(part.dequantize(), expected if columns is None else expected[:, columns])
        bias = linear.bias if linear.bias is None or chosen is None else linear.bias[chosen]
        assert part.bias is None if bias is None else np.array_equal(part.bias, bias)
        if isinstance(linear, DenseLinear) or columns is None or (columns is groups and linear.label[-3:] == "g32"):
            assert part.label == linear.label


@pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")
def test_what_is_left_is_served_as_any_model() -> None:
    """Natively as by the reference, with half of the neurons and one KV head of two."""
    model = tiny_model(packed=True)
    layers = range(len(model.config.layers))
    half = list(range(model.config.intermediate_size // 2))
    cut = leaving(model, layers=[0, 2], heads={0: [0, 1], 2: [2, 3]}, neurons=dict.fromkeys((0, 2), half))
    assert len(layers) == 3 and cut.nbytes < model.nbytes
    labels = {name.rpartition(".")[2]: linear.label for name, linear in cut.linears.items()}
    assert labels["query"] == labels["down"] == labels["output"] == model.linears["layers.0.mlp.up"].label
    answers = []
    for native in (True, False):
        with Thrifty(cut, native=native) as thrifty:
            answers.append(thrifty.generate("hello", max_tokens=12, ignore_eos=True).token_ids)
    assert answers[0] == answers[1]
