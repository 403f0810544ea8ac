"""Text that spells control tokens out: as text where they are not meant, exactly as before where they are."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.small_tokenizers import byte_level, sentence_piece, unigram

from thrifty.models.tokens.settings import TokenizerSettings
from thrifty.models.tokens.tokenizer import Tokenizer

CONTROL = ("<s>", "</s>", "<|turn|>")
KINDS = {
    "byte-level": lambda: byte_level(special=CONTROL, added=("<tool>", "<|end|>")),
    "prepend": lambda: sentence_piece("prepend", special=("<unk>", *CONTROL)),
    "first": lambda: sentence_piece("first", special=("<unk>", *CONTROL)),
    "never": lambda: sentence_piece("never", special=("<unk>", *CONTROL)),
    "unigram": lambda: unigram(special=CONTROL),
}
TEXT = st.lists(st.sampled_from([*CONTROL, "<|", "turn|>", "<", "s>", " ", "a", "ab\n", "é", "<tool>"]), max_size=8)


@cache
def wrapped(kind: str, **changes: object) -> Tokenizer:
    return Tokenizer(KINDS[kind]().to_str(), TokenizerSettings(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(pieces=TEXT)
@example(pieces=["</s>"])
@example(pieces=["a", "<|turn|>", "</s>", "b"])
def test_control_tokens_that_are_not_meant_are_text(kind: str, pieces: list[str]) -> None:
    tokenizer, text = wrapped(kind), "".join(pieces)
    ids = tokenizer.encode(text, control=False)
    assert tokenizer.control_ids.isdisjoint(ids)
    assert tokenizer.decode(ids).strip(" ") == text.strip(" ")  # "first" and "always" share a space with the text
    if tokenizer.control_ids.isdisjoint(tokenizer.encode(text)):
        assert ids == tokenizer.encode(text)
    library = KINDS[kind]()
    library.encode_special_tokens = True
    if kind != "unigram":  # there the library's own vocabulary spells the control tokens
        assert ids == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(pieces=TEXT)
def test_a_conversation_is_encoded_as_before_where_its_texts_spell_nothing(kind: str, pieces: list[str]) -> None:
    tokenizer = wrapped(kind)
    text = "".join(piece for piece in pieces if piece not in CONTROL)
    parts = [("<s>", True), (text, False), ("</s>", True), ("<|turn|>\n", True), (text, False)]
    whole = "".join(part for part, _ in parts)
    if sum(token in tokenizer.control_ids for token in tokenizer.encode(whole)) == 3:
        assert tokenizer.encode_parts(parts) == tokenizer.encode(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_the_template_opens_turns_and_the_user_does_not(kind: str) -> None:
    tokenizer = wrapped(kind)
    said = "a</s><|turn|>b"
    ids = tokenizer.encode_parts([("<s>a", True), (said, False), ("</s><|tu", True), ("rn|>", True), ("a", False)])
    control = [token for token in ids if token in tokenizer.control_ids]
    assert control == [tokenizer.backend.token_to_id(text) for text in ("<s>", "</s>", "<|turn|>")]
    text = tokenizer.decode(ids, skip_special=False)
    assert text.replace(" ", "") == f"<s>a{said}</s><|turn|>a"


def test_a_token_that_two_parts_spell_together_is_not_meant() -> None:
    tokenizer = wrapped("byte-level")
    ids = tokenizer.encode_parts([("a<|tu", True), ("rn|>", False)])
    assert tokenizer.control_ids.isdisjoint(ids) and tokenizer.decode(ids) == "a<|turn|>"


def test_an_added_token_that_ends_answers_is_control_and_others_still_match() -> None:
    end = KINDS["byte-level"]().token_to_id("<|end|>")
    tokenizer = wrapped("byte-level", eos_ids=(end,))
    tool = tokenizer.backend.token_to_id("<tool>")
    assert tokenizer.encode("<tool>a<|end|>").count(end) == 1
    ids = tokenizer.encode("<tool>a<|end|>", control=False)
    assert end not in ids and ids[0] == tool
    word = Tokenizer(byte_level(added=("stop",)).to_str(), TokenizerSettings(eos_ids=(256,)))
    assert word.encode("stop") == [256] and 256 not in word.encode("stop", control=False)


@pytest.mark.parametrize(
    "mark", ["<|im_start|>", "<|user|>", "<start_of_turn>", "<｜User｜>", "<｜end▁of▁sentence｜>", "[INST]", "[/INST]"]
)
def test_what_marks_turns_is_control_though_no_file_calls_it_special(mark: str) -> None:
    template = "{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
    settings = TokenizerSettings(chat_template=f"{mark}{template}")
    tokenizer = Tokenizer(byte_level(added=(mark, "<think>", "[1]")).to_str(), settings)
    token, think = map(tokenizer.backend.token_to_id, (mark, "<think>"))
    said = f"a{mark}b<think>"
    ids = tokenizer.encode_chat([{"role": "user", "content": said}])
    assert ids.count(token) == 1 + template.count(mark) and ids.count(think) == 1
    assert tokenizer.decode(ids) == f"{mark}[INST]{said}[/INST]"  # and it is shown, as the file says


def test_a_text_without_control_tokens_still_begins_with_one_bos() -> None:
    tokenizer = wrapped("prepend", bos_id=1, add_bos=True)
    ids = tokenizer.encode("<s>a", control=False)
    assert ids[0] == 1 and ids.count(1) == 1 and tokenizer.decode(ids) == "<s>a"


def test_merges_never_reach_a_control_token() -> None:
    definition = json.loads(byte_level(pieces=("</", "s>", "</s>")).to_str())
    definition["model"]["merges"] = [["<", "/"], ["s", ">"], ["</", "s>"]]
    definition["pre_tokenizer"] = {**definition["pre_tokenizer"], "use_regex": False}
    added = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
    end = definition["model"]["vocab"]["</s>"]
    definition["added_tokens"] = [{"id": end, "content": "</s>", **added}]
    tokenizer = Tokenizer(json.dumps(definition), TokenizerSettings(eos_ids=(end,)))
    ids = tokenizer.encode("a</s>", control=False)
    assert end not in ids and tokenizer.decode(ids) == "a</s>" and len(ids) == 3


@pytest.mark.parametrize("kind", ["byte-level", "prepend"])
def test_the_vocabulary_is_not_copied_where_it_spells_no_control_token(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer(KINDS[kind]().to_str(), TokenizerSettings())
    tokenizer.encode("a")
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("the definition was read again"))
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode("</s><|turn|>", control=False))
    assert tokenizer.encode_parts([("<s>", True), ("</s>", False)])[0] == tokenizer.backend.token_to_id("<s>")


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_flags_of_control_tokens_count_in_the_texts_that_mean_them(flag: str) -> None:
    definition = json.loads(KINDS["byte-level"]().to_str())
    for entry in definition["added_tokens"]:
        entry[flag] = True
    tokenizer = Tokenizer(json.dumps(definition), TokenizerSettings())
    meant = "a <s> <|turn|> b </s>c"
    expected = tokenizer.encode(meant + " x")
    found = tokenizer.encode_parts([(meant + " x", True), ("</s>", False)])
    assert found[: len(expected)] == expected and tokenizer.decode(found[len(expected) :]) == "</s>"
