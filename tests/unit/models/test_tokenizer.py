"""Ids and text: one BOS, whole characters, errors for ids that do not exist, tokenizers of directories."""

from __future__ import annotations

import json
import string
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.checkpoint import write_checkpoint
from tests.unit.models.test_tokenizer_gguf import spm, tokenizer

from thrifty.errors import CheckpointError, PromptError, TemplateError
from thrifty.models.tokens.files import read_tokenizer
from thrifty.models.tokens.settings import TokenizerSettings
from thrifty.models.tokens.tokenizer import Tokenizer


@cache
def made(kind: str) -> Tokenizer:
    return {"bytes": tokenizer, "pieces": spm}[kind]()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), max_size=40)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@settings(max_examples=150, deadline=None)
@given(text=TEXT)
@example(text=" ")
@example(text="  a")
@example(text="<|im_end|>")
def test_a_stream_gives_whole_characters_and_the_same_text(kind: str, text: str) -> None:
    found = made(kind)
    ids = found.encode(text, add_bos=False, control=False)
    stream = found.stream()
    pieces = [stream.push(token) for token in ids]
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in pieces)
    assert "".join([*pieces, stream.flush()]) == text == found.decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_ids_decode_as_the_library_does_where_they_are_text(kind: str, data: st.DataObject) -> None:
    found = made(kind)
    ids = data.draw(st.lists(st.integers(0, found.backend.get_vocab_size() - 1), max_size=20))
    stream = found.stream()
    text = "".join([*map(stream.push, ids), stream.flush()])
    assert text == found.decode(ids)
    oracle = found.backend.decode(ids, skip_special_tokens=True)
    if "\ufffd" not in oracle and "\ufffd" not in text:
        assert text == oracle


def test_an_unfinished_character_waits_and_becomes_a_mark_at_the_end() -> None:
    found = tokenizer()
    first, *rest = found.encode("😀", add_bos=False)
    stream = found.stream()
    assert stream.push(first) == "" and stream.push(rest[0]) == ""
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_punctuation_ids_are_those_whose_text_is_punctuation(kind: str) -> None:
    found = made(kind)
    for token in range(found.backend.get_vocab_size()):
        text = found.decode([token], skip_special=False).strip()
        is_mark = text != "" and all(character in string.punctuation for character in text)
        assert (token in found.punctuation_ids) == (is_mark and token not in found.special_ids), repr(text)
    marks = {found.encode(text, add_bos=False)[-1] for text in ("a.", "a,", "a!")}
    assert marks <= found.punctuation_ids


def test_bos_comes_once() -> None:
    found = spm()
    assert found.encode("ab")[:2] != [1, 1] and found.encode("ab")[0] == 1
    assert found.encode("<s>ab").count(1) == 1
    assert found.encode("ab", add_bos=False)[0] != 1
    chat = Tokenizer(
        found._definition, TokenizerSettings(1, (2,), None, True, "{{ bos_token }}{{ messages[0].content }}")
    )
    assert chat.encode_chat([{"role": "user", "content": "ab"}]).count(1) == 1


@pytest.mark.parametrize("token", [-1, 262, 10**9, 2**40, -(2**70)])
def test_ids_outside_the_vocabulary(token: int) -> None:
    with pytest.raises(PromptError, match=rf"Token id {token} is outside this model's vocabulary, 0 to 261"):
        tokenizer().decode([token])


def test_rows_of_the_model_without_a_token_are_silent() -> None:
    found = tokenizer()
    padded = Tokenizer(found._definition, TokenizerSettings(vocabulary_size=300))
    assert padded.decode([*found.encode("hello"), 299]) == "hello"


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(
        PromptError, match=r"cannot be written in UTF-8: it holds half of a surrogate pair, U\+D800, at"
    ):
        tokenizer().encode("a\ud800")


@pytest.mark.parametrize("ids", [5, None, "ab", b"ab", [1.0], ["1"], [None], [True], np.array([1.5]), {"a": 1}])
def test_what_is_no_token_id_is_named(ids: Any) -> None:
    with pytest.raises(PromptError, match=r"decode\(\) takes (a list or an array of|whole numbers as) token ids"):
        tokenizer().decode(ids)


@pytest.mark.parametrize("text", [None, 5, b"ab", ["ab"]])
def test_what_is_no_text_is_named(text: Any) -> None:
    with pytest.raises(PromptError, match=r"encode\(\) takes a text, not "):
        tokenizer().encode(text)


def test_ids_of_every_library_decode() -> None:
    torch = pytest.importorskip("torch")
    ids = tokenizer().encode("hello")
    for same in (
        np.array(ids),
        np.array(ids, dtype=np.uint16),
        torch.tensor(ids),
        tuple(map(np.int32, ids)),
        iter(ids),
    ):
        assert tokenizer().decode(same) == "hello"


def test_without_a_template() -> None:
    found = tokenizer()
    assert not found.has_chat_template
    with pytest.raises(TemplateError, match=r"has no chat template; give it a plain prompt"):
        found.encode_chat([{"role": "user", "content": "hi"}])


def test_a_directory(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    read = read_tokenizer(folder)
    assert read is not None
    found = Tokenizer(read.definition, read.settings)
    start, end = (found.backend.token_to_id(text) for text in ("<|start|>", "<|end|>"))
    assert found.bos_id == start and end in found.eos_ids and 257 in found.eos_ids
    prompt = found.apply_chat_template([{"role": "user", "content": "hé"}])
    assert prompt == "<|start|>user\nhé<|end|>\n<|start|>assistant\n"
    assert found.decode(found.encode(prompt), skip_special=False) == prompt


def test_several_ends_and_a_template_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9.0]}))
    (folder / "chat_template.jinja").write_text("FILE {{ messages[0].content }}")
    read = read_tokenizer(folder)
    assert read is not None and {7, 9} < set(read.settings.eos_ids)
    assert read.settings.chat_template == "FILE {{ messages[0].content }}"


@pytest.mark.parametrize(
    ("template", "expected", "warning"),
    [
        ("", None, None),
        (" \n", None, None),
        (None, None, None),
        ([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}], "D", None),
        ({"default": "D", "rag": "R"}, "D", None),
        (
            [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}],
            None,
            "among 'rag', 'tool_use', so",
        ),
        ({"rag": "R"}, None, "has no 'default' among 'rag', so the model has no chat template; write the one to use"),
        (5, None, "'chat_template' of tokenizer_config.json is 5, no text"),
    ],
)
def test_a_template_that_cannot_be_used_is_none_and_told(
    tmp_path: Path, template: object, expected: str | None, warning: str | None
) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": template}))
    read = read_tokenizer(folder)
    assert read is not None and read.settings.chat_template == expected
    assert [warning in text for text in read.settings.warnings if warning] == [True] * bool(warning)
    assert bool(read.settings.warnings) == bool(warning)
    (folder / "chat_template.jinja").write_text("\n")
    blank = read_tokenizer(folder)
    assert blank is not None and blank.settings.chat_template is None and not blank.settings.warnings


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda data: data.update(
                decoder={
                    "type": "Sequence",
                    "decoders": [{"type": "Fuse"}, {"type": "WordPiece", "prefix": "##", "cleanup": True}],
                }
            ),
            "decoder 'WordPiece' is not supported behind 'Fuse'",
        ),
        (lambda data: data.update(decoder=None), "'decoder' is missing"),
        (lambda data: data.update(model={"type": "BPE", "vocab": {"a": "x"}, "merges": []}), "is not valid"),
        (lambda data: data["model"].update(merges=[["zz", "q"]]), "is not valid"),
    ],
)
def test_directories_with_a_damaged_tokenizer(tmp_path: Path, change: object, expected: str) -> None:
    folder = write_checkpoint(tmp_path)
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)  # type: ignore[operator]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="tokenizer.json") as error:
        read_tokenizer(folder)
    assert expected in str(error.value)


def test_the_template_for_tools_is_read_from_the_list_or_a_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    templates = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": templates}))
    read = read_tokenizer(folder)
    assert read is not None and (read.settings.chat_template, read.settings.tool_template) == ("D", "T")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("FILE")
    read = read_tokenizer(folder)
    assert read is not None and read.settings.tool_template == "FILE"
    assert TokenizerSettings.from_json(read.settings.to_json()) == read.settings
