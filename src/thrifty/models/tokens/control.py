"""Text in which control tokens are not meant: what a user writes can neither open nor close a turn."""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import Model

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

Part = tuple[str, bool]
"""A stretch of text, and whether the control tokens that it spells out are meant."""


@dataclass(frozen=True)
class Beside:
    """A tokenizer whose added tokens have ids of their own. real: from these to the ids that they stand for."""

    backend: Backend
    real: Mapping[int, int]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, here."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids


class ControlFree:
    """A tokenizer beside another, in which every control token goes by a name that nobody can guess.

    So text never becomes a control token, and those that are meant are put into the text by their new names: all of it
    is still encoded in one pass. The two share their vocabulary in memory, as long as it spells no control token.
    """

    def __init__(self, backend: Backend, control: frozenset[int]) -> None:
        """control: the ids of the control tokens, added tokens of `backend`."""
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._names = {added[token].content: secrets.token_hex(16) for token in control}
        # The longest token that begins at a place is the one that is meant there, whatever its kind.
        texts = sorted((entry.content for entry in added.values()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts)))
        # What the vocabulary itself may spell. The unknown token stands for any text.
        unknown = getattr(backend.model, "unk_token", None)
        own = {text: backend.model.token_to_id(text) for text in self._names if text != unknown}
        self._spelled = frozenset(token for token in own.values() if token is not None)

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """The ids of the parts' joined text."""
        text = "".join(self._pattern.sub(self._name, part) if meant else part for part, meant in parts)
        beside = self._shared
        ids = beside.encode(text)
        if not self._spelled.isdisjoint(ids):
            beside = self._renamed
            ids = beside.encode(text)
        return [beside.real.get(token, token) for token in ids]

    @cached_property
    def _shared(self) -> Beside:
        return self._beside(self._backend.model)

    @cached_property
    def _renamed(self) -> Beside:
        """For vocabularies that spell control tokens themselves: a copy in which they go by their new names, too."""
        from tokenizers import Tokenizer as Backend

        definition = json.loads(self._backend.to_str())
        _rename(definition["model"], self._names)
        bare = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
        return self._beside(Backend.from_str(json.dumps({**definition, **bare, "added_tokens": []})).model)

    def _beside(self, model: Model) -> Beside:
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        backend = Backend(model)
        if self._backend.normalizer is not None:
            backend.normalizer = self._backend.normalizer
        if self._backend.pre_tokenizer is not None:
            backend.pre_tokenizer = self._backend.pre_tokenizer
        added = sorted(self._backend.get_added_tokens_decoder().items())
        names = [self._names.get(entry.content, entry.content) for _, entry in added]
        flags = [{flag: getattr(entry, flag) for flag in FLAGS} for _, entry in added]
        backend.add_tokens([AddedToken(name, **kept) for name, kept in zip(names, flags, strict=True)])
        ids = map(backend.token_to_id, names)
        return Beside(backend, {own: token for own, (token, _) in zip(ids, added, strict=True) if own is not None})

    def _name(self, match: re.Match[str]) -> str:
        return self._names.get(match[0], match[0])


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
