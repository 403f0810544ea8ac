"""Directories of safetensors: every part in its place, and errors that name the file, field or tensor."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tests.fuzzing import examples

from thrifty.arrays import BFLOAT16, Array, Floats
from thrifty.errors import CheckpointError, ConfigError, ThriftyError
from thrifty.models.huggingface.safetensors_file import TensorReader, read_entries
from thrifty.models.huggingface.source import HuggingFaceSource
from thrifty.models.loading import assemble, load, load_plain
from thrifty.models.model import Model

CONFIG = {
    "model_type": "llama",
    "vocab_size": 19,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
FLOAT32 = np.dtype(np.float32)
QUERY = "model.layers.1.self_attn.q_proj.weight"


def zeros(*shape: int) -> Floats:
    return np.zeros(shape, np.float32)


def tensors() -> dict[str, Floats]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (19, 8), "lm_head.weight": (19, 8)}
    for index in range(2):
        layer = f"model.layers.{index}"
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (8, 8) for name in "qo"}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (4, 8) for name in "kv"}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (12, 8) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (8, 12)}
        shapes |= {f"{layer}.{name}_layernorm.weight": (8,) for name in ("input", "post_attention")}
    shapes["model.norm.weight"] = (8,)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(directory: Path, weights: dict[str, Array] | None = None, **changes: Any) -> Path:
    save_file(tensors() if weights is None else weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return directory


def query(model: Model) -> Floats:
    """The values of the tensor QUERY."""
    return model.linears["layers.1.attention.query"].dequantize()


def refusal(directory: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        assemble(HuggingFaceSource(directory))
    return str(error.value)


def test_every_part_has_its_values_and_its_report(tmp_path: Path) -> None:
    model = assemble(HuggingFaceSource(write(tmp_path)), FLOAT32)
    assert np.array_equal(query(model), tensors()[QUERY])
    assert np.array_equal(model.norms["final_norm"], tensors()["model.norm.weight"])
    assert {(report.format, report.origin, report.error) for report in model.report} == {("f32", "F32", 0.0)}
    assert len(model.report) == len(tensors())


def test_a_value_that_bfloat16_rounds_to_infinity_is_refused_with_the_way_out(tmp_path: Path) -> None:
    weights = tensors()
    weights[QUERY][1, 2] = -np.finfo(np.float32).max
    source = HuggingFaceSource(write(tmp_path, weights))
    for dtype in (None, BFLOAT16):
        with pytest.raises(CheckpointError) as error:
            assemble(source, dtype)
        assert "'layers.1.attention.query' holds 3.4028e+38; bfloat16 holds at most 3.3895e+38" in str(error.value)
        assert "thrifty.reference.load(…, dtype=torch.float32), which keeps it" in str(error.value)
    assert np.array_equal(query(assemble(source, FLOAT32)), weights[QUERY])


def test_load_converts_once_and_keeps_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    directory = write(tmp_path / "model")
    direct = assemble(HuggingFaceSource(directory))
    first, second = load(directory), load(directory)
    for found in (first, second):
        assert list(found.linears) == list(direct.linears) and list(found.norms) == list(direct.norms)
        for name, linear in direct.linears.items():
            assert np.array_equal(found.linears[name].dequantize(), linear.dequantize())
        for name, norm in direct.norms.items():
            assert np.array_equal(found.norms[name], norm)
    assert first.version == second.version != load_plain(directory, FLOAT32).version
    assert first.tokenizer is None
    write(directory, max_position_embeddings=32)
    assert load(directory).config.context_length == 32


def test_half_floats_are_kept_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = {name: values.astype(np.float16) for name, values in tensors().items()}
    write(tmp_path, halves)
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    converted, mapped = load(tmp_path), load(tmp_path, copy=False)
    for model in (converted, mapped):
        linear = model.linears["layers.1.attention.query"]
        assert linear.label == "f16" and np.array_equal(linear.dequantize(), halves[QUERY].astype(np.float32))
        assert {(entry.error, entry.largest_error) for entry in model.report} == {(0.0, 0.0)}
    weight = mapped.linears["layers.1.attention.query"].state()["weight"]
    assert not weight.flags.writeable, "the rows are the file's own"


def test_generation_config_adds_ends(tmp_path: Path) -> None:
    write(tmp_path, bos_token_id=None)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7], "bos_token_id": 1, "top_p": 0.9}')
    config = HuggingFaceSource(tmp_path).config
    assert (config.eos_ids, config.bos_ids) == ((2, 7), (1,))


def test_tables_of_old_checkpoints_are_skipped(tmp_path: Path) -> None:
    weights = tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    assemble(HuggingFaceSource(write(tmp_path, weights)))


def test_tied_embeddings_may_be_stored_as_the_head_alone(tmp_path: Path) -> None:
    weights = tensors()
    embedding = weights.pop("model.embed_tokens.weight")
    write(tmp_path, weights | {"lm_head.weight": embedding}, tie_word_embeddings=True)
    model = assemble(HuggingFaceSource(tmp_path), FLOAT32)
    assert "head" not in model.linears and model.head is model.linears["embedding"]
    assert np.array_equal(model.head.dequantize(), embedding)


def test_a_head_beside_tied_embeddings_must_be_the_embedding(tmp_path: Path) -> None:
    weights = tensors()
    write(tmp_path, weights, tie_word_embeddings=True)
    assert "'lm_head.weight' differs from the embedding, but tie_word_embeddings is true" in refusal(tmp_path)
    assert "Set it to false in config.json to use this tensor as the head, or remove the tensor" in refusal(tmp_path)
    write(tmp_path, weights | {"lm_head.weight": weights["model.embed_tokens.weight"].copy()}, tie_word_embeddings=True)
    assert "head" not in assemble(HuggingFaceSource(tmp_path)).linears


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({QUERY: None}, "no tensor for 'layers.1.attention.query', expected shape [8, 8]"),
        ({QUERY: zeros(8, 9)}, f"tensor '{QUERY}' has shape [8, 9]; expected [8, 8]"),
        ({QUERY: zeros(64)}, "has shape [64]; expected [8, 8]"),
        ({QUERY: np.zeros((8, 8), np.int32)}, "has type I32; expected one of F32, F16, BF16"),
        (
            {QUERY: np.full((8, 8), np.nan, np.float32)},
            "q_proj.weight': Tensor 'layers.1.attention.query' holds a value that is not finite: nan at [0, 0]",
        ),
        ({"model.norm.weight": np.full(8, np.inf, np.float32)}, "'final_norm' holds a value that is not finite"),
        (
            {"model.layers.0.self_attn.q_proj.bias": zeros(8)},
            "q_proj.bias' has no place in a llama model",
        ),
        (
            {"model.layers.2.mlp.up_proj.weight": zeros(12, 8)},
            "layers.2.mlp.up_proj.weight' has no place",
        ),
        ({"score.weight": zeros(2, 8)}, "tensor 'score.weight' has no place"),
        ({"norm.weight": zeros(8)}, "are the same part"),
    ],
)
def test_tensors_that_do_not_fit(change: dict[str, Array | None], expected: str, tmp_path: Path) -> None:
    weights = {name: tensor for name, tensor in (tensors() | change).items() if tensor is not None}
    assert expected in refusal(write(tmp_path, weights))


def test_claims_beyond_the_files_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, num_hidden_layers=1024))
    assert "num_hidden_layers is 1024 with 0 experts in 0 of them; the files hold only" in message
    experts = {"model_type": "olmoe", "num_experts": 4096, "num_experts_per_tok": 2}
    assert "with 4096 experts in 2 of them" in refusal(write(tmp_path, **experts))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    message = refusal(tmp_path)
    assert "holds only pickles (pytorch_model.bin)" in message
    assert "save_pretrained" in message


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(tmp_path)
    save_file(tensors(), tmp_path / "model.safetensors")
    assert "config.json cannot be read: No such file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b'{"a": 1, "a": 2}', "the key 'a' comes twice"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "config.json is not a table"),
    ],
)
def test_configs_that_are_not_json(text: bytes, expected: str, tmp_path: Path) -> None:
    (write(tmp_path) / "config.json").write_bytes(text)
    assert expected in refusal(tmp_path)


def shards(directory: Path, weight_map: object = None) -> Path:
    weights = tensors()
    names = sorted(weights)
    files = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
    for file, held in files.items():
        save_file({name: weights[name] for name in held}, directory / file)
    if weight_map is None:
        weight_map = {name: file for file, held in files.items() for name in held}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def test_shards(tmp_path: Path) -> None:
    assert np.array_equal(query(assemble(HuggingFaceSource(shards(tmp_path)), FLOAT32)), tensors()[QUERY])


@pytest.mark.parametrize(
    ("weight_map", "expected"),
    [
        ({}, "weight_map is missing or not a table"),
        ([], "weight_map is missing or not a table"),
        ({QUERY: "m" * 5000 + ".safetensors"}, "it must be a safetensors file beside it"),
        ({QUERY: "m\0.safetensors"}, "it must be a safetensors file beside it"),
        ({QUERY: "../../secret.safetensors"}, "the file '../../secret.safetensors'; it must be a safetensors file"),
        ({QUERY: "/etc/passwd"}, "the file '/etc/passwd'; it must be"),
        ({QUERY: 3}, "the file 3; it must be"),
        ({QUERY: "c.safetensors"}, "the file 'c.safetensors' is missing"),
        ({QUERY: "a.safetensors"}, f"tensor '{QUERY}' is not in 'a.safetensors'"),
    ],
)
def test_indexes_that_do_not_fit(weight_map: object, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(shards(tmp_path, weight_map))


def test_the_index_says_which_file_a_tensor_is_read_from(tmp_path: Path) -> None:
    shards(tmp_path)
    stale = {
        "model.embed_tokens.weight": zeros(19, 8),
        "model.layers.0.mlp.experts.0.w1.weight": np.ones(2, np.float32),
    }
    save_file(load_file(tmp_path / "b.safetensors") | stale, tmp_path / "b.safetensors")
    model = assemble(HuggingFaceSource(tmp_path), FLOAT32)
    assert np.array_equal(model.linears["embedding"].dequantize(), tensors()["model.embed_tokens.weight"])


def test_without_an_index_every_tensor_needs_a_place(tmp_path: Path) -> None:
    assert "'extra.weight' has no place in a llama model" in refusal(
        write(tmp_path, tensors() | {"extra.weight": np.ones(2, np.float32)})
    )


def craft(path: Path, header: object, data: bytes = bytes(16), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ([], "the header is not a table"),
        (b"{", "is not valid JSON"),
        (b'{"a": {}, "a": {}}', "the key 'a' comes twice"),
        ({"a": 3}, "tensor 'a' is not a table"),
        ({"a": entry("F99")}, "tensor 'a': dtype 'F99' is unknown"),
        ({"a": entry(dtype=[])}, "tensor 'a': dtype [] is unknown"),
        ({"a": entry(shape=None)}, "tensor 'a': shape None is not a list"),
        ({"a": entry(shape=[-4])}, "tensor 'a': shape [-4] is not a list"),
        ({"a": entry(shape=[4.0])}, "tensor 'a': shape [4.0] is not a list"),
        ({"a": entry(shape=[1] * 9)}, "is not a list of at most 8 sizes"),
        ({"a": entry(shape=[1 << 62] * 8)}, "needs "),
        ({"a": entry(shape=[5])}, "tensor 'a': shape [5] of F32 needs 20 bytes; data_offsets give it 16"),
        ({"a": entry(offsets=[0])}, "data_offsets [0] is not a pair"),
        ({"a": entry(offsets=[16, 0])}, "data_offsets [16, 0] leave the 16 bytes of data"),
        ({"a": entry(shape=[8], offsets=[0, 32])}, "data_offsets [0, 32] leave the 16 bytes of data"),
        ({"a": entry(), "b": entry()}, "tensor 'b': data_offsets start at 0, which overlaps the tensor before it"),
        ({"a": entry(shape=[2], offsets=[8, 16])}, "tensor 'a': data_offsets start at 8, which leaves a gap"),
        ({"a": entry(shape=[2], offsets=[0, 8])}, "the tensors end at byte 8 of 16 bytes of data"),
    ],
)
def test_hostile_headers(header: object, expected: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        read_entries(craft(tmp_path / "x.safetensors", header))
    assert expected in str(error.value)


@pytest.mark.parametrize("length", [1 << 63, 1 << 40, 1000])
def test_header_lengths_beyond_the_file(length: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"the header length is {length}; at most 18 fit"):
        read_entries(craft(tmp_path / "x.safetensors", b"{}", length=length))
    (tmp_path / "y.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="the file has 3 bytes; it must have at least 8"):
        read_entries(tmp_path / "y.safetensors")


def test_a_good_header_and_slices(tmp_path: Path) -> None:
    save_file({"a": np.arange(12, dtype=np.float32).reshape(3, 4)}, tmp_path / "x.safetensors")
    found = read_entries(tmp_path / "x.safetensors")["a"]
    assert (found.dtype, found.shape, found.nbytes) == ("F32", (3, 4), 48)
    assert TensorReader(span=0).read(found, 1).tolist() == [4, 5, 6, 7]


def test_tensors_of_every_type_at_every_offset(tmp_path: Path) -> None:
    """Also where a tensor does not begin at a multiple of its numbers' size, which the format allows."""
    values = np.linspace(-3, 3, 6, dtype=np.float32).reshape(2, 3)
    for dtype, name in ((FLOAT32, "F32"), (np.dtype(np.float16), "F16"), (BFLOAT16, "BF16")):
        stored = values.astype(dtype)
        for before in (1, 2, 4):
            start, stop = before, before + stored.nbytes
            header = {"a": entry("U8", [before], [0, start]), "b": entry(name, [2, 3], [start, stop])}
            path = craft(tmp_path / "x.safetensors", header, bytes(before) + stored.tobytes())
            reader, found = TensorReader(), read_entries(path)["b"]
            assert reader.read(found).dtype == dtype and reader.read(found).flags.aligned
            assert np.array_equal(reader.read(found), stored) and np.array_equal(reader.read(found, 1), stored[1])


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    save_file({"a": zeros(5000)}, tmp_path / "x.safetensors")
    found = read_entries(tmp_path / "x.safetensors")["a"]
    (tmp_path / "x.safetensors").write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=r"x.safetensors: tensor 'a' cannot be read"):
        TensorReader().read(found)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_what_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    tensor = np.ones((2 << 20,), np.float32)  # 8 MB
    save_file({f"t{index}": tensor for index in range(8)}, tmp_path / "x.safetensors")
    reader = TensorReader(span=8 << 20)
    resident = []
    for found in read_entries(tmp_path / "x.safetensors").values():
        assert reader.read(found).sum() == tensor.size
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
        resident.append(int(line.split()[1]) / 1024)
    assert max(resident) - min(resident) < 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoint"))


@settings(max_examples=examples(1500), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=6),
       cut=st.none() | st.integers(0, 6000))  # fmt: skip
def test_corrupt_files_give_an_error_or_a_model(
    checkpoint: Path, tmp_path: Path, edits: list[tuple[int, int]], cut: int | None
) -> None:
    """Bytes of the header (about 2,300) and the file's length are changed; only our own errors may come
    out.
    """
    data = bytearray((checkpoint / "model.safetensors").read_bytes())
    for place, value in edits:
        data[place] = value
    (tmp_path / "model.safetensors").write_bytes(data if cut is None else data[:cut])
    shutil.copy(checkpoint / "config.json", tmp_path / "config.json")
    try:
        model = assemble(HuggingFaceSource(tmp_path))
    except ThriftyError as error:
        assert str(error)
    else:
        assert all(linear.dequantize().size for linear in model.linears.values())


def test_config_errors_are_checkpoint_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'llama'"):
        HuggingFaceSource(write(tmp_path, model_type="llame"))
