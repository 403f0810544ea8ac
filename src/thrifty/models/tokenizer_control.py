"""Text in which control tokens are not meant: what a user writes can neither open nor close a turn."""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

Part = tuple[str, bool]
"""A stretch of text, and whether the control tokens that it spells out are meant."""


@dataclass(frozen=True)
class ControlFree:
    """A copy of a tokenizer in which every control token goes by a name that nobody can guess.

    So text never becomes a control token, neither by its spelling nor by merges, and those that are meant are put into
    the text by their new names: all of it is still encoded in one pass. names: from the token's text to its new name.
    others: texts of the added tokens that keep their names.
    """

    backend: Backend
    names: Mapping[str, str]
    others: frozenset[str]

    @classmethod
    def of(cls, backend: Backend, control: frozenset[int]) -> ControlFree:
        """The copy of `backend` for these control tokens."""
        from tokenizers import Tokenizer as Backend

        definition = json.loads(backend.to_str())
        contents = {entry["id"]: entry["content"] for entry in definition["added_tokens"]}
        names = {contents[token]: secrets.token_hex(16) for token in control}
        for entry in definition["added_tokens"]:
            entry["content"] = names.get(entry["content"], entry["content"])
        _rename(definition["model"], names)
        definition["post_processor"] = None  # it may name tokens, and is never asked
        return cls(Backend.from_str(json.dumps(definition)), names, frozenset(contents.values()) - names.keys())

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """The ids of the parts' joined text."""
        # The longest token that begins at a place is the one that is meant there, whatever its kind.
        texts = sorted([*self.names, *self.others], key=len, reverse=True)
        spelled = re.compile("|".join(map(re.escape, texts)))
        written = [spelled.sub(self._name, text) if meant else text for text, meant in parts]
        ids: list[int] = self.backend.encode("".join(written), add_special_tokens=False).ids
        return ids

    def _name(self, match: re.Match[str]) -> str:
        return self.names.get(match[0], match[0])


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give tokens of a model's vocabulary, as a tokenizer.json states it, their new names."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, Mapping):
        model["vocab"] = {names.get(text, text): token for text, token in vocabulary.items()}
    else:  # Unigram: [text, score] by id
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [[left, right] for left, right in pairs if not {left, right, left + right} & names.keys()]


def all_meant(
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    control: frozenset[int],
    meant: Sequence[tuple[int, int]],
) -> bool:
    """Whether every control token among `ids` lies within one of the spans where control tokens are meant.

    offsets: of each id; meant: of each span, in rising order; both in characters, [start, end).
    """
    starts = [start for start, _ in meant]
    for token, (start, end) in zip(ids, offsets, strict=True):
        if token in control:
            place = bisect_right(starts, start) - 1
            if place < 0 or end > meant[place][1]:
                return False
    return True
