"""Text of every file of a checkpoint passes one gate: what is no UTF-8 is refused with its file and field."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from tests import gguf_files
from tests.checkpoint import write_checkpoint

from thrifty.errors import CheckpointError
from thrifty.models import load
from thrifty.models.checked_text import parse_json, read_text


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load(path)
    message = str(error.value)
    assert message == message.encode("utf-8").decode(), "a message can be printed"
    return message


@pytest.mark.parametrize("code", [0xD800, 0xDBFF, 0xDC00, 0xDC80, 0xDFFF])
@pytest.mark.parametrize("escaped", [True, False], ids=["escape", "bytes"])
def test_half_a_pair_is_named_wherever_it_stands(code: int, escaped: bool) -> None:
    half = f"\\u{code:04x}".encode() if escaped else chr(code).encode("utf-8", "surrogatepass")
    for raw, field in (
        (b'{"a": "x%s"}', "'a'"),
        (b'{"a": {"b": [1, {"c": "%s"}]}}', "'a.b[1].c'"),
        (b'["", "%s"]', "'[1]'"),
        (b'"%s"', "''"),
        (b'{"a": {"%s": 1}}', "'a name in a'"),
        (b'{"%s": 1}', "'a name in the file'"),
    ):
        with pytest.raises(CheckpointError) as error:
            parse_json(raw.replace(b"%s", half), Path("c.json"))
        message = str(error.value)
        assert message.startswith(f"c.json: {field} is not valid UTF-8: it holds ")
        assert (f"U+{code:04X}" in message) if escaped and not 0xDC80 <= code < 0xDD00 else ("byte 0x" in message)


def test_whole_pairs_and_text_of_any_script_pass() -> None:
    raw = '{"é": ["\\ud83d\\ude00", "😀", "\\\\ud800", "\u0000"]}'.replace("\u0000", "\\u0000").encode()
    assert parse_json(raw, Path("c.json")) == {"é": ["😀", "😀", "\\ud800", "\0"]}


def test_bytes_that_are_no_json_are_told_as_bytes(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"c.json is not valid JSON: its text is not valid UTF-8: the byte 0xff at place 0"
    ):
        parse_json('{"a": 1}'.encode("utf-16"), Path("c.json"))
    (tmp_path / "t").write_bytes(b"ab\xe9")
    with pytest.raises(CheckpointError, match=r"t: the text is not valid UTF-8: the byte 0xe9 at place 2"):
        read_text(tmp_path / "t")


FILES = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bad", [b"\\udc00", b"\xff", b"\xed\xa0\x80"], ids=["escape", "byte", "half"])
def test_every_json_file_of_a_folder(tmp_path: Path, cache: Path, name: str, bad: bytes) -> None:
    folder = write_checkpoint(tmp_path / "m")
    table = json.loads((folder / name).read_text())
    if name == "tokenizer.json":
        table["added_tokens"][0]["content"] = "MARK"
        field = "added_tokens[0].content"
    else:
        field = "chat_template" if name == "tokenizer_config.json" else "transformers_version"
        table[field] = "MARK"
    (folder / name).write_bytes(json.dumps(table).encode().replace(b"MARK", bad))
    message = refusal(folder)
    assert str(folder / name) in message and f"'{field}' is not valid UTF-8" in message


def test_templates_and_tensor_names(tmp_path: Path, cache: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\xff")
    assert "chat_template.jinja: the text is not valid UTF-8: the byte 0xff at place 14" in refusal(folder)
    (folder / "chat_template.jinja").unlink()
    path = folder / "model.safetensors"
    raw = path.read_bytes().replace(b'"model.norm.weight"', b'"model.nor\xff.weight"')
    path.write_bytes(raw)
    assert "model.safetensors: 'a name in the file' is not valid UTF-8" in refusal(folder)
    index = {"weight_map": {"MARK": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_bytes(json.dumps(index).encode().replace(b"MARK", b"\\ud800"))
    assert "model.safetensors.index.json: 'a name in weight_map' is not valid UTF-8" in refusal(folder)


@pytest.mark.parametrize(
    ("good", "bad", "field"),
    [
        (b"hell", b"he\xffl", "'tokenizer.ggml.tokens'[258]"),
        (b"<|im_end|>", b"<|im_\xed\xa0\x80|>", "'tokenizer.ggml.tokens'[261]"),
        (b"he ll", b"he \xc0l", "'tokenizer.ggml.merges'[2]"),
        (b"smollm", b"smoll\x80", "'tokenizer.ggml.pre'"),
        (b"{% for m in", b"{% for \xe9 in", "'tokenizer.chat_template'"),
        (b"llama.block_count", b"llama.block_coun\xfe", "metadata key "),
        (b"blk.0.ffn_up.weight", b"blk.0.ffn_up.weigh\xfe", "name of tensor "),
    ],
)
def test_every_text_of_a_gguf_file(tmp_path: Path, cache: Path, good: bytes, bad: bytes, field: str) -> None:
    path = gguf_files.tiny(tmp_path / "m.gguf")
    raw = path.read_bytes()
    prefix = struct.pack("<Q", len(good)) if not good.startswith(b"{%") else b""
    assert len(good) == len(bad) and raw.count(prefix + good) == 1
    path.write_bytes(raw.replace(prefix + good, prefix + bad))
    message = refusal(path)
    assert f"m.gguf: {field}" in message and "is not valid UTF-8: the byte 0x" in message
