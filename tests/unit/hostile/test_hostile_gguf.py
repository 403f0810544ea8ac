"""Corrupted GGUF files: only Thrifty's own errors come out, and memory stays near the file's size."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests import gguf_files
from tests.fuzzing import examples

from thrifty.errors import CheckpointError, ThriftyError
from thrifty.models.gguf.file import GGUF
from thrifty.models.gguf.metadata import Metadata
from thrifty.models.gguf.source import GGUFSource
from thrifty.models.tokens.gguf import from_metadata
from thrifty.models.tokens.tokenizer import Tokenizer

QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
NUMBERS = [0, 1, 2, 3, 255, 256, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, int]:
    """A path to write to, a valid file's bytes, and where its tensor data begins."""
    path = tmp_path_factory.mktemp("hostile") / "m.gguf"
    gguf_files.tiny(path, ffn_up=GGMLQuantizationType.Q4_1, ffn_gate=GGMLQuantizationType.Q8_0)
    return path, path.read_bytes(), min(info.offset for info in GGUF(path).tensors.values())


def attempt(path: Path, raw: bytes) -> None:
    """Open and read all of a file. Anything but a ThriftyError fails the test; so does too much memory."""
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        source = GGUFSource(path)
        for weight in source.weights():
            assert weight.name
        tokenizer = Tokenizer(source.tokenizer.definition, source.tokenizer.settings)
        tokenizer.decode(tokenizer.encode("hello é <|im_end|>"))
    except ThriftyError as error:
        assert str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 40 * len(raw) + 8_000_000, f"{peak} bytes for a file of {len(raw)}"


# Positions are drawn from Python's generator: hypothesis would prefer small ones.
SEEDS = st.integers(0, 2**32)


@pytest.mark.long
@settings(QUIET, max_examples=examples(900))
@given(seed=SEEDS)
def test_numbers_in_the_header(valid: tuple[Path, bytes, int], seed: int) -> None:
    path, raw, data = valid
    chance = random.Random(seed)
    changed = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at, width = chance.randrange(4, data), chance.choice((1, 4, 8))
        value = chance.choice([*NUMBERS, chance.getrandbits(64)]) % (1 << 8 * width)
        changed[at : at + width] = value.to_bytes(width, "little")
    attempt(path, bytes(changed))


@settings(QUIET, max_examples=examples(500))
@given(seed=SEEDS)
def test_truncation_insertion_and_moved_spans(valid: tuple[Path, bytes, int], seed: int) -> None:
    path, raw, data = valid
    chance = random.Random(seed)
    at, other, length = chance.randrange(len(raw)), chance.randrange(data), chance.randrange(1, 200)
    variants = (
        raw[:at],
        raw[:other],
        raw[:other] + raw[other + length :],
        raw[:other] + chance.randbytes(length) + raw[other:],
        raw[:other] + raw[at : at + length] + raw[other + length :],
    )
    attempt(path, chance.choice(variants))


@settings(QUIET, max_examples=examples(150))
@given(seed=SEEDS)
def test_random_tensor_data(valid: tuple[Path, bytes, int], seed: int) -> None:
    path, raw, data = valid
    chance = random.Random(seed)
    attempt(path, raw[:data] + chance.randbytes(len(raw) - data))


@settings(QUIET, max_examples=examples(300))
@given(raw=st.binary(max_size=400), version=st.sampled_from((2, 3)))
def test_noise_behind_a_magic(valid: tuple[Path, bytes, int], raw: bytes, version: int) -> None:
    attempt(valid[0], b"GGUF" + struct.pack("<I", version) + raw)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64),
    st.floats(width=32),
    st.text(max_size=8),
    st.lists(st.text(max_size=4), max_size=6),
    st.builds(np.array, st.lists(st.integers(-5, 300), max_size=6)),
)
FIELDS = [
    *(f"llama.{name}" for name in ("block_count", "context_length", "embedding_length", "feed_forward_length")),
    *(f"llama.attention.{name}" for name in ("head_count", "head_count_kv", "key_length", "sliding_window", "scale")),
    *(f"llama.rope.{name}" for name in ("freq_base", "dimension_count", "scaling.type", "scaling.factor")),
    *(f"llama.expert_{name}" for name in ("count", "used_count", "gating_func")),
    *(f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "token_type", "merges", "scores")),
    *(f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "padding", "unknown")),
    "tokenizer.ggml.add_bos_token",
    "tokenizer.ggml.add_space_prefix",
    "tokenizer.chat_template",
    "general.architecture",
    "split.count",
]


@settings(QUIET, max_examples=examples(600))
@example(changes={"llama.attention.scale": 2**64})
@example(changes={"llama.rope.freq_base": 10**400})
@given(changes=st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1, max_size=3))
def test_any_value_in_any_field(valid: tuple[Path, bytes, int], changes: dict[str, Any]) -> None:
    path, raw, _ = valid
    path.write_bytes(raw)
    try:
        file = GGUF(path)
        fields = {**file.metadata, **changes}
        file.metadata = Metadata(path, {key: value for key, value in fields.items() if value is not None})
        read(file)
    except ThriftyError as error:
        assert str(error)


def read(file: GGUF) -> None:
    source = GGUFSource.__new__(GGUFSource)
    GGUFSource.open(source, file)
    list(source.weights())


TOKENS = st.lists(st.text(max_size=3) | st.sampled_from(gguf_files.byte_tokens()), min_size=1, max_size=40)


@settings(QUIET, max_examples=examples(600))
@given(data=st.data(), kind=st.sampled_from(("gpt2", "llama")))
def test_random_vocabularies(data: st.DataObject, kind: str) -> None:
    tokens = data.draw(TOKENS)
    pairs = st.builds("{} {}".format, st.sampled_from(tokens), st.sampled_from(tokens))
    fields = {
        "general.architecture": data.draw(st.sampled_from(("llama", "gemma3"))),
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": data.draw(st.lists(pairs | st.text(max_size=4), max_size=10)),
        "tokenizer.ggml.scores": np.array(
            data.draw(st.lists(st.floats(width=32), min_size=len(tokens), max_size=len(tokens)))
        ),
        "tokenizer.ggml.token_type": np.array(
            data.draw(st.lists(st.integers(0, 7), min_size=len(tokens), max_size=len(tokens)))
        ),
        "tokenizer.ggml.add_space_prefix": data.draw(st.booleans()),
    }
    try:
        found = from_metadata(Metadata(Path("m.gguf"), fields))
        tokenizer = Tokenizer(found.definition, found.settings)
        tokenizer.decode(tokenizer.encode(data.draw(st.text(max_size=20))))
    except ThriftyError as error:
        assert str(error)


@pytest.mark.parametrize("value", [2**20, 2**31, 2**40, 2**62, 2**64 - 1])
@pytest.mark.parametrize("at", [8, 16])
def test_huge_counts_allocate_nothing(valid: tuple[Path, bytes, int], at: int, value: int) -> None:
    path, raw, _ = valid
    path.write_bytes(raw[:at] + struct.pack("<Q", value) + raw[at + 8 :])
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="count"):
        GGUF(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000


@pytest.mark.parametrize("key", ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"])
def test_a_huge_array_allocates_nothing_and_is_named(valid: tuple[Path, bytes, int], key: str) -> None:
    path, raw, _ = valid
    at = raw.index(key.encode()) + len(key) + 4 + 4
    for value in (len(raw), 2**33, 2**61, 2**64 - 1):
        path.write_bytes(raw[:at] + struct.pack("<Q", value) + raw[at + 8 :])
        tracemalloc.start()
        with pytest.raises(CheckpointError, match=key):
            GGUF(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()
