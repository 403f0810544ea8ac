"""Corrupted Hugging Face directories: safetensors headers, configs and tokenizer files."""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.checkpoint import write_checkpoint
from tests.fuzzing import examples

from thrifty.errors import ThriftyError
from thrifty.models.huggingface.source import HuggingFaceSource
from thrifty.models.tokens.files import read_tokenizer
from thrifty.models.tokens.tokenizer import Tokenizer

QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
SEEDS = st.integers(0, 2**32)
ODD = [None, True, -1, 0, 1, 3, 2**31, 2**64, 1e308, float("nan"), "", "x", "\u2581", [], {}, [1, "a"], {"a": 1}, [[]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid checkpoint, restored after each change."""
    return write_checkpoint(tmp_path_factory.mktemp("hostile"))


def attempt(path: Path, raw: bytes, action: Callable[[Path], object]) -> None:
    """Put other bytes into one file of a checkpoint and read it; only ThriftyErrors may come out."""
    valid = path.read_bytes()
    try:
        path.write_bytes(raw)
        action(path.parent)
    except ThriftyError as error:
        assert str(error)
    finally:
        path.write_bytes(valid)


def read_weights(folder: Path) -> None:
    tracemalloc.start()
    try:
        for weight in HuggingFaceSource(folder).weights():
            assert weight.name
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 * (folder / "model.safetensors").stat().st_size + 8_000_000


def open_only(folder: Path) -> None:
    HuggingFaceSource(folder)


def use_tokenizer(folder: Path) -> None:
    found = read_tokenizer(folder)
    if found is None:
        return
    tokenizer = Tokenizer(found.definition, found.settings)
    tokenizer.decode(tokenizer.encode("hello é\n<|end|>"))
    stream = tokenizer.stream()
    for token in range(10):
        stream.push(token)
    if tokenizer.has_chat_template:
        tokenizer.encode_chat([{"role": "user", "content": "hi"}])


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value; of long lists and tables only some."""
    found = [path] if path else []
    items = list(data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ())
    for key, value in items[:6] + items[-3:]:
        found.extend(places(value, (*path, key)))
    return found


def changed(data: Any, chance: random.Random) -> Any:
    """A copy with one or two places replaced, removed or doubled."""
    data = copy.deepcopy(data)
    for _ in range(chance.choice((1, 1, 2))):
        known = places(data)
        if not known:
            return data
        *way, last = chance.choice(known)
        inner = data
        for key in way:
            inner = inner[key]
        if chance.random() < 0.25:
            del inner[last]
        else:
            inner[last] = copy.deepcopy(chance.choice(ODD))
    return data


@settings(QUIET, max_examples=examples(400))
@given(seed=SEEDS)
def test_safetensors_headers(folder: Path, seed: int) -> None:
    path, chance = folder / "model.safetensors", random.Random(seed)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps(changed(header, chance)).encode()
    lengths = (len(text), len(text), len(text), 0, length + 1, len(raw), 2**40, 2**64 - 1)
    variants = (
        struct.pack("<Q", chance.choice(lengths)) + text + raw[8 + length :],
        raw[: chance.randrange(length + 2000)],
        raw[:8] + bytes(byte ^ (chance.random() < 0.01) for byte in raw[8 : 8 + length]) + raw[8 + length :],
    )
    attempt(path, chance.choice(variants), open_only)


@settings(QUIET, max_examples=30)
@given(seed=SEEDS)
def test_safetensors_headers_that_are_read(folder: Path, seed: int) -> None:
    path, chance = folder / "model.safetensors", random.Random(seed)
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    text = json.dumps(changed(json.loads(raw[8 : 8 + length]), chance)).encode()
    attempt(path, struct.pack("<Q", len(text)) + text + raw[8 + length :], read_weights)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@settings(QUIET, max_examples=examples(300))
@given(seed=SEEDS)
def test_configs(folder: Path, name: str, seed: int) -> None:
    path, chance = folder / name, random.Random(seed)
    data = changed(json.loads(path.read_bytes()), chance)
    attempt(path, json.dumps(data).encode(), open_only)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@settings(QUIET, max_examples=examples(400))
@given(seed=SEEDS)
def test_tokenizer_files(folder: Path, name: str, seed: int) -> None:
    use_changed(folder, name, seed)


@settings(QUIET, max_examples=examples(120))  # two ids: there is little to change
@given(seed=SEEDS)
def test_the_ids_of_a_generation_config(folder: Path, seed: int) -> None:
    use_changed(folder, "generation_config.json", seed)


def use_changed(folder: Path, name: str, seed: int) -> None:
    """Use a tokenizer of which one file was changed or cut."""
    path, chance = folder / name, random.Random(seed)
    raw = path.read_bytes()
    data = json.dumps(changed(json.loads(raw), chance)).encode()
    cut = raw[: chance.randrange(len(raw))]
    attempt(path, data if chance.random() < 0.9 else cut, use_tokenizer)


def test_noise_instead_of_any_file(folder: Path, tmp_path: Path) -> None:
    for index, path in enumerate(sorted(folder.iterdir())):
        target = tmp_path / str(index)
        shutil.copytree(folder, target)
        for raw in (b"", b"\0" * 64, b"[" * 20_000, b'{"a":' * 20_000, b"\xff" * 100, b"null", b'"text"', b"[1]"):
            attempt(target / path.name, raw, lambda place: (open_only(place), use_tokenizer(place)))
