"""GGUF files: every tensor type against the gguf package, and errors that name the field."""

from __future__ import annotations

import struct
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize, quantize
from tests import gguf_files
from tests.ggml_rows import HALVES

from thrifty.arrays import BFLOAT16
from thrifty.errors import CheckpointError
from thrifty.formats.gguf import FORMATS
from thrifty.models.gguf import rows as gguf_rows
from thrifty.models.gguf.file import GGUF
from thrifty.models.gguf.header import OTHER_TYPES, TENSOR_TYPES
from thrifty.models.gguf.metadata import Metadata
from thrifty.models.gguf.source import GGUFSource
from thrifty.models.source import SlicedLinear
from thrifty.models.tokens.gguf import _token_id

FLOAT32 = np.dtype(np.float32)


def test_the_tables_of_types_are_those_of_the_format() -> None:
    for number, (name, block, nbytes) in TENSOR_TYPES.items():
        kind = GGMLQuantizationType(number)
        assert (kind.name, *GGML_QUANT_SIZES[kind]) == (name, block, nbytes)
    present = {int(kind): kind.name for kind in GGMLQuantizationType}
    removed = {4, 5, 31, 32, 33, 36, 37, 38}
    assert {number: name for number, name in OTHER_TYPES.items() if number not in removed} == {
        number: name for number, name in present.items() if number in OTHER_TYPES
    }
    assert {int(kind) for kind in GGMLQuantizationType} <= {*TENSOR_TYPES, *OTHER_TYPES, *range(41, 100)}


def test_every_type_is_read_and_named_once() -> None:
    assert {name for name, _, _ in TENSOR_TYPES.values()} == {*FORMATS, "F32"}


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_a_file_keeps_exact_values_through_the_packed_layout(tmp_path: Path, name: str) -> None:
    kind = GGMLQuantizationType[name]
    source = GGUFSource(gguf_files.tiny(tmp_path / "m.gguf", default=kind))
    tensors = gguf_files.llama_tensors()
    found = {weight.name: weight for weight in source.weights()}
    gate = found["layers.0.mlp.gate"]
    assert gate.error == 0 and gate.origin == name
    exact = dequantize(quantize(tensors["blk.0.ffn_gate.weight"], kind), kind)
    np.testing.assert_array_equal(gate.value.dequantize(), exact)
    rows = found["embedding"].value.rows(np.array([0, 261]))
    embedding = dequantize(quantize(tensors["token_embd.weight"], kind), kind)
    np.testing.assert_array_equal(rows, embedding[[0, 261]])


def test_unquantised_matrices_become_bf16_and_norms_stay_fp32(tmp_path: Path) -> None:
    source = GGUFSource(gguf_files.tiny(tmp_path / "m.gguf"))
    found = {weight.name: weight for weight in source.weights()}
    assert found["layers.0.mlp.up"].value.label == "bf16"
    assert 0 < found["layers.0.mlp.up"].error < 4e-3
    assert found["final_norm"].value.dtype == np.float32
    exact = {weight.name: weight for weight in source.weights(FLOAT32)}
    up = gguf_files.llama_tensors()["blk.0.ffn_up.weight"]
    np.testing.assert_array_equal(exact["layers.0.mlp.up"].value.dequantize(), up)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        GGUFSource(path)
    return str(error.value)


def test_an_unknown_tensor_type_is_named(tmp_path: Path) -> None:
    path = gguf_files.tiny(tmp_path / "m.gguf")
    raw = path.read_bytes()
    at = raw.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16
    for number, shown in (
        (18, "IQ3_XXS (18)"),
        (34, "TQ1_0 (34)"),
        (39, "MXFP4 (39)"),
        (31, "Q4_0_4_4 (31)"),
        (99, "99"),
    ):
        path.write_bytes(raw[:at] + struct.pack("<I", number) + raw[at + 4 :])
        message = refusal(path)
        assert f"tensor 'blk.0.attn_q.weight' has the type {shown}, which is not read" in message
        assert "Known types: F32, F16, Q4_0" in message and "IQ4_XS" in message
        assert "Fetch the model in one of these, such as Q4_K_M, or convert it: `llama-quantize" in message


def test_an_offset_beyond_the_file_is_named(tmp_path: Path) -> None:
    path = gguf_files.tiny(tmp_path / "m.gguf")
    raw = path.read_bytes()
    at = raw.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16 + 4
    path.write_bytes(raw[:at] + struct.pack("<Q", 1 << 40) + raw[at + 8 :])
    message = refusal(path)
    assert "tensor 'blk.0.attn_q.weight'" in message and "4096 bytes ends beyond" in message
    assert f"the file's {len(raw)} bytes" in message


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", "too short for a GGUF header"),
        (b"GGUX" + bytes(40), "does not start with 'GGUF'"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "version 1 is not supported"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "a big-endian GGUF file (version 3); only little-endian"),
        (b"GGUF" + struct.pack(">I", 2) + bytes(40), "`gguf-convert-endian FILE little`"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensor count is 1152921504606846976"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "metadata count is 1099511627776"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 62) + bytes(40), "metadata key 0: 4611686018427387904 bytes"),
    ],
)
def test_damaged_headers(tmp_path: Path, head: bytes, expected: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(head)
    assert expected in refusal(path)


def test_missing_files_and_directories(tmp_path: Path) -> None:
    assert "cannot be opened: No such file" in refusal(tmp_path / "none.gguf")
    assert "not a regular file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"{arch}.block_count": 5}, "'llama.block_count' is 5, but tensor 'blk.4.attn_norm.weight' is missing"),
        ({"{arch}.block_count": 100_000_000}, "'llama.block_count' is 100000000; it must lie between 1 and 1024"),
        ({"{arch}.embedding_length": 64}, "'token_embd.weight' has shape [262, 32]; [262, 64] is expected"),
        ({"{arch}.attention.head_count": "two"}, "'llama.attention.head_count' must be an integer, not 'two'"),
        ({"{arch}.attention.layer_norm_rms_epsilon": -1.0}, "layer_norm_rms_epsilon' is -1.0"),
        ({"{arch}.attention.clamp_kqv": 8.0}, "'llama.attention.clamp_kqv' is 8.0; only 0 is supported"),
        ({"{arch}.logit_scale": 2.0}, "'llama.logit_scale' is 2.0; only 0 or 1 is supported, which changes nothing"),
        ({"{arch}.attention.causal": False}, "'llama.attention.causal' is False; only True is supported"),
        ({"{arch}.residual_scale": [1.0, 2.0]}, "'llama.residual_scale' is array("),
        ({"{arch}.tensor_data_layout": "other"}, "'llama.tensor_data_layout' is 'other'; only '' or 'Meta AI"),
        ({"{arch}.attention.scale": -1.0}, "'llama.attention.scale' is -1.0"),
        ({"{arch}.a_field_of_tomorrow": 0}, "the field 'llama.a_field_of_tomorrow' is not supported"),
        ({"{arch}.rope.scaling.type": "yern"}, "Did you mean 'yarn'?"),
        ({"split.count": 2}, "one part of a split GGUF"),
        ({"{arch}.rope.dimension_count": 8}, "'llama.rope.dimension_count' is 8"),
    ],
)
def test_metadata_that_does_not_fit_is_named(tmp_path: Path, fields: dict[str, object], expected: str) -> None:
    fields = {**gguf_files.LLAMA_FIELDS, **fields}
    path = gguf_files.write(tmp_path / "m.gguf", "llama", fields, gguf_files.llama_tensors())
    assert expected in refusal(path)


def test_fields_at_values_that_change_nothing_are_taken(tmp_path: Path) -> None:
    neutral: dict[str, object] = {
        "tensor_data_layout": "Meta AI original pth",
        "use_parallel_residual": True,
        "attention.causal": True,
        "attention.clamp_kqv": 0.0,
        "attention.max_alibi_bias": 0.0,
        "attention.layer_norm_epsilon": 1e-3,
        "attention.scale": 0.0,
        "pooling_type": 0,
        "logit_scale": 1.0,
        "embedding_scale": 0.0,
        "residual_scale": 1.0,
        "expert_group_count": 1,
        "nextn_predict_layers": 0,
        "decoder_start_token_id": 7,
    }
    fields = {**gguf_files.LLAMA_FIELDS, **{f"{{arch}}.{name}": value for name, value in neutral.items()}}
    path = gguf_files.write(tmp_path / "m.gguf", "llama", fields, gguf_files.llama_tensors())
    assert GGUFSource(path).config == GGUFSource(gguf_files.tiny(tmp_path / "plain.gguf")).config


def test_unknown_architectures_and_tensors(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "a.gguf", "lama", gguf_files.LLAMA_FIELDS, gguf_files.llama_tensors())
    assert "architecture 'lama' is not supported. Did you mean 'llama'?" in refusal(path)
    tensors = gguf_files.llama_tensors() | {"blk.0.attn_sinks.weight": np.ones(2, np.float32)}
    path = gguf_files.write(tmp_path / "b.gguf", "llama", gguf_files.LLAMA_FIELDS, tensors)
    assert "tensor 'blk.0.attn_sinks.weight' has no place" in refusal(path)
    tensors = gguf_files.llama_tensors()
    del tensors["blk.0.ffn_up.weight"]
    path = gguf_files.write(tmp_path / "c.gguf", "llama", gguf_files.LLAMA_FIELDS, tensors)
    assert "no tensor for 'layers.0.mlp.up' [64, 32]" in refusal(path)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    path = gguf_files.tiny(tmp_path / "m.gguf")
    raw = path.read_bytes()
    at = raw.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 16 + 4
    path.write_bytes(raw[:at] + struct.pack("<Q", 0) + raw[at + 8 :])
    assert "overlaps tensor" in refusal(path)


def test_a_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = gguf_files.tiny(tmp_path / "m.gguf", ffn_up=GGMLQuantizationType.Q4_0)
    start = GGUF(path).tensor("blk.0.ffn_up.weight").offset
    raw = bytearray(path.read_bytes())
    raw[start + 18 : start + 20] = np.float16("inf").tobytes()
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"'blk.0.ffn_up.weight': the scale of row 1, group 0 is not finite"):
        list(GGUFSource(path).weights())


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blk.0.ffn_down.weight", "blk.0.attn_norm.weight"])
def test_a_value_that_is_not_finite_is_named(tmp_path: Path, name: str, value: float, kind: str) -> None:
    tensors = gguf_files.llama_tensors()
    tensors[name].reshape(-1)[40 % tensors[name].size] = value
    kinds = {"default": GGMLQuantizationType[kind]}
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.LLAMA_FIELDS, tensors, **kinds)
    place = [0, 40] if tensors[name].ndim == 2 else [8]
    for dtype in (None, FLOAT32):
        with pytest.raises(CheckpointError) as error:
            list(GGUFSource(path).weights(dtype))
        shown = f"m.gguf: Tensor '{name}' holds a value that is not finite: {value} at {place}. The file is damaged"
        assert shown in str(error.value)


@pytest.mark.parametrize("name", HALVES)
def test_every_type_in_a_file_is_kept_to_the_bit(tmp_path: Path, name: str) -> None:
    """A model of 256 channels, of random blocks; the rows of query and key go back to halves."""
    path = gguf_files.of_random_blocks(tmp_path / "m.gguf", name)
    source, file = GGUFSource(path), GGUF(path)
    found = {weight.name: weight for weight in source.weights()}
    for part, tensor in (("mlp.up", "ffn_up"), ("mlp.down", "ffn_down"), ("attention.query", "attn_q")):
        weight = found[f"layers.0.{part}"]
        exact = dequantize(file.rows(f"blk.0.{tensor}.weight"), GGMLQuantizationType[name])
        if tensor == "attn_q":
            exact = exact.reshape(2, 64, 2, 256).swapaxes(1, 2).reshape(256, 256)
        np.testing.assert_array_equal(weight.value.dequantize(), exact)
        assert (weight.origin, weight.error, weight.largest_error) == (name, 0, 0)
    exact = {weight.name: weight.value for weight in source.weights(FLOAT32)}
    for part, weight in found.items():
        if weight.origin == name:
            np.testing.assert_array_equal(weight.value.dequantize(), exact[part].dequantize())


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_two_scales_whose_product_is_beyond_float16_are_kept(tmp_path: Path, name: str) -> None:
    path = gguf_files.of_random_blocks(tmp_path / "m.gguf", name)
    info, raw = GGUF(path).tensor("blk.0.ffn_up.weight"), bytearray(path.read_bytes())
    start = info.offset + HALVES[name][0]
    raw[start : start + 2] = np.float16(60_000).tobytes()
    path.write_bytes(raw)
    up = next(weight.value for weight in GGUFSource(path).weights() if weight.name == "layers.0.mlp.up")
    assert np.abs(up.dequantize()).max() > 65_504


def test_a_second_scale_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = gguf_files.of_random_blocks(tmp_path / "m.gguf", "Q2_K")
    info, raw = GGUF(path).tensor("blk.0.ffn_up.weight"), bytearray(path.read_bytes())
    start = info.offset + 17 * info.row_bytes + 82
    raw[start : start + 2] = np.float16("nan").tobytes()
    path.write_bytes(raw)
    message = r"m.gguf: tensor 'blk.0.ffn_up.weight': the minimum of row 17, group 0 is not finite; the file is damaged"
    with pytest.raises(CheckpointError, match=message):
        list(GGUFSource(path).weights())


def test_slices_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    """Sizes are known before, and more slices than one make the same layer."""
    path = gguf_files.of_random_blocks(tmp_path / "m.gguf", "Q5_K")
    whole = {weight.name: weight.value for weight in GGUFSource(path).weights()}
    with patch.object(gguf_rows, "ROWS_AT_A_TIME", 48):
        for weight in GGUFSource(path).sliced():
            if isinstance(weight.value, SlicedLinear):
                expected = whole[weight.name]
                assert weight.value.nbytes == expected.nbytes
                parts = list(weight.value.slices())
                assert len(parts) == -(-expected.out_features // 48)
                again = weight.value.whole()
                for name, array in expected.state().items():
                    np.testing.assert_array_equal(again.state()[name], array)


INTEGERS = ["UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64"]


@pytest.mark.parametrize("width", INTEGERS)
def test_integers_of_every_width(tmp_path: Path, width: str) -> None:
    """Single numbers and arrays, and integers where a fraction may stand."""
    kind = GGUFValueType[width]
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    fields = {key.format(arch="llama"): value for key, value in gguf_files.LLAMA_FIELDS.items()}
    fields |= {"llama.rope.freq_base": 100, "llama.attention.key_length": 16, "llama.expert_count": 0}
    fields |= {"split.count": 1, "split.no": 0, "llama.rope.scaling.factor": 2, "tokenizer.ggml.padding_token_id": 7}
    fields |= {"llama.attention.sliding_window": 32}
    for key, value in fields.items():
        writer.add_key_value(key, value, kind if isinstance(value, int) else GGUFValueType.FLOAT64)
    tokens = gguf_files.byte_tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    types = [3 if token in gguf_files.TEXTS else 1 for token in tokens]
    writer.add_key_value("tokenizer.ggml.token_type", types, GGUFValueType.ARRAY, sub_type=kind)
    writer.add_token_merges(["h e", "l l", "he ll"])
    for name, values in gguf_files.llama_tensors().items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source = GGUFSource(tmp_path / "m.gguf")
    config = source.config
    assert (config.heads, config.context_length, config.pad_id, config.layers[0].window) == (2, 64, 7, 32)
    assert (config.layers[0].rope.theta, config.layers[0].rope.scaling.factor) == (100.0, 2.0)
    assert source.tokenizer.settings.eos_ids == (261, 259)


@pytest.mark.parametrize(
    ("kind", "value"), [("INT32", -1), ("UINT32", 2**32 - 1), ("INT64", -1), ("UINT64", 2**64 - 1)]
)
def test_no_token_in_every_width(tmp_path: Path, kind: str, value: int) -> None:
    values = {"general.architecture": "llama", "tokenizer.ggml.padding_token_id": value}
    found = np.array([value], dtype=kind.lower())[0].item()
    assert (
        _token_id(Metadata(tmp_path, {**values, "tokenizer.ggml.padding_token_id": found}), "padding_token_id", 9)
        is None
    )


def test_a_value_that_bfloat16_rounds_to_infinity_is_refused(tmp_path: Path) -> None:
    tensors = gguf_files.llama_tensors()
    tensors["blk.0.ffn_up.weight"][3, 5] = np.finfo(np.float32).max
    source = GGUFSource(gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.LLAMA_FIELDS, tensors))
    for dtype in (None, BFLOAT16):
        with pytest.raises(
            CheckpointError, match=r"'blk.0.ffn_up.weight' holds 3.4028e\+38; bfloat16 holds at most 3.38"
        ):
            list(source.weights(dtype))
    assert len(list(source.weights(FLOAT32))) == len(tensors)
