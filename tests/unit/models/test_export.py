"""Exported files load again to equal values; what a format cannot say is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests import gguf_files
from tests.checkpoint import write_checkpoint

from thrifty.errors import CheckpointError, ConfigError, StorageError
from thrifty.formats.linear import DenseLinear, GroupLinear, ZeroPointLinear
from thrifty.models.config.layer_spec import RopeScaling
from thrifty.models.export.files import files_of
from thrifty.models.export.folder import export_folder
from thrifty.models.export.gguf import export_gguf
from thrifty.models.export.gguf_writer import write_gguf
from thrifty.models.loading import load
from thrifty.models.model import Model
from thrifty.recipe import Recipe
from thrifty.weights.technique import prepare


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def llama(tmp_path: Path) -> Model:
    return load(write_checkpoint(tmp_path / "llama"))


def rounded(model: Model, **options: Any) -> Model:
    """By rtn, with these options."""
    return prepare(model, Recipe(weights=[{"technique": "rtn", **options}]).techniques("weights"))


def same_values(left: Model, right: Model) -> None:
    for name, linear in left.linears.items():
        other = right.linears[name]
        assert other.label == linear.label, name
        np.testing.assert_array_equal(other.dequantize(), linear.dequantize(), err_msg=name)
        if linear.bias is not None:
            np.testing.assert_array_equal(other.bias, linear.bias)
    for name, norm in left.norms.items():
        np.testing.assert_array_equal(right.norms[name], norm)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 4, "symmetric": True, "embedding_bits": 8},
        {"bits": 4},
        {"bits": 8, "symmetric": True},
    ],
    ids=["Q4_0", "Q4_1", "Q8_0"],
)
def test_a_gguf_file_holds_the_same_values(llama: Model, tmp_path: Path, options: dict[str, Any]) -> None:
    symmetric_embedding = {key: value for key, value in options.items() if key != "embedding_bits"}
    model = rounded(llama, **symmetric_embedding)
    if "embedding_bits" in options:
        embedding = GroupLinear.requantize(llama.linears["embedding"], 8, 32, symmetric=True)
        model.replace("embedding", embedding)
    export_gguf(model, tmp_path / "m.gguf")
    read = load(tmp_path / "m.gguf")
    same_values(model, read)
    text = "Hello <|start|> wörld 12"
    assert read.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert set(model.tokenizer.eos_ids) <= set(read.tokenizer.eos_ids)
    assert read.tokenizer.settings.chat_template == model.tokenizer.settings.chat_template


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F16"])
def test_what_was_read_from_a_file_is_written_as_it_was(tmp_path: Path, kind: str) -> None:
    if kind.startswith(("Q", "IQ")):
        source = gguf_files.of_random_blocks(tmp_path / "in.gguf", kind)
    else:
        source = gguf_files.tiny(tmp_path / "in.gguf", default=gguf_files.Type[kind])
    model = load(source)
    export_gguf(model, tmp_path / "out.gguf")
    same_values(model, load(tmp_path / "out.gguf"))
    before, after = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (source, tmp_path / "out.gguf")
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].tensor_type == tensor.tensor_type
        np.testing.assert_array_equal(after[name].data, tensor.data, err_msg=name)


def test_another_reader_finds_the_same_values(llama: Model, tmp_path: Path) -> None:
    model = rounded(llama, bits=4, symmetric=True)
    export_gguf(model, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    down = tensors["blk.1.ffn_down.weight"]
    values = gguf.quants.dequantize(down.data, down.tensor_type)
    np.testing.assert_array_equal(values, model.linears["layers.1.mlp.down"].dequantize())
    query = tensors["blk.0.attn_q.weight"]
    turned = gguf.quants.dequantize(query.data, query.tensor_type)
    halves = model.linears["layers.0.attention.query"].dequantize().reshape(4, 2, 32, -1)
    np.testing.assert_array_equal(turned, halves.swapaxes(1, 2).reshape(turned.shape))  # interleaved pairs of a head


@pytest.mark.parametrize("kind", ["gptq", "awq"])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_folders_of_packages_hold_the_same_values(llama: Model, tmp_path: Path, kind: Any, group: int) -> None:
    model = rounded(llama, bits=4, symmetric=True, group=group)
    export_folder(model, tmp_path / "out", kind)
    read = load(tmp_path / "out")
    same_values(model, read)
    assert read.tokenizer.encode("hello <|end|>") == model.tokenizer.encode("hello <|end|>")
    assert read.tokenizer.eos_ids == model.tokenizer.eos_ids
    assert dataclasses.replace(read.config, family="llama") == model.config


@pytest.mark.parametrize("kind", ["gptq", "awq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_an_embedding_in_codes_is_written_in_16_bits(llama: Model, tmp_path: Path, kind: Any, bits: int) -> None:
    model = rounded(llama, bits=4, symmetric=True, embedding_bits=bits)
    export_folder(model, tmp_path / "out", kind)
    read = load(tmp_path / "out")
    for name, linear in model.linears.items():
        own = linear.dequantize()
        if not name.startswith("layers."):
            assert read.linears[name].label == "f16"
            own = own.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(read.linears[name].dequantize(), own, err_msg=name)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("lowest", [0, 1])
def test_zero_points_go_through_both_versions_of_gptq(llama: Model, tmp_path: Path, bits: int, lowest: int) -> None:
    random = np.random.default_rng(0)
    for name, linear in list(llama.linears.items()):
        if name.startswith("layers."):
            rows, columns = linear.out_features, linear.in_features
            codes = random.integers(0, 1 << bits, (rows, columns), np.uint8)
            zeros = random.integers(lowest, 1 << bits, (rows, columns // 64), np.uint8)
            scales = random.random((rows, columns // 64), np.float32)
            llama.replace(name, ZeroPointLinear.from_codes(codes, scales, zeros, bits, 64))
    export_folder(llama, tmp_path / "out", "gptq")
    method = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert method["checkpoint_format"] == ("gptq" if lowest else "gptq_v2")
    same_values(llama, load(tmp_path / "out"))


@pytest.mark.parametrize("bits", [2, 3])
def test_fewer_bits_than_gptq_is_read_with_are_named(llama: Model, tmp_path: Path, bits: int) -> None:
    for name, linear in list(llama.linears.items()):
        if name.startswith("layers."):
            codes = np.ones((linear.out_features, linear.in_features), np.uint8)
            ones = np.ones((linear.out_features, linear.in_features // 64), np.uint8)
            llama.replace(name, ZeroPointLinear.from_codes(codes, ones.astype(np.float32), ones, bits, 64))
    assert files_of(llama.linears["layers.0.mlp.up"]) == []
    with pytest.raises(CheckpointError, match="'layers.0.attention.query' is stored as.*which GPTQ cannot say"):
        export_folder(llama, tmp_path / "out", "gptq")


def test_what_a_format_cannot_say_is_named(llama: Model, tmp_path: Path) -> None:
    wide = rounded(llama, bits=4, group=64)
    with pytest.raises(CheckpointError, match=r"'layers.0.attention.query' is stored as int4-g64.*groups of 32"):
        export_gguf(wide, tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=r"'layers.0.attention.query' is stored as int4-g64 with minimums, which"):
        export_folder(wide, tmp_path / "out", "gptq")
    eight = rounded(llama, bits=8, symmetric=True)
    with pytest.raises(CheckpointError, match="which AWQ cannot say"):
        export_folder(eight, tmp_path / "out", "awq")
    mixed = rounded(llama, bits=4, symmetric=True)
    mixed.replace("layers.1.mlp.up", eight.linears["layers.1.mlp.up"])
    with pytest.raises(CheckpointError, match="'layers.1.mlp.up' has 8 bits in groups of 32, others 4 in groups of 32"):
        export_folder(mixed, tmp_path / "out", "gptq")
    ends = rounded(llama, bits=4, symmetric=True)
    great = np.full((ends.config.vocabulary_size, ends.config.hidden_size), 1e5, np.float32)
    ends.replace("embedding", DenseLinear.from_weight(great))
    with pytest.raises(CheckpointError, match="'embedding' is stored as fp?32 and has a value of 100000; GPTQ keeps"):
        export_folder(ends, tmp_path / "out", "gptq")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["llama"]


def test_a_config_that_a_format_cannot_say_is_named(llama: Model, tmp_path: Path) -> None:
    model = rounded(llama, bits=4, symmetric=True)
    plain = model.config
    model.config = dataclasses.replace(plain, query_scale=0.5)
    with pytest.raises(ConfigError, match="a GGUF file cannot say query_scale = 0.5"):
        export_gguf(model, tmp_path / "m.gguf")
    layer = plain.layers[0]
    turned = dataclasses.replace(layer.rope, scaling=RopeScaling("linear", 2.0))
    model.config = dataclasses.replace(plain, layers=(dataclasses.replace(layer, rope=turned),) * 2)
    with pytest.raises(ConfigError, match="a checkpoint of AWQ cannot say layers"):
        export_folder(model, tmp_path / "out", "awq")
    model.config = dataclasses.replace(plain, family="gemma3")
    with pytest.raises(ConfigError, match="of 'gemma3'; models of llama"):
        export_gguf(model, tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match="of 'gemma3'; models of llama"):
        export_folder(model, tmp_path / "out", "gptq")
    model.replace("layers.0.mlp.up", DenseLinear.from_weight(model.linears["layers.0.mlp.up"].dequantize()))
    with pytest.raises(ConfigError, match="of 'gemma3'; models of llama"):  # before what other formats would help
        export_folder(model, tmp_path / "out", "gptq")


def test_no_tokenizer_and_an_odd_width_are_said(llama: Model, tmp_path: Path) -> None:
    without = dataclasses.replace(llama, tokenizer=None)
    with pytest.raises(CheckpointError, match=r"no tokenizer.json"):
        export_gguf(without, tmp_path / "m.gguf")
    model = rounded(llama, bits=4, symmetric=True)
    model.linears["layers.0.mlp.up"] = GroupLinear.quantize(np.ones((255, 128), np.float32), 4, 32, symmetric=True)
    with pytest.raises(CheckpointError, match="'layers.0.mlp.up' has 255 rows; GPTQ and AWQ pack 8 codes"):
        export_folder(model, tmp_path / "out", "awq")
    model.linears["layers.0.mlp.up"] = GroupLinear.quantize(np.ones((256, 100), np.float32), 4, 32, symmetric=True)
    with pytest.raises(CheckpointError, match="'layers.0.mlp.up' is stored as int4-g32, which no type"):
        export_gguf(model, tmp_path / "m.gguf")


def test_nothing_is_left_of_a_write_that_fails(llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        write_gguf(*arguments, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("thrifty.models.export.gguf.write_gguf", fail)
    with pytest.raises(OSError, match="No space"):
        export_gguf(rounded(llama, bits=4), tmp_path / "m.gguf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "n.gguf").write_text("mine")
    with pytest.raises(StorageError, match="n.gguf is there already"):
        export_gguf(rounded(llama, bits=4), tmp_path / "n.gguf")
    assert (tmp_path / "n.gguf").read_text() == "mine"
    with pytest.raises(StorageError, match="is there already"):
        export_folder(rounded(llama, bits=4, symmetric=True), tmp_path / "out", "gptq")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "m."))]


def test_plain_halves_stay_exact(llama: Model, tmp_path: Path) -> None:
    for name, linear in list(llama.linears.items()):
        llama.replace(name, DenseLinear.from_weight(linear.dequantize(), np.float16))
    export_gguf(llama, tmp_path / "new" / "folder" / "m.gguf")
    same_values(llama, load(tmp_path / "new" / "folder" / "m.gguf"))
