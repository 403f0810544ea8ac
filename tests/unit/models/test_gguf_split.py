"""Models in several GGUF files: read from the first, equal to the whole, and errors that say which part to give."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from tests import gguf_files

from thrifty.errors import CheckpointError, DownloadError
from thrifty.formats.linear import PackedLinear
from thrifty.models import hub, load
from thrifty.models.gguf.file import GGUF
from thrifty.models.gguf.source import GGUFSource
from thrifty.models.gguf.split import first_part, part_files, part_names

FLOAT32 = np.dtype(np.float32)


def split(folder: Path, a_part: int = 5, seed: int = 0) -> list[Path]:
    """The parts of a tiny model, in order."""
    tensors = gguf_files.llama_tensors(seed)
    gguf_files.write(folder / "m.gguf", "llama", gguf_files.LLAMA_FIELDS, tensors, a_part=a_part)
    return sorted(folder.glob("m-*.gguf"))


def test_parts_give_what_the_whole_file_gives(tmp_path: Path) -> None:
    whole = GGUFSource(gguf_files.tiny(tmp_path / "whole.gguf"))
    parts = split(tmp_path)
    assert [path.name for path in parts] == [f"m-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    source = GGUFSource(parts[0])
    assert source.config == whole.config and source.tokenizer == whole.tokenizer
    expected = {weight.name: weight.value for weight in whole.weights(FLOAT32)}
    found = {weight.name: weight.value for weight in source.weights(FLOAT32)}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        other = expected[name]
        if not isinstance(value, np.ndarray):
            value, other = value.dequantize(), other.dequantize()
        assert np.array_equal(value, other), name


def test_one_part_of_one_is_a_whole(tmp_path: Path) -> None:
    fields = {**gguf_files.LLAMA_FIELDS, "split.count": 1, "split.no": 0}
    path = gguf_files.write(tmp_path / "m-00001-of-00001.gguf", "llama", fields, gguf_files.llama_tensors())
    assert len(GGUF(path).tensors) == 11 and part_files(path) == [path]


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        GGUFSource(path)
    return str(error.value)


def test_a_later_part_names_the_first(tmp_path: Path) -> None:
    parts = split(tmp_path)
    assert "part 2 of a split GGUF of 3 parts; give the first one, m-00001-of-00003.gguf" in refusal(parts[1])
    renamed = parts[2].rename(tmp_path / "last.gguf")
    assert "part 3 of a split GGUF of 3 parts; give the file of the first one" in refusal(renamed)


def test_a_folder_of_parts_names_the_file_to_give(tmp_path: Path, cache: Path) -> None:
    parts = split(tmp_path)
    with pytest.raises(CheckpointError) as error:
        load(tmp_path)
    assert f"It holds GGUF files: give one of them, such as {parts[0]}." in str(error.value)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[2].unlink()
    assert "1 of 3 parts is missing: m-00003-of-00003.gguf; put them beside it" in refusal(parts[0])
    parts[1].unlink()
    assert "2 of 3 parts are missing: m-00002-of-00003.gguf, m-00003-of-00003.gguf" in refusal(parts[0])
    alone = parts[0].rename(tmp_path / "m.gguf")
    assert "one part of a split GGUF ('split.count' is 3), but it is not called NAME-00001-of-00003" in refusal(alone)


def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    (tmp_path / "other").mkdir()
    others = split(tmp_path / "other", a_part=4)
    assert len(others) == 3
    parts[1].write_bytes(others[1].read_bytes())
    assert "is also in m-0000" in refusal(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    assert "part 3 of 3 by 'split.no' and 'split.count', but part 2 of 3 by its name" in refusal(parts[0])


def test_an_exchanged_part_is_another_model(tmp_path: Path, cache: Path) -> None:
    parts = split(tmp_path)
    (tmp_path / "other").mkdir()
    first = load(parts[0])
    parts[1].write_bytes(split(tmp_path / "other", seed=1)[1].read_bytes())
    second = load(parts[0])
    assert first.version != second.version
    changed = [name for name, linear in first.linears.items() if not same(linear, second.linears[name])]
    assert 0 < len(changed) < len(first.linears)


def same(linear: PackedLinear, other: PackedLinear) -> bool:
    return np.array_equal(linear.dequantize(), other.dequantize())


def test_the_count_of_tensors_must_fit(tmp_path: Path) -> None:
    parts = split(tmp_path)
    for path in parts:
        raw = bytearray(path.read_bytes())
        at = raw.index(b"split.tensors.count") + len("split.tensors.count") + 4
        raw[at : at + 4] = np.uint32(12).tobytes()
        path.write_bytes(raw)
    assert "'split.tensors.count' is 12, but the 3 parts hold 11 tensors" in refusal(parts[0])


def test_names_of_parts() -> None:
    assert part_names("a/b-00001-of-00002.gguf") == ["a/b-00001-of-00002.gguf", "a/b-00002-of-00002.gguf"]
    for name in ("b.gguf", "b-00002-of-00002.gguf", "b-00001-of-00001.gguf", "b-1-of-2.gguf"):
        assert part_names(name) == [name]
    assert first_part("b-00002-of-00003.gguf") == "b-00001-of-00003.gguf"
    for name in ("b.gguf", "b-00001-of-00003.gguf", "b-00004-of-00003.gguf"):
        assert first_part(name) is None


class Library:
    """A hub that holds some files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def hf_hub_download(self, _: str, name: str) -> str:
        self.asked.append(name)
        return str(self.folder / name)


def test_all_parts_are_fetched_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["q4/m-00001-of-00002.gguf", "q4/m-00002-of-00002.gguf"]
    library = Library(tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "_ask", lambda repository: dict.fromkeys(names))
    monkeypatch.setattr(hub, "_tried", lambda repository, action: action(library))
    assert hub.fetch("a/b") == tmp_path / names[0] and library.asked == names
    monkeypatch.setattr(hub, "_ask", lambda repository: dict.fromkeys([*names, "q8.gguf"]))
    with pytest.raises(DownloadError, match=r"It holds: q4/m-00001-of-00002.gguf, q8.gguf\."):
        hub.fetch("a/b")


def test_the_gguf_package_reads_the_parts(tmp_path: Path) -> None:
    """What the tests write is what other programs write."""
    fields = gguf.GGUFReader(split(tmp_path)[1]).fields
    assert {"split.no", "split.count", "split.tensors.count"} <= fields.keys()
