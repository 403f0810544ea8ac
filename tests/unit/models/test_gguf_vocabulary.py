"""Vocabularies of GGUF files that are known to be wrong: types, empty and repeated texts, and no name of their cut."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import gguf_files
from tests.gguf_files import byte_tokens
from tests.unit.models.test_tokenizer_gguf import SPM, metadata, spm, tokenizer

from thrifty.errors import CheckpointError, ThriftyWarning
from thrifty.models.gguf.metadata import Metadata
from thrifty.models.gguf.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from thrifty.models.loading import load, load_plain
from thrifty.models.tokens.gguf import from_metadata
from thrifty.models.tokens.pieces import bytes_of
from thrifty.models.tokens.pre import cut
from thrifty.models.tokens.settings import TokenizerSettings
from thrifty.models.tokens.tokenizer import Tokenizer

PLAIN = byte_tokens()[:259]  # bytes and merges


def with_texts(*texts: str, kind: int | None = NORMAL, **changes: Any) -> Tokenizer:
    """The plain tokens and these at the end, of that type; None leaves all types out. The end by metadata is "a"."""
    types = None if kind is None else np.array([NORMAL] * len(PLAIN) + [kind] * len(texts))
    fields = {"tokens": [*PLAIN, *texts], "token_type": types, "bos_token_id": None, "eos_token_id": PLAIN.index("a")}
    return tokenizer(**{**fields, **changes})


ENDS = [
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
    *(
        "</s>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<eos>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
        "<|return|>",
    ),
    *("<|call|>", "<|flush|>", "<turn|>", "<|tool_response>", "[e~[", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
]


@pytest.mark.parametrize("kind", [0, NORMAL, CONTROL, USER_DEFINED, UNUSED, None])
@pytest.mark.parametrize("text", ENDS)
def test_known_ends_end_whatever_their_type(text: str, kind: int | None) -> None:
    found = with_texts(text, kind=kind)
    end = len(PLAIN)
    assert set(found.eos_ids) == {PLAIN.index("a"), end}
    assert found.encode(f"he{text}he") == [256, end, 256]
    assert found.decode([256, end]) == "he" and end in found.special_ids
    assert bool(found.settings.warnings) is (kind != CONTROL)
    if kind != CONTROL:
        assert text in found.settings.warnings[0] and "'tokenizer.ggml.token_type'" in found.settings.warnings[0]


@pytest.mark.parametrize("kind", [NORMAL, USER_DEFINED, UNUSED, None])
def test_ends_in_sentencepiece_vocabularies(kind: int | None) -> None:
    tokens = [*SPM, "<end_of_turn>"]
    types = np.array([2, 3, 3, *[6] * 256, *[1] * (len(SPM) - 259), kind])
    scores = np.zeros(len(tokens), dtype=np.float32)
    found = spm(tokens=tokens, scores=scores, token_type=None if kind is None else types)
    assert found.encode("a<end_of_turn>", add_bos=False)[-1] == len(SPM)
    assert set(found.eos_ids) == {2, len(SPM)} and len(SPM) in found.special_ids


def test_a_message_of_several_parts_does_not_end_at_the_first() -> None:
    found = with_texts("<|end|>", "<|return|>", "<|call|>", kind=CONTROL)
    assert set(found.eos_ids) == {PLAIN.index("a"), len(PLAIN) + 1, len(PLAIN) + 2}


def test_tags_that_text_taught_are_text() -> None:
    """Code models and Gemma have "</s>" as a tag of HTML."""
    merges = ["h e", "l l", "he ll", "s >", "/ s>", "< /s>"]
    found = with_texts("s>", "/s>", "</s>", merges=merges)
    assert found.eos_ids == (PLAIN.index("a"),) and not found.settings.warnings
    assert found.decode([len(PLAIN) + 2]) == "</s>"
    gemma = with_texts("</s>", "<start_of_turn>", "<end_of_turn>", kind=USER_DEFINED)
    assert set(gemma.eos_ids) == {PLAIN.index("a"), len(PLAIN) + 2}


def test_marks_of_filling_are_control_tokens_and_no_ends() -> None:
    found = with_texts("<|fim_prefix|>", "<PRE>", "<｜fim▁hole｜>")
    assert found.eos_ids == (PLAIN.index("a"),) and len(found.special_ids) == 3


def test_markers_of_the_template_are_one_token_each() -> None:
    template = "<|im_start|>user<|im_end|><start_of_turn><b>"
    found = with_texts("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<|other|>", "<b>")
    assert len(found.encode("<|im_start|>")) > 1, "nothing says that it is more than text"
    tokens = [*PLAIN, "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<|other|>", "<b>"]
    fields = metadata(tokens=tokens, token_type=None, bos_token_id=None, eos_token_id=None)
    definition = from_metadata(Metadata(fields.path, {**fields, "tokenizer.chat_template": template}))
    found = Tokenizer(definition.definition, definition.settings)
    assert found.encode("<|im_start|>he<start_of_turn>") == [259, 256, 261]
    assert len(found.encode("<|other|>")) > 1 and len(found.encode("<b>")) > 1
    assert found.eos_ids == (260,)


@pytest.mark.parametrize("kind", [NORMAL, UNUSED, None])
def test_ids_with_a_role_are_control_tokens_where_they_look_like_it(kind: int | None) -> None:
    first = len(PLAIN)
    found = with_texts("<s>", "[STOP]", "<bye>", kind=kind, bos_token_id=first, eos_token_id=first + 1, eot_token_id=97)
    assert found.encode("<s>he[STOP]") == [first, 256, first + 1] and found.decode([first, 256, first + 1]) == "he"
    assert len(found.encode("<bye>")) > 1, "no role"
    assert found.eos_ids == (first + 1, 97) and 97 not in found.special_ids, "a plain letter stays text"


def test_empty_texts_are_named_by_their_place() -> None:
    found = with_texts("", "", "<|im_end|>", kind=CONTROL)
    place = len(PLAIN)
    assert found.backend.id_to_token(place) == f"[EMPTY_{place}]"
    assert found.backend.id_to_token(place + 1) == f"[EMPTY_{place + 1}]"
    assert with_texts("", kind=NORMAL).decode([place]) == f"[EMPTY_{place}]"


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER_DEFINED])
def test_of_equal_texts_the_first_is_encoded_and_all_decode(kind: int) -> None:
    found = with_texts("he", "<tag>", "<tag>", "he", kind=kind)
    first, second, third, fourth = range(len(PLAIN), len(PLAIN) + 4)
    assert found.encode("hehe") == [256, 256]
    assert first not in found.encode("he") and fourth not in found.encode("he")
    shown = found.decode([first, fourth, second, third], skip_special=False)
    assert shown == "hehe<tag><tag>"
    assert found.decode([third]) == ("" if kind == CONTROL else "<tag>")
    assert found.vocabulary_size == len(PLAIN) + 4
    if kind != NORMAL:
        assert found.encode("<tag>") == [second]


def test_every_id_of_an_end_ends() -> None:
    found = with_texts("<|im_end|>", "<|im_end|>")
    assert {len(PLAIN), len(PLAIN) + 1} < set(found.eos_ids)
    assert found.decode([len(PLAIN) + 1]) == ""


def test_equal_texts_in_sentencepiece_vocabularies() -> None:
    """A run of spaces may be spelled in two ways."""
    tokens = [*SPM, "ab", "\u2581\u2581", "  ", ""]
    types = np.array([2, 3, 3, *[6] * 256, *[1] * (len(SPM) + 4 - 259)])
    found = spm(tokens=tokens, scores=np.zeros(len(tokens), dtype=np.float32), token_type=types)
    assert found.encode("ab ab", add_bos=False).count(len(SPM)) == 0
    assert found.decode([SPM.index("a"), len(SPM), len(SPM) + 1, len(SPM) + 2, SPM.index("a")]) == "aab    a"
    assert found.decode([SPM.index("a"), len(SPM) + 3]) == f"a[EMPTY_{len(SPM) + 3}]"


def test_settings_keep_duplicates_and_warnings() -> None:
    settings = with_texts("he", "<|im_end|>").settings
    assert settings.duplicates == ((259, 256),) and settings.warnings
    assert TokenizerSettings.from_json(settings.to_json()) == settings
    with pytest.raises(CheckpointError, match="'duplicates' is unknown or has a wrong value"):
        TokenizerSettings.from_json({"duplicates": [[1]]})


@pytest.mark.parametrize(
    "types", [np.zeros(259, np.float32), np.array(["a"] * 259, dtype=object), np.ones(259, np.bool_)], ids=str
)
def test_types_must_be_integers(types: np.ndarray) -> None:
    with pytest.raises(CheckpointError, match=r"'tokenizer.ggml.token_type' must be an array of integers"):
        tokenizer(tokens=PLAIN, token_type=types, bos_token_id=None, eos_token_id=None)


# What llama.cpp makes of the text, as the pieces between which no merge reaches.
CUT_BY_GUESS = [
    ("12345 1234", ["123", "45", " ", "123", "4"]),
    ("It's 2024!", ["It", "'", "s", " ", "202", "4", "!"]),
    ("a+b <= c|d", ["a", "+", "b", " ", "<=", " c", "|", "d"]),
    ("`code` x`", ["`", "code", "`", " x", "`"]),
    ("don't…", ["don", "'", "t", "…"]),
    ("  two  spaces ", [" ", " two", " ", " spaces", " "]),
    ("tab\tend\n\n", ["tab", "\t", "end", "\n\n"]),
    ("x²½ Ⅷ９", ["x", "²½", " ", "Ⅷ９"]),
    ("«a» \u20ac5", ["«", "a", "»", " \u20ac", "5"]),
    ("", []),
]


@pytest.mark.parametrize(("text", "expected"), CUT_BY_GUESS)
@pytest.mark.parametrize("pre", [None, "default"])
def test_text_is_cut_as_llama_cpp_guesses(pre: str | None, text: str, expected: list[str]) -> None:
    found = tokenizer(pre=pre)
    pieces = [piece for piece, _ in cut("default").pre_tokenizer().pre_tokenize_str(text)]
    assert [bytes_of(piece).decode() for piece in pieces] == expected
    assert found.decode(found.encode(text)) == text
    wanted = "is missing" if pre is None else "is 'default'"
    assert [wanted in warning for warning in found.settings.warnings] == [True]


def test_a_guess_is_told_at_every_load_and_a_name_is_not(tmp_path: Path, cache: Path) -> None:
    for pre, said in ((None, True), ("default", True), ("smollm", False)):
        path = gguf_files.tiny(tmp_path / f"{pre}.gguf", pre=pre)
        for door in (load, load, lambda path: load_plain(path, np.dtype(np.float32))):  # converted, found, exact values
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                door(path)
            texts = [str(entry.message) for entry in caught if issubclass(entry.category, ThriftyWarning)]
            assert len(texts) == said
            assert all(text.startswith(f"{pre}.gguf: 'tokenizer.ggml.pre'") and "guess" in text for text in texts)


def test_the_command_line_shows_what_was_guessed(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture) -> None:
    from thrifty.cli.main import build

    path = gguf_files.tiny(tmp_path / "m.gguf", pre=None)
    build()(["run", str(path), "a", "--max-tokens", "2"], standalone_mode=False)
    shown = " ".join(capsys.readouterr().err.split())
    assert "Warning: m.gguf: 'tokenizer.ggml.pre' is missing" in shown
