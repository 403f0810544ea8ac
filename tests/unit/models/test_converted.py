"""The converted form: whole or absent, mapped, checked, written once."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from tests import gguf_files, killing

from thrifty.errors import CheckpointError, StorageError
from thrifty.models import converted
from thrifty.models.content_key import content_key
from thrifty.models.converted import Converted, open_converted
from thrifty.models.gguf_source import GGUFSource
from thrifty.models.loading import load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tiny file with three kinds of tensors."""
    kinds = {"default": GGMLQuantizationType.Q4_1, "token_embd": GGMLQuantizationType.Q8_0}
    return gguf_files.tiny(tmp_path / "m.gguf", **kinds, ffn_down=GGMLQuantizationType.F16)


def convert(file: Path) -> Converted:
    return open_converted(content_key([file]), lambda: GGUFSource(file))


def refuse() -> Any:
    raise AssertionError("converted again")


def state(source: Any) -> dict[str, np.ndarray]:
    """Every tensor of every part as bytes."""
    found = {}
    for weight in source.weights():
        tensors = {"value": weight.value} if isinstance(weight.value, torch.Tensor) else weight.value.state()
        for name, tensor in tensors.items():
            found[f"{weight.name}/{name}"] = tensor.contiguous().view(-1).view(torch.uint8).numpy().copy()
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def test_it_holds_what_the_source_holds_and_is_read_the_second_time(file: Path, cache: Path) -> None:
    source = GGUFSource(file)
    assert_same(state(convert(file)), state(source))
    again = open_converted(content_key([file]), refuse)
    assert_same(state(again), state(source))
    assert again.config == source.config
    assert again.tokenizer == source.tokenizer
    origins = {weight.name: (weight.origin, weight.error > 0) for weight in again.weights()}
    assert origins["embedding"] == ("Q8_0", False) and origins["layers.0.mlp.down"] == ("F16", True)


def test_tensors_are_views_of_one_mapping_and_aligned(file: Path, cache: Path) -> None:
    pointers = [weight.value.codes.data_ptr() for weight in convert(file).weights() if hasattr(weight.value, "codes")]
    size = (converted_directory(cache) / "weights.bin").stat().st_size
    assert len(pointers) > 4 and max(pointers) - min(pointers) < size
    assert all(pointer % 64 == 0 for pointer in pointers)


def converted_directory(cache: Path) -> Path:
    (found,) = (path for path in (cache / "converted").iterdir() if path.is_dir())
    return found


def test_the_key_is_the_content(file: Path, cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(file, copy)
    assert content_key([file]) == content_key([copy])
    before = content_key([file])
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert content_key([file]) != before


@pytest.mark.parametrize("name", ["weights.bin", "index.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_damaged_form_is_converted_again_with_a_message(
    file: Path, cache: Path, caplog: pytest.LogCaptureFixture, name: str, damage: str
) -> None:
    expected = state(convert(file))
    path = converted_directory(cache) / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        assert_same(state(convert(file)), expected)
    if (name, damage) != ("index.json", "gone"):
        assert "is damaged" in caplog.text and "converting again" in caplog.text
    assert_same(state(open_converted(content_key([file]), refuse)), expected)


def test_a_changed_index_is_noticed(file: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert(file)
    path = converted_directory(cache) / "index.json"
    checksum, body = path.read_bytes().split(b"\n", 1)
    index = json.loads(body)
    index["weights"][0]["tensors"]["codes"]["offset"] = 1 << 40
    path.write_bytes(checksum + b"\n" + json.dumps(index).encode())
    with caplog.at_level(logging.WARNING):
        convert(file)
    assert "the checksum of index.json does not fit" in caplog.text


def test_a_changed_tokenizer_is_noticed_when_it_is_read(file: Path, cache: Path) -> None:
    found = convert(file)
    path = converted_directory(cache) / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"BPE", b"BPF"))
    with pytest.raises(CheckpointError, match=r"tokenizer.json is damaged"):
        found.definition()


def test_a_full_disk_is_said_and_leaves_nothing(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(converted, "_write_file", full)
    with pytest.raises(StorageError, match=r"the disk is full .* MB free.*THRIFTY_CACHE"):
        convert(file)
    assert [path for path in (cache / "converted").iterdir() if path.suffix != ".lock"] == []


def test_a_directory_that_cannot_be_written_is_said(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blocked").write_text("a file")
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "blocked"))
    with pytest.raises(StorageError, match=r"cannot be written.*THRIFTY_CACHE"):
        convert(file)


def test_a_bad_checkpoint_leaves_nothing(file: Path, cache: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"ends beyond"):
        convert(file)
    assert [path for path in (cache / "converted").iterdir() if path.suffix != ".lock"] == []


def test_two_processes_at_once_both_end_well(file: Path, cache: Path) -> None:
    processes = [killing.start(lambda: convert(file)) for _ in range(3)]
    assert [killing.finish(process) for process in processes] == [0, 0, 0]
    assert_same(state(open_converted(content_key([file]), refuse)), state(GGUFSource(file)))


@pytest.mark.long
def test_killed_at_twenty_moments_the_next_start_works(file: Path, cache: Path) -> None:
    expected = state(GGUFSource(file))
    for _ in killing.random_kills(lambda: convert(file), lambda: shutil.rmtree(cache, ignore_errors=True), seed=0):
        for directory in (cache / "converted").glob("[!.]*"):
            assert {path.name for path in directory.iterdir()} == {"index.json", "tokenizer.json", "weights.bin"}
        assert_same(state(convert(file)), expected)
        assert not list((cache / "converted").glob("*.partial"))


def test_what_another_killed_conversion_left_is_removed(file: Path, cache: Path) -> None:
    left = cache / "converted" / ".other-1.partial"
    left.mkdir(parents=True)
    (left / "weights.bin").write_bytes(bytes(100))
    convert(file)
    assert not left.exists()


def test_load_gives_a_model_that_answers(file: Path, cache: Path) -> None:
    model = load(file)
    ids = model.tokenizer.encode("hello")
    exact = load(file, dtype=torch.float32)
    assert model.version != exact.version
    assert (model.logits(ids) - exact.logits(ids)).abs().max() < 0.05 * exact.logits(ids).abs().max()
    formats = {entry.name: entry.format for entry in model.report}
    assert formats["embedding"] == "int8-g32" and formats["layers.0.mlp.up"] == "int4-g32"
