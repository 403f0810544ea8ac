"""Whatever a loader reads belongs into a key: edits are seen, and cost no conversion that they need not cost."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint import write_checkpoint

from thrifty.models.huggingface.folder import weight_files
from thrifty.models.loading import load, open_source
from thrifty.models.model import Model
from thrifty.models.store import content_key
from thrifty.models.store.checkpoint_key import checkpoint_key, describing_files

MESSAGES = [{"role": "user", "content": "q"}]


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def rendered(model: Model) -> str:
    return str(model.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=False))


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def conversions(cache: Path) -> int:
    return len([path for path in (cache / "converted").iterdir() if path.is_dir()])


def test_a_template_that_is_added_edited_copied_or_removed_is_seen(folder: Path, cache: Path) -> None:
    first = rendered(load(folder))
    template = folder / "chat_template.jinja"
    template.write_text("ONE {{ messages[0]['content'] }}")
    assert rendered(load(folder)) == "ONE q"
    status = template.stat()
    template.write_text("TWO {{ messages[0]['content'] }}")
    os.utime(template, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert rendered(load(folder)) == "TWO q"
    copy = Path(shutil.copytree(folder, folder.with_name("copy")))
    (copy / "chat_template.jinja").write_text("THREE {{ messages[0]['content'] }}")
    assert [rendered(load(path)) for path in (copy, folder)] == ["THREE q", "TWO q"]
    template.unlink()
    assert rendered(load(folder)) == first
    assert conversions(cache) == 1


def test_edits_of_the_tokenizer_and_its_settings_are_seen(folder: Path, cache: Path) -> None:
    assert load(folder).tokenizer.eos_ids == (257,)
    edit(folder / "generation_config.json", eos_token_id=[257, 65])
    model = load(folder)
    assert model.tokenizer.eos_ids == (257, 65) and model.config.eos_ids == (257, 65)
    edit(folder / "tokenizer_config.json", chat_template="SETTINGS")
    assert rendered(load(folder)) == "SETTINGS"
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["added_tokens"][1]["content"] = "<|END|>"
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    assert load(folder).tokenizer.decode([257], skip_special=False) == "<|END|>"
    assert conversions(cache) == 1
    edit(folder / "config.json", rms_norm_eps=1e-6)
    assert load(folder).config.norm_epsilon == 1e-6


def test_every_file_that_is_read_is_in_the_key(folder: Path) -> None:
    """Whatever is opened while a checkpoint is read, with every file there that checkpoints have."""
    for name in ("special_tokens_map.json", "added_tokens.json", "chat_template.json", "vocab.json"):
        (folder / name).write_text("{}")
    for name in ("chat_template.jinja", "chat_templates/default.jinja", "additional_chat_templates/rag.jinja"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{{ messages }}")
    opened: set[Path] = set()
    watching = [True]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and watching and str(arguments[0]).startswith(f"{folder}/"):
            opened.add(Path(arguments[0]))

    sys.addaudithook(watch)  # it cannot be taken away again: it only looks while `watching` holds something
    try:
        for weight in open_source(folder).weights():
            del weight
    finally:
        watching.clear()
    keyed = {*weight_files(folder), *describing_files(folder)}
    assert {"config.json", "model.safetensors", "chat_template.jinja"} <= {path.name for path in opened}
    assert {path for path in opened if path.is_file()} <= keyed
    assert {path.name for path in folder.rglob("*.jinja")} <= {path.name for path in keyed}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model.safetensors", ("weights", "content")),
        ("config.json", ("weights", "description", "content")),
        ("tokenizer.json", ("description", "content")),
        ("added_tokens.json", ("description", "content")),
        ("chat_templates/tool.jinja", ("description", "content")),
    ],
)
def test_a_file_changes_the_keys_that_it_decides(folder: Path, name: str, parts: tuple[str, ...]) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    before = checkpoint_key(folder)
    content = path.read_bytes() if path.exists() else b""
    path.write_bytes(content + b" ")
    after = checkpoint_key(folder)
    names = ("weights", "description", "content")
    assert tuple(part for part in names if getattr(before, part) != getattr(after, part)) == parts
    moved = Path(shutil.copytree(folder, folder.with_name("elsewhere")))
    assert checkpoint_key(moved) == after


def test_large_files_are_hashed_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_key, "_TICK", 0)
    path = tmp_path / "large"
    path.write_bytes(bytes(content_key.SMALL + 1))
    key = content_key.file_key(path)
    with monkeypatch.context() as patched:
        patched.setattr(content_key, "file_digest", lambda path: pytest.fail("hashed again"))
        assert content_key.file_key(path) == key
    status = path.stat()
    path.write_bytes(b"1" + bytes(content_key.SMALL))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_key.file_key(path) != key


def test_a_file_that_was_written_just_now_is_not_remembered(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later edit within the same tick of the file system's clock would keep every time of it."""
    monkeypatch.setattr(content_key, "_TICK", 10**18)
    path = tmp_path / "large"
    path.write_bytes(bytes(content_key.SMALL + 1))
    content_key.file_key(path)
    assert not (cache / "keys").exists()
