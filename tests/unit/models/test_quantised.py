"""Quantised safetensors: each layout's weights against the definition, to the bit, and whole checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import quantised_files
from tests.quantised_files import LAYOUTS, Layout, Tensors
from tests.unit.kernels.native_pages import native
from tests.unit.kernels.native_plans import TensorPlan, feed

from thrifty.arrays import BFLOAT16, Floats
from thrifty.engine.plan.plan import compile_plan
from thrifty.errors import CheckpointError, ConfigError
from thrifty.formats.linear import GroupLinear, PackedLinear
from thrifty.models.huggingface.source import HuggingFaceSource
from thrifty.models.loading import assemble
from thrifty.models.model import Model
from thrifty.models.quantised.linears import IntegerCodes
from thrifty.reference import build

LINEAR = "layers.1.attention.key"  # [128, 128]
DOWN = "layers.0.mlp.down"  # [128, 256]
NAMES = {
    LINEAR: "model.layers.1.self_attn.k_proj",
    DOWN: "model.layers.0.mlp.down_proj",
}


def weights(layout: Layout, folder: Path, name: str) -> Floats:
    """All weights of a linear, from its definition."""
    from safetensors.torch import load_file

    found = load_file(folder / "model.safetensors")
    prefix = f"{NAMES[name]}."
    tensors = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    rows, columns = {LINEAR: (128, 128), DOWN: (128, 256)}[name]
    values = [[layout.weight(tensors, row, column) for column in range(columns)] for row in range(0, rows, 9)]
    return np.array(values, np.float64)


@pytest.mark.parametrize("name", LAYOUTS)
def test_weights_are_those_of_the_definition(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    source = HuggingFaceSource(quantised_files.write(tmp_path, layout))
    plain, stored = assemble(source, np.dtype(np.float32)), assemble(source)
    errors = {report.name: report.error for report in stored.report}
    for linear in (LINEAR, DOWN):
        wanted = weights(layout, tmp_path, linear).astype(np.float32)
        assert wanted.std() > 0.01
        assert np.array_equal(plain.linears[linear].dequantize()[::9], wanted)
        kept = stored.linears[linear].dequantize()[::9]
        if layout.rounded:
            np.testing.assert_allclose(kept, wanted, rtol=2**-11)
            assert 0 < errors[linear] < 2**-11
        else:
            assert np.array_equal(kept, wanted)
            assert errors[linear] == 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_linears_keep_their_bits(name: str, tmp_path: Path) -> None:
    model = assemble(HuggingFaceSource(quantised_files.write(tmp_path, LAYOUTS[name])))
    linear = model.linears[DOWN]
    file_bits = 8 if "8" in name.split("-")[0] or name.startswith("w8") else 4
    parameters = 32 / 32 + 8 / 32  # at most: a scale of 4 bytes, or of 2 and a zero point, for each 32 columns
    assert linear.nbytes * 8 <= 128 * 256 * (file_bits + parameters) + 8 * 4 * 256
    again = PackedLinear.from_state(linear.meta(), linear.state())
    assert np.array_equal(again.dequantize(), linear.dequantize())
    assert np.array_equal(linear.rows(np.array([5, 127])), linear.dequantize()[[5, 127]])


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_the_native_plan_computes_with_them(name: str, tmp_path: Path) -> None:
    native()
    model = assemble(HuggingFaceSource(quantised_files.write(tmp_path, LAYOUTS[name])))
    ids = torch.randint(0, 250, (40,), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    logits = feed(TensorPlan(compile_plan(model, 40)), model.config, ids, [30, 1, 9], "f32")
    wanted = build(model).logits(ids.long())
    assert (logits - wanted).abs().mean() < 0.05 * wanted.abs().mean()  # activations of 8 bits


def test_symmetric_codes_need_no_zero_points(tmp_path: Path) -> None:
    for name in ("gptq4-symmetric", "gptq8-symmetric", "w4a16", "w8a8"):
        model = assemble(HuggingFaceSource(quantised_files.write(tmp_path / name, LAYOUTS[name])))
        linear = model.linears[DOWN]
        assert isinstance(linear, GroupLinear)
        assert not linear.has_minimum


def test_bfloat16_gives_rounded_weights(tmp_path: Path) -> None:
    source = HuggingFaceSource(quantised_files.write(tmp_path, LAYOUTS["gptq4-g64"]))
    exact, rounded = (assemble(source, np.dtype(kind)).linears[DOWN].dequantize() for kind in (np.float32, BFLOAT16))
    assert np.array_equal(exact.astype(BFLOAT16).astype(np.float32), rounded)


def test_a_quantised_file_is_converted_and_opened_again(tmp_path: Path, cache: Path) -> None:
    from thrifty.models import load

    folder = quantised_files.write(tmp_path / "model", LAYOUTS["awq-g128"])
    first, second = load(folder), load(folder)
    assert np.array_equal(first.linears[DOWN].dequantize(), second.linears[DOWN].dequantize())
    assert {report.origin for report in second.report if report.name == DOWN} == {"AWQ"}


def open_changed(folder: Path, name: str, change: Any = None, **settings: Any) -> Model:
    layout = LAYOUTS[name]
    quantised_files.write(folder, layout, change)
    data = json.loads((folder / "config.json").read_text())
    data["quantization_config"] = {**data["quantization_config"], **settings}
    (folder / "config.json").write_text(json.dumps(data))
    return assemble(HuggingFaceSource(folder))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gptq4-g128", {"bits": 3}, r"quantization_config\.bits is 3; GPTQ of 4 and of 8 bits"),
        ("gptq4-g128", {"group_size": 48}, r"quantization_config\.group_size is 48; groups of 32, 64, a multiple"),
        ("gptq4-g128", {"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; gptq and gptq_v2"),
        ("gptq4-g128", {"dynamic": {"a": 1}}, "dynamic: settings of single layers"),
        ("awq-g128", {"version": "gemv"}, "version is 'gemv'; AWQ's gemm layout"),
        ("awq-g128", {"bits": 8}, "bits is 8; AWQ of 4 bits"),
        ("w4a16", {"format": "marlin-24"}, "format is 'marlin-24'; supported are pack-quantized"),
        ("w4a16", {"format": "nvfp4-pack-quantized"}, "format is 'nvfp4-pack-quantized'; supported are"),
        ("w4a16", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is .* not supported"),
        ("w4a16", {"transform_config": {"config_groups": {"a": 1}}}, "transform_config is .* not supported"),
        ("nf4", {"load_in_4bit": False, "load_in_8bit": True}, "bitsandbytes of 4 bits is supported, of 8 is not"),
        ("fp8-fine", {"fmt": "e5m2"}, "fmt is 'e5m2'; e4m3 is supported"),
        ("fp8-fine", {"weight_block_size": [1, 7]}, r"weight_block_size is \[1, 7\]; rows and columns"),
        ("nf4", {"quant_method": "aqlm"}, "quant_method is 'aqlm', which is not supported: use the unquantised"),
    ],
)
def test_settings_that_are_not_read_are_named(
    name: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_changed(tmp_path, name, **settings)


def put(name: str, values: torch.Tensor) -> Any:
    def change(tensors: Tensors) -> None:
        tensors[name] = values.clone()

    return change


def test_columns_ordered_by_activations_are_refused(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["g_idx"] = tensors["g_idx"].flip(0)

    with pytest.raises(CheckpointError, match=r"down_proj.qweight': g_idx puts columns into groups by their activ"):
        open_changed(tmp_path, "gptq4-g128", change)
    with pytest.raises(CheckpointError, match="weight_g_idx puts columns into groups by their activations"):
        open_changed(tmp_path / "b", "w4a16", put("weight_g_idx", torch.zeros(256, dtype=torch.int32) + 1))


@pytest.mark.parametrize(
    ("name", "member", "values", "message"),
    [
        ("gptq4-g128", "qweight", torch.zeros(3, 4, dtype=torch.int32), r"qweight' has shape \[3, 4\]; expected \[32,"),
        ("gptq4-g128", "qweight", torch.zeros(16, 256), r"qweight' has type F32; expected I32"),
        ("awq-g128", "scales", torch.zeros(1, 3), r"scales' has shape \[1, 3\]; expected \[2, 128\]"),
        ("w4a16", "weight_packed", torch.zeros(128, 12, dtype=torch.int32), "codes of 4 or 8 bits are supported"),
        ("w4a16", "weight_scale", torch.ones(128, 3), "has 3 groups for 256 columns"),
        ("w4a16", "weight_scale", torch.ones(128, 16), "has 16 groups for 256 columns: the group is 16"),
        ("nf4", "weight.quant_map", torch.zeros(15), r"quant_map' has shape \[15\]; expected \[16\]"),
        ("nf4", "weight", torch.zeros(9, 1, dtype=torch.uint8), r"weight' has shape \[9, 1\]; expected"),
        ("fp8-channel", "weight_scale", torch.ones(7), r"weight_scale' has shape \[7\]"),
        ("fp8-fine", "weight_scale_inv", torch.ones(7, 1), r"weight_scale_inv' has shape \[7, 1\]; expected \[1, 2\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, member: str, values: torch.Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_changed(tmp_path, name, put(member, values))


def test_damaged_contents_are_named(tmp_path: Path) -> None:
    def drop(tensors: Tensors) -> None:
        del tensors["qzeros"]

    def nan(tensors: Tensors) -> None:
        tensors["weight"].view(torch.uint8)[0, 0] = 127

    def text(tensors: Tensors) -> None:
        tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor([1, 2], dtype=torch.uint8)

    with pytest.raises(CheckpointError, match=r"q_proj.qzeros' is missing|_proj.qzeros' is missing"):
        open_changed(tmp_path / "a", "gptq4-g128", drop)
    with pytest.raises(CheckpointError, match="an FP8 code that is not a number"):
        open_changed(tmp_path / "b", "fp8-channel", nan)
    with pytest.raises(CheckpointError, match="quant_state is not JSON"):
        open_changed(tmp_path / "c", "nf4", text)


def test_joined_linears_are_taken_apart(tmp_path: Path) -> None:
    """Phi-3's qkv_proj and gate_up_proj, quantised as a whole."""
    from safetensors.torch import save_file

    layout, random = LAYOUTS["gptq4-g32"], np.random.default_rng(0)
    shapes = {
        "self_attn.qkv_proj": (256, 128),
        "self_attn.o_proj": (128, 128),
        "mlp.gate_up_proj": (384, 128),
        "mlp.down_proj": (128, 192),
    }
    made: Tensors = {"model.embed_tokens.weight": torch.randn(99, 128), "model.norm.weight": torch.ones(128)}
    made["lm_head.weight"] = torch.randn(99, 128)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        made[f"model.layers.0.{norm}.weight"] = torch.ones(128)
    for name, shape in shapes.items():
        for member, values in layout.make(random, *shape).items():
            made[f"model.layers.0.{name}.{member}"] = values
    save_file(made, tmp_path / "model.safetensors")
    config = {
        "model_type": "phi3", "vocab_size": 99, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "quantization_config": layout.config,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = assemble(HuggingFaceSource(tmp_path))
    tensors = {
        member: made[f"model.layers.0.self_attn.qkv_proj.{member}"]
        for member in ("qweight", "qzeros", "scales", "g_idx")
    }
    wanted = [[layout.weight(tensors, row, column) for column in range(128)] for row in range(128, 192)]
    assert np.array_equal(model.linears["layers.0.attention.key"].dequantize(), np.array(wanted, np.float32))


@pytest.mark.parametrize("columns", [576, 160, 96])
@pytest.mark.parametrize("zeros", [True, False])
def test_one_scale_a_row_of_any_width(columns: int, zeros: bool) -> None:
    random = np.random.default_rng(columns)
    codes = random.integers(0, 16, (32, columns), dtype=np.uint8)
    scales = random.uniform(0.01, 0.02, (32, 1)).astype(np.float16).astype(np.float32)
    points = random.integers(0, 16, (32, 1)) if zeros else None
    whole = IntegerCodes(codes, scales, points, 4, columns)
    assert np.array_equal(whole.linear().dequantize(), whole.values())


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_stored_is_told_by_linear(name: str, tmp_path: Path) -> None:
    source = HuggingFaceSource(quantised_files.write(tmp_path, LAYOUTS[name]))
    down = next(tensor for tensor in source.stored() if DOWN in tensor.names)
    kept = {weight.name: weight for weight in source.weights()}[DOWN]
    assert (down.type, down.shape) == (kept.origin, (128, 256))
    assert down.nbytes == sum(
        entry.nbytes for name, entry in source.entries.items() if name.startswith(f"{NAMES[DOWN]}.")
    )
    assert {weight.origin for weight in source.samples()} >= {down.type}


def test_words_of_zero_points_are_packed(tmp_path: Path) -> None:
    def unpack(tensors: Tensors) -> None:
        rows, groups = len(tensors["weight_packed"]), tensors["weight_scale"].shape[1]
        tensors["weight_zero_point"] = torch.full((rows, groups), 3, dtype=torch.int32)

    name = next(
        name for name in LAYOUTS if "weight_zero_point" in LAYOUTS[name].make(np.random.default_rng(0), 128, 128)
    )
    with pytest.raises(CheckpointError, match="weight_zero_point' has shape .*expected"):
        open_changed(tmp_path, name, unpack)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_zero_of_0_in_a_file_of_version_1_is_what_its_writer_meant(bits: int) -> None:
    """GPTQModel takes 1 from all codes of a word as one number (convert_gptq_v2_to_v1_format): a 0 borrows."""
    from thrifty.models.export.integers import IntegerLinear, gptq_tensors
    from thrifty.models.quantised.integers import GPTQ

    random = np.random.default_rng(bits)
    zeros = random.integers(0, 1 << bits, (2, 32), np.uint8)
    zeros[0, :5], zeros[1, 31] = 0, 0
    codes, scales = random.integers(0, 1 << bits, (64, 32), np.uint8), random.random((2, 32)).astype(np.float16)
    written = {
        version: dict(gptq_tensors(IntegerLinear(codes, zeros, scales, bits), 32, version)) for version in (1, 2)
    }
    constant = int("1" * 8, 16) if bits == 4 else 0x01010101
    for before, after in zip(written[2]["qzeros"].flat, written[1]["qzeros"].flat, strict=True):
        assert (int(before) - constant) & 0xFFFFFFFF == int(after) & 0xFFFFFFFF
    for version in (1, 2):
        read = GPTQ(bits, 32, version).read(written[version], 32, 64)
        assert read.zeros is not None and np.array_equal(read.zeros, zeros.T)
        assert np.array_equal(read.codes, codes.T)
