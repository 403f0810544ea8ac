"""GGUF files as people have them: quantised parts of a split, padded vocabularies, no pre-tokenizer, the other end."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from tests import gguf_files

from thrifty.api import Thrifty
from thrifty.errors import CheckpointError, ThriftyWarning
from thrifty.models import load
from thrifty.models.gguf.source import GGUFSource

TOKENS = 262


def widened(rows: int) -> dict[str, np.ndarray]:
    """The tiny model's tensors with another number of embedding rows, those beyond the tokens far larger."""
    tensors = gguf_files.llama_tensors()
    embedding = tensors["token_embd.weight"]
    more = np.full((max(0, rows - len(embedding)), embedding.shape[1]), 30, np.float32)
    return tensors | {"token_embd.weight": np.concatenate([embedding, more])[:rows]}


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_0, Type.F16, Type.F32])
@pytest.mark.parametrize("rows", [TOKENS + 2, TOKENS + 58])
def test_rows_without_a_token_are_never_chosen(tmp_path: Path, cache: Path, rows: int, kind: Type) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.LLAMA_FIELDS, widened(rows), default=kind)
    with Thrifty(path, threads=1) as model:
        assert model.model.config.vocabulary_size == rows
        for options in ({"greedy": True}, {"temperature": 5.0, "seed": 1}):
            found = model.generate([1, 2, 3], max_tokens=12, ignore_eos=True, **options)
            assert len(found.token_ids) == 12 and max(found.token_ids) < TOKENS


def test_a_stated_size_of_the_vocabulary_must_fit(tmp_path: Path) -> None:
    fields = {**gguf_files.LLAMA_FIELDS, "{arch}.vocab_size": TOKENS}
    path = gguf_files.write(tmp_path / "m.gguf", "llama", fields, widened(TOKENS + 2))
    with pytest.raises(
        CheckpointError, match=r"'llama.vocab_size' is 262, but tensor 'token_embd.weight' has 264 rows"
    ):
        GGUFSource(path)


def test_tokens_without_a_row_are_refused(tmp_path: Path) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.LLAMA_FIELDS, widened(TOKENS - 2))
    with pytest.raises(CheckpointError, match=r"has 260 rows, but 'tokenizer.ggml.tokens' has 262 tokens"):
        GGUFSource(path)


@pytest.mark.parametrize("copy", [True, False])
def test_quantised_parts_give_what_the_whole_gives(tmp_path: Path, cache: Path, copy: bool) -> None:
    kinds = {"default": Type.Q5_0, "ffn_down": Type.F16, "token_embd": Type.Q8_0}
    whole = load(gguf_files.tiny(tmp_path / "whole.gguf", **kinds), copy=copy)
    gguf_files.write(
        tmp_path / "m.gguf", "llama", gguf_files.LLAMA_FIELDS, gguf_files.llama_tensors(), a_part=3, **kinds
    )
    parts = load(tmp_path / "m-00001-of-00004.gguf", copy=copy)
    assert [entry.name for entry in parts.report] == [entry.name for entry in whole.report]
    for name, linear in parts.linears.items():
        for key, array in linear.state().items():
            np.testing.assert_array_equal(array, whole.linears[name].state()[key])


def test_a_file_without_a_pre_tokenizer_is_read_and_what_is_guessed_is_said(tmp_path: Path, cache: Path) -> None:
    path = gguf_files.tiny(tmp_path / "m.gguf", pre=None, default=Type.Q5_1)
    for copy in (True, False):
        with pytest.warns(ThriftyWarning, match=r"'tokenizer.ggml.pre' is missing"):
            model = load(path, copy=copy)
        assert model.tokenizer.decode(model.tokenizer.encode("hello")) == "hello"


@pytest.mark.parametrize("version", [2, 3])
def test_the_other_end_first_is_refused_by_name(tmp_path: Path, cache: Path, version: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", version, 11, 20) + bytes(4096))
    for copy in (True, False):
        with pytest.raises(CheckpointError, match=rf"m\.gguf: a big-endian GGUF file \(version {version}\)") as error:
            load(path, copy=copy)
        assert "`gguf-convert-endian FILE little` of the gguf package converts it" in str(error.value)
