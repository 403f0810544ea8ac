"""Corrupted folders of `thrifty compress`: configs, and what the weights' header says, with a fitting checksum."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.checkpoint import write_checkpoint
from tests.fuzzing import examples

from thrifty.errors import CheckpointError, ThriftyError
from thrifty.models.loading import assemble, load, open_source
from thrifty.models.store.stored_weights import read_weight
from thrifty.recipe import Recipe
from thrifty.weights.compressing.pipeline import compress

QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)
ODD = [None, True, -1, 0, 1, 3, 2**31, 2**64, 1e308, float("nan"), "", "x", [], {}, [1, "a"], {"a": 1}, [[]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A valid one, restored after each change."""
    root = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THRIFTY_CACHE", str(root / "cache"))
        compress(load(write_checkpoint(root / "llama")), Recipe(weights=[{"technique": "rtn"}]), root / "out")
        yield root / "out"


def changed(value: Any, chance: random.Random) -> Any:
    """The value with one odd thing somewhere in it."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        if chance.random() < 0.2:
            return {name: item for name, item in value.items() if name != key}
        return {**value, key: changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        place = chance.randrange(len(value))
        return [*value[:place], changed(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)


def attempt(folder: Path, config: Any, raw: bytes) -> None:
    """Read a folder of these files; only ThriftyErrors may come out."""
    files = {folder / "config.json": json.dumps(config).encode(), folder / "model.safetensors": raw}
    valid = {path: path.read_bytes() for path in files}
    try:
        for path, content in files.items():
            path.write_bytes(content)
        source = open_source(folder)
        assemble(source)
        assert source.stored()
        assert source.tokenizer is None or source.tokenizer.definition
    except ThriftyError as error:
        assert str(error)
    finally:
        for path, content in valid.items():
            path.write_bytes(content)


@given(seed=st.integers(0, 2**32))
@settings(QUIET, max_examples=examples(120))
def test_odd_configs(folder: Path, seed: int) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    attempt(folder, changed(config, random.Random(seed)), (folder / "model.safetensors").read_bytes())


@given(seed=st.integers(0, 2**32))
@settings(QUIET, max_examples=examples(240))
def test_odd_headers(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    raw = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    if chance.random() < 0.7:
        listed = changed(json.loads(header["__metadata__"]["weights"]), chance)
        header["__metadata__"]["weights"] = json.dumps(listed)
    else:
        header = changed(header, chance)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    raw = struct.pack("<Q", len(text)) + text + raw[8 + length :]
    config = json.loads((folder / "config.json").read_bytes())
    config["quantization_config"]["weights_sha256"] = hashlib.sha256(raw).hexdigest()
    attempt(folder, config, raw)


def test_a_part_without_a_format_is_refused_by_name() -> None:
    entry = {"name": "layers.1.attention.key", "meta": {}, "tensors": {}}
    with pytest.raises(CheckpointError, match=r"model.safetensors: 'layers.1.attention.key' says neither"):
        read_weight(entry, np.zeros(8, np.uint8), "model.safetensors")
