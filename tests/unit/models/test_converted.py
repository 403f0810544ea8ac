"""The converted form: whole or absent, mapped, checked, written once."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from tests import gguf_files, killing

from thrifty.api import Thrifty
from thrifty.engine.admission import weights_bound
from thrifty.errors import BudgetError, CheckpointError, StorageError
from thrifty.formats.gguf import FileFormat
from thrifty.models.gguf import rows as gguf_rows
from thrifty.models.gguf.source import GGUFSource
from thrifty.models.loading import load, load_plain
from thrifty.models.store import cache_entry, checksums, converted
from thrifty.models.store.checkpoint_key import checkpoint_key
from thrifty.models.store.checksums import Section
from thrifty.models.store.content_key import file_key
from thrifty.models.store.converted import Converted, open_converted
from thrifty.reference.loading import build
from thrifty.version import VERSION

WHOLE = {"index.json", "checksums.json", "verified", "weights.bin"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tiny file with four kinds of tensors."""
    kinds = {"default": GGMLQuantizationType.Q4_1, "token_embd": GGMLQuantizationType.Q8_0}
    return gguf_files.tiny(
        tmp_path / "m.gguf", **kinds, ffn_down=GGMLQuantizationType.F16, ffn_gate=GGMLQuantizationType.F32
    )


def convert(file: Path) -> Converted:
    return open_converted(checkpoint_key(file), lambda: GGUFSource(file))


def refuse() -> Any:
    raise AssertionError("converted again")


def state(source: Any) -> dict[str, np.ndarray]:
    """Every tensor of every part as bytes."""
    found = {}
    for weight in source.weights():
        arrays = {"value": weight.value} if isinstance(weight.value, np.ndarray) else weight.value.state()
        for name, array in arrays.items():
            found[f"{weight.name}/{name}"] = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)


def flip(path: Path, place: int) -> None:
    """Another bit at one place; the file keeps its size, name and inode."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))


def test_it_holds_what_the_source_holds_and_is_read_the_second_time(file: Path, cache: Path) -> None:
    source = GGUFSource(file)
    assert_same(state(convert(file)), state(source))
    again = open_converted(checkpoint_key(file), refuse)
    assert_same(state(again), state(source))
    assert again.config == source.config
    assert again.tokenizer == source.tokenizer
    origins = {weight.name: (weight.origin, weight.error > 0) for weight in again.weights()}
    assert origins["embedding"] == ("Q8_0", False) and origins["layers.0.mlp.down"] == ("F16", False)
    assert origins["layers.0.mlp.gate"] == ("F32", True)


def test_tensors_are_views_of_one_mapping_and_aligned(file: Path, cache: Path) -> None:
    pointers = [weight.value.codes.ctypes.data for weight in convert(file).weights() if hasattr(weight.value, "codes")]
    size = (entry_directory(cache) / "weights.bin").stat().st_size
    assert len(pointers) > 4 and max(pointers) - min(pointers) < size
    assert all(pointer % 64 == 0 for pointer in pointers)


def entry_directory(cache: Path, kind: str = "converted") -> Path:
    (found,) = (path for path in (cache / kind).iterdir() if path.is_dir())
    return found


def left(cache: Path) -> list[Path]:
    """Whatever lies among the converted forms but locks."""
    return [path for path in (cache / "converted").glob("*") if path.suffix != ".lock"]


def test_the_key_is_the_content(file: Path, cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(file, copy)
    assert file_key(file) == file_key(copy)
    before = file_key(file)
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert file_key(file) != before


FILES = [
    ("converted", "weights.bin"),
    ("converted", "index.json"),
    ("descriptions", "index.json"),
    ("descriptions", "tokenizer.json"),
]


@pytest.mark.parametrize(("kind", "name"), FILES)
@pytest.mark.parametrize("damage", ["flipped", "shorter", "gone"])
def test_a_damaged_form_is_converted_again_with_a_message(
    file: Path, cache: Path, caplog: pytest.LogCaptureFixture, kind: str, name: str, damage: str
) -> None:
    expected = convert(file)
    tensors, tokenizer = state(expected), expected.tokenizer
    path = entry_directory(cache, kind) / name
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        flip(path, path.stat().st_size - 2)  # between two arrays lie bytes that nothing reads
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        again = convert(file)
        assert_same(state(again), tensors)
        assert again.tokenizer == tokenizer
    if (name, damage) != ("index.json", "gone"):
        assert "is damaged" in caplog.text and "converting again" in caplog.text
    assert_same(state(open_converted(checkpoint_key(file), refuse)), tensors)


def test_the_message_of_a_damaged_tensor_names_it(file: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    (place,) = (
        entry["tensors"]["codes"]["offset"]
        for entry in convert(file).entry.body["weights"]
        if entry["name"] == "layers.0.mlp.up"
    )
    flip(entry_directory(cache) / "weights.bin", place)
    with caplog.at_level(logging.WARNING):
        convert(file)
    assert "is damaged (wrong checksum of layers.0.mlp.up/codes): converting again" in caplog.text


def test_the_content_is_read_once_a_boot(
    file: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def damaged(directory: Path, sections: list[Section]) -> list[str]:
        read.append(directory.parent.name)
        return checksums.damaged(directory, sections)

    monkeypatch.setattr(cache_entry, "damaged", damaged)
    for boot, expected in (("first", []), ("second", ["descriptions", "converted"])):
        (tmp_path / "boot").write_text(boot)
        monkeypatch.setattr(checksums, "_BOOT", tmp_path / "boot")
        if boot == "first":
            convert(file)
        for _ in range(2):
            open_converted(checkpoint_key(file), refuse)
        assert read == expected


def test_another_version_of_thrifty_converts_again_in_place(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, before = state(convert(file)), entry_directory(cache).stat().st_ino
    monkeypatch.setattr(cache_entry, "VERSION", "99.0")
    with caplog.at_level(logging.WARNING):
        assert_same(state(convert(file)), expected)
    assert caplog.text.count(f"was made by Thrifty {VERSION}, this is 99.0: converting again") == 2
    assert entry_directory(cache).stat().st_ino != before
    open_converted(checkpoint_key(file), refuse)


def test_a_form_of_an_older_layout_goes(file: Path, cache: Path) -> None:
    older = cache / "converted" / f"{file_key(file)[:32]}-1"
    older.mkdir(parents=True)
    (older / "weights.bin").write_bytes(bytes(100))
    convert(file)
    assert not older.exists()


def test_a_changed_index_is_noticed(file: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert(file)
    path = entry_directory(cache) / "index.json"
    checksum, body = path.read_bytes().split(b"\n", 1)
    index = json.loads(body)
    index["body"]["weights"][0]["tensors"]["codes"]["offset"] = 1 << 40
    path.write_bytes(checksum + b"\n" + json.dumps(index).encode())
    with caplog.at_level(logging.WARNING):
        convert(file)
    assert "the checksum of index.json does not fit" in caplog.text


def test_a_changed_tokenizer_is_noticed_when_it_is_read(file: Path, cache: Path) -> None:
    found = convert(file)
    path = entry_directory(cache, "descriptions") / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"BPE", b"BPF"))
    with pytest.raises(CheckpointError, match=r"tokenizer.json is damaged"):
        found.description.definition()


def test_a_full_disk_is_said_and_leaves_nothing(file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_entry.os, "fsync", full)
    with pytest.raises(StorageError, match=r"the disk is full .* MB free.*THRIFTY_CACHE"):
        convert(file)
    assert left(cache) == []


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
    assert left(cache) == []


def test_two_processes_at_once_both_end_well(file: Path, cache: Path) -> None:
    processes = [killing.start(lambda: convert(file)) for _ in range(3)]
    assert [killing.finish(process) for process in processes] == [0, 0, 0]
    assert_same(state(open_converted(checkpoint_key(file), refuse)), state(GGUFSource(file)))


@pytest.mark.long
def test_killed_at_twenty_moments_the_next_start_works(file: Path, cache: Path) -> None:
    expected = state(GGUFSource(file))
    for _ in killing.random_kills(lambda: convert(file), lambda: shutil.rmtree(cache, ignore_errors=True), seed=0):
        for directory in (cache / "converted").glob("[!.]*"):
            assert {path.name for path in directory.iterdir()} == WHOLE
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
    exact = load_plain(file, np.dtype(np.float32))
    assert model.version != exact.version
    logits, expected = build(model).logits(ids), build(exact).logits(ids)
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    formats = {entry.name: entry.format for entry in model.report}
    assert formats["embedding"] == "int8-g32" and formats["layers.0.mlp.up"] == "int4-g32"


def test_progress_tells_the_size_before_anything_is_written(file: Path, cache: Path) -> None:
    told: list[tuple[int, int, bool]] = []

    def progress(done: int, total: int) -> None:
        written = list((cache / "converted").glob("*/weights.bin")) + list((cache / "converted").glob(".*/weights.bin"))
        told.append((done, total, bool(written)))

    load(file, progress=progress)
    size = sum(array.nbytes for array in state(GGUFSource(file)).values())
    assert told[0] == (0, size, False) and told[-1] == (size, size, True)
    assert all(before < after for (before, _, _), (after, _, _) in itertools.pairwise(told))
    told.clear()
    load(file, progress=progress)
    assert told == []


def test_a_disk_without_room_is_refused_before_anything_is_written(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(file)
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda _: usage._replace(free=2_000_000))
    told: list[int] = []
    message = r"converted: the converted copy takes 0 MB, and 2 MB are free\. Make room there, set THRIFTY_CACHE"
    with pytest.raises(StorageError, match=message + r".*copy=False \(--no-copy\), which keeps none"):
        load(file, progress=lambda done, total: told.append(done))
    assert told == [] and left(cache) == []
    load(file, copy=False)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("bound", ["memory", "process_memory"])
def test_weights_that_cannot_fit_are_refused_before_they_are_converted(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, copy: bool, bound: str
) -> None:
    size = sum(array.nbytes for array in state(GGUFSource(file)).values())
    monkeypatch.setattr(weights_bound, "resident", lambda: 100_000_000)
    held = {"memory": 0, "process_memory": 100_000_000 + weights_bound.GROWTH}[bound]
    told: list[int] = []
    with pytest.raises(BudgetError, match="the weights alone take .*, more than|together more than the process memory"):
        Thrifty(file, **{bound: held + size - 1}, copy=copy, progress=lambda done, total: told.append(done))
    assert told == [] and left(cache) == []
    weights_bound.weights_bound(**{"memory": None, "process_memory": None} | {bound: held + size})(size)


def test_a_technique_may_make_weights_fit_that_are_too_large(file: Path, cache: Path) -> None:
    size = sum(array.nbytes for array in state(GGUFSource(file)).values())
    with pytest.raises(BudgetError, match="one token"):  # only the engine knows
        Thrifty(file, memory=size // 2, recipe={"weights": [{"technique": "rtn"}]})
    assert list(cache.glob("converted/[!.]*"))


def test_only_slices_are_held_while_a_layer_is_written(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another slice is made only when at most two are on their way."""
    big = gguf_files.of_random_blocks(file.with_name("big.gguf"), "Q4_K")
    monkeypatch.setattr(gguf_rows, "ROWS_AT_A_TIME", 16)
    alive: list[int] = []
    pack = FileFormat.pack
    held: list[weakref.ref[np.ndarray]] = []

    def counted(self: FileFormat, raw: np.ndarray, columns: int) -> Mapping[str, np.ndarray]:
        found = pack(self, raw, columns)
        held.extend(weakref.ref(array) for array in found.values())
        alive.append(sum(array() is not None for array in held))
        return found

    monkeypatch.setattr(FileFormat, "pack", counted)
    convert(big)
    assert len(alive) > 100 and max(alive) <= 12  # arrays: three a slice


def test_without_a_copy_nothing_is_on_the_disk_and_the_model_is_the_same(file: Path, cache: Path) -> None:
    model, again = load(file, copy=False), load(file)
    assert model.version == again.version and model.config == again.config
    assert model.report == again.report
    assert model.tokenizer.encode("hello") == again.tokenizer.encode("hello")
    for name, linear in model.linears.items():
        for key, array in linear.state().items():
            np.testing.assert_array_equal(array, again.linears[name].state()[key])


def test_without_a_copy_what_lies_in_the_file_as_kernels_read_it_is_mapped(file: Path, cache: Path) -> None:
    down = load(file, copy=False).linears["layers.0.mlp.down"]
    assert down.label == "f16"
    weight = down.state()["weight"]
    assert not weight.flags.writeable and not weight.flags.owndata
    assert not cache.exists() or {path.name for path in cache.iterdir()} <= {"keys"}


def test_a_cache_that_cannot_be_written_does_without_a_copy(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blocked").write_text("a file")
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "blocked"))
    assert load(file, copy=False).tokenizer.encode("hello")
