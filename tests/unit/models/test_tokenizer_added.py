"""Added tokens that only the neighbours of a tokenizer.json name: as transformers adds them, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.small_tokenizers import byte_level

from thrifty.errors import CheckpointError
from thrifty.models.tokens.files import read_tokenizer
from thrifty.models.tokens.tokenizer import Tokenizer

START, END, TOOL = "<|im_start|>", "<|im_end|>", "<tool>"
TEXT = f"{START}user\nStraße {TOOL}{END}\n"


def entry(text: str, special: bool = True, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": text, "special": special, **plain, **flags}


def write(folder: Path, files: dict[str, Any], rows: int = 300, own: tuple[str, ...] = ()) -> Path:
    """A folder whose tokenizer.json holds 256 bytes, and the special tokens `own`."""
    byte_level(special=own, pieces=("</s>",)).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def read(folder: Path) -> Tokenizer:
    found = read_tokenizer(folder)
    assert found is not None
    return Tokenizer(found.definition, found.settings)


DECODER = {"257": entry(START), "258": entry(END), "259": entry(TOOL, special=False)}
CASES: dict[str, dict[str, Any]] = {
    "added_tokens_decoder": {"tokenizer_config": {"added_tokens_decoder": DECODER, "eos_token": END}},
    "added_tokens_decoder in another order": {
        "tokenizer_config": {"added_tokens_decoder": dict(reversed(DECODER.items())), "eos_token": END}
    },
    "added_tokens.json": {
        "added_tokens": {TOOL: 259, START: 257, END: 258},
        "tokenizer_config": {"eos_token": END, "additional_special_tokens": [START]},
    },
    "added_tokens.json and special_tokens_map.json": {
        "added_tokens": {TOOL: 259, START: 257, END: 258},
        "special_tokens_map": {"eos_token": entry(END), "extra_special_tokens": [START, END]},
    },
    "special tokens without ids": {
        "tokenizer_config": {"bos_token": START, "eos_token": {"__type": "AddedToken", **entry(END)}},
    },
    "special_tokens_map.json alone": {"special_tokens_map": {"bos_token": START, "eos_token": entry(END)}},
    "a role for a token of the vocabulary": {"tokenizer_config": {"eos_token": "</s>", "bos_token": START}},
    "a role for a token that is stated as not special": {
        "tokenizer_config": {"added_tokens_decoder": {**DECODER, "258": entry(END, special=False)}, "eos_token": END}
    },
    "added_tokens.json beside added_tokens_decoder": {
        "tokenizer_config": {"added_tokens_decoder": DECODER, "eos_token": END},
        "added_tokens": {"Straße": 257, "user": 260},
    },
    "extra special tokens": {"tokenizer_config": {"extra_special_tokens": [START, END], "eos_token": END}},
}


@pytest.mark.long
@pytest.mark.parametrize("own", [(), (START,)], ids=["none known", "one known"])
@pytest.mark.parametrize("case", CASES)
def test_tokens_are_those_of_transformers(tmp_path: Path, case: str, own: tuple[str, ...]) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = write(tmp_path, CASES[case], own=own)
    oracle = PreTrainedTokenizerFast.from_pretrained(str(folder))
    tokenizer = read(folder)
    text = TEXT + "</s>"
    assert tokenizer.encode(text, add_bos=False) == oracle.encode(text, add_special_tokens=False)
    assert tokenizer.eos_ids[0] == oracle.eos_token_id
    ids = tokenizer.encode(text, add_bos=False)
    assert tokenizer.decode(ids) == oracle.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    "case", ["added_tokens_decoder", "added_tokens.json", "added_tokens.json and special_tokens_map.json"]
)
def test_every_source_counts(tmp_path: Path, case: str) -> None:
    tokenizer = read(write(tmp_path, CASES[case]))
    ids = tokenizer.encode(TEXT)
    assert [token for token in ids if token > 256] == [257, 259, 258]
    assert tokenizer.special_ids == {257, 258} and tokenizer.eos_ids == (258,)
    assert tokenizer.decode(ids) == f"user\nStraße {TOOL}\n"
    assert tokenizer.decode(ids, skip_special=False) == TEXT


def test_flags_of_the_neighbour_count(tmp_path: Path) -> None:
    decoder = {"257": entry(START, special=False, lstrip=True)}
    tokenizer = read(write(tmp_path, {"tokenizer_config": {"added_tokens_decoder": decoder}}, own=(START,)))
    assert tokenizer.special_ids == frozenset()
    assert tokenizer.encode(f"a  {START}") == [tokenizer.encode("a")[0], 257]


def test_a_folder_that_names_nothing_new_keeps_its_definition(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {"257": entry(START)}, "bos_token": START, "unk_token": None}
    folder = write(tmp_path, {"tokenizer_config": config, "added_tokens": {START: 257}}, own=(START,))
    found = read_tokenizer(folder)
    assert found is not None and found.definition == (folder / "tokenizer.json").read_text()
    assert found.settings.special_tokens == {"bos_token": START}


def test_a_special_token_without_a_row_in_the_model_is_left_out(tmp_path: Path) -> None:
    files = {"tokenizer_config": {"bos_token": START, "pad_token": "[PAD]"}}
    tokenizer = read(write(tmp_path, files, rows=258))
    assert tokenizer.encode(START) == [257] and tokenizer.settings.pad_id is None
    assert tokenizer.encode("[PAD]") == [tokenizer.encode(letter)[0] for letter in "[PAD]"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            {"added_tokens": {TOOL: 280}},
            "'<tool>' is stated as 280, but 257 is its place behind tokenizer.json's; save",
        ),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"5": entry(TOOL)}}},
            "'<tool>' is stated as 5, but 257 is its place",
        ),
        ({"added_tokens": {TOOL: "x"}}, "'x' is no id of an added token"),
        ({"added_tokens": {TOOL: True}}, "True is no id of an added token"),
        ({"added_tokens": [TOOL]}, "added_tokens.json: not a JSON object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"-1": entry(TOOL)}}}, "'-1' is no id of an added token"),
        ({"tokenizer_config": {"added_tokens_decoder": [TOOL]}}, "'added_tokens_decoder' is not a JSON object"),
        ({"tokenizer_config": {"added_tokens_decoder": {"257": {"special": True}}}}, "needs a 'content', and flags"),
        ({"tokenizer_config": {"added_tokens_decoder": {"257": {**entry(TOOL), "lstrip": 3}}}}, "and flags"),
        ({"added_tokens": {"\ud800": 257}}, "UTF-8"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read(write(tmp_path, files))
    assert expected in str(error.value)
