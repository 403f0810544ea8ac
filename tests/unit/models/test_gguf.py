"""GGUF files: every tensor type against the gguf package, and errors that name the field."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize, quantize
from tests import gguf_files

from thrifty.arrays import BFLOAT16
from thrifty.errors import CheckpointError
from thrifty.models import gguf_blocks
from thrifty.models.gguf import GGUF
from thrifty.models.gguf_header import OTHER_TYPES, TENSOR_TYPES
from thrifty.models.gguf_metadata import Metadata
from thrifty.models.gguf_source import GGUFSource
from thrifty.models.tokenizer_gguf import _token_id

FLOAT32 = np.dtype(np.float32)
QUANTISED = [kind for kind, entry in TENSOR_TYPES.items() if entry[0] in gguf_blocks.FORMATS]


def test_the_tables_of_types_are_those_of_the_format() -> None:
    for number, (name, block, nbytes) in TENSOR_TYPES.items():
        kind = GGMLQuantizationType(number)
        assert (kind.name, *GGML_QUANT_SIZES[kind]) == (name, block, nbytes)
    for number, name in OTHER_TYPES.items():
        assert GGMLQuantizationType(number).name == name
    assert {int(kind) for kind in GGMLQuantizationType} <= {*TENSOR_TYPES, *OTHER_TYPES, *range(41, 100)}


def raw_rows(number: int, rows: int = 24, columns: int = 512) -> np.ndarray:
    """Random blocks with scales of a usual size."""
    name, block, nbytes = TENSOR_TYPES[number]
    random = np.random.default_rng(number)
    raw = random.integers(0, 256, (rows, columns // block, nbytes), dtype=np.uint8)
    starts = {"Q6_K": [208], "Q4_1": [0, 2], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2]}.get(name, [0])
    for start in starts:
        scales = random.uniform(-0.1, 0.1, raw.shape[:2]).astype(np.float16)
        raw[:, :, start : start + 2] = scales[..., None].view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("number", QUANTISED, ids=lambda number: TENSOR_TYPES[number][0])
def test_quantised_blocks_against_the_gguf_package(number: int) -> None:
    name = TENSOR_TYPES[number][0]
    raw = raw_rows(number)
    oracle = dequantize(raw, GGMLQuantizationType(number))
    np.testing.assert_array_equal(gguf_blocks.values(name, raw), oracle)
    codes = gguf_blocks.group_codes(name, raw, "t")
    error = np.abs(codes.dequantize() - oracle)
    scale = np.abs(oracle).reshape(len(raw), -1, 32).max(-1).repeat(32, -1)
    limits = {"Q4_K": 2e-3, "Q5_K": 2e-3, "Q6_K": 1 / 60}
    if name not in limits:
        np.testing.assert_array_equal(codes.dequantize(), oracle)
    assert np.all(error <= limits.get(name, 0) * scale + 1e-12)
    relative = np.sqrt(np.square(error, dtype=np.float64).sum() / np.square(oracle, dtype=np.float64).sum())
    assert relative < {"Q4_K": 5e-4, "Q5_K": 5e-4, "Q6_K": 6e-3}.get(name, 1e-12)
    assert codes.bits == gguf_blocks.FORMATS[name].bits
    assert (codes.minimums is not None) == gguf_blocks.FORMATS[name].has_minimum


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_values(name: str) -> None:
    values = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    kind = GGMLQuantizationType[name]
    raw = quantize(values, kind).view(np.uint8).reshape(4, -1)
    np.testing.assert_array_equal(gguf_blocks.values(name, raw), dequantize(raw, kind).reshape(4, 64))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_file_keeps_exact_values_through_the_packed_layout(tmp_path: Path, name: str) -> None:
    kind = GGMLQuantizationType[name]
    source = GGUFSource(gguf_files.tiny(tmp_path / "m.gguf", default=kind))
    tensors = gguf_files.llama_tensors()
    found = {weight.name: weight for weight in source.weights()}
    gate = found["layers.0.mlp.gate"]
    assert gate.error == 0 and gate.origin == name and gate.value.label.endswith("g32")
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
    for number, shown in ((10, "Q2_K"), (23, "IQ4_XS"), (99, "99")):
        path.write_bytes(raw[:at] + struct.pack("<I", number) + raw[at + 4 :])
        message = refusal(path)
        assert "'blk.0.attn_q.weight'" in message and shown in message and "Q4_K" in message


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


@pytest.mark.parametrize(("name", "scales"), [("Q4_K", [0]), ("Q5_K", [2]), ("Q6_K", [208])])
def test_a_scale_beyond_float16_is_told_with_the_way_out(tmp_path: Path, name: str, scales: list[int]) -> None:
    """Two levels of scales multiply to more than the stored form holds; exact values load."""
    kind = next(number for number, entry in TENSOR_TYPES.items() if entry[0] == name)
    raw = np.full((1, TENSOR_TYPES[kind][2]), 127, dtype=np.uint8)
    for start in (0, 2) if name != "Q6_K" else (208,):
        raw[0, start : start + 2] = np.frombuffer(np.float16(0).tobytes(), np.uint8)
    for start in scales:
        raw[0, start : start + 2] = np.frombuffer(np.float16(60_000).tobytes(), np.uint8)
    assert np.isfinite(gguf_blocks.values(name, raw)).all()
    with pytest.raises(CheckpointError) as error:
        gguf_blocks.group_codes(name, raw, "blk.0.ffn_up.weight")
    message = str(error.value)
    assert "tensor 'blk.0.ffn_up.weight'" in message and "is beyond float16, which holds at most 65504" in message
    assert "Load the model with thrifty.reference.load(…, dtype=torch.float32), which keeps it" in message


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
