"""The vocabulary of a GGUF file, put right where files are known to be wrong.

Ends of a turn and markers of a chat template are control tokens whatever type the file gives them; empty texts get
names; of equal texts the first is the one that encoding finds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from thrifty.errors import CheckpointError
from thrifty.models.gguf.metadata import Metadata
from thrifty.models.tokens.ends import MARKER, MARKS_OF_FILLING, known_ends

# token types of `tokenizer.ggml.token_type`; 0 is undefined
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_PLAIN = (0, NORMAL, UNUSED)
_BRACKETED = re.compile(r"<.+>|\[.+\]")
_ROLES = ("bos", "eos", "eot", "eom", "padding")
_TYPES = "tokenizer.ggml.token_type"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids.

    texts: all different, none empty. types: corrected. ends: ids that end an answer by their text. duplicates: (id, the
    id of the first token of that text); such an id has a text of its own that no prompt is encoded to. warnings: what
    was put right, for people.
    """

    texts: tuple[str, ...]
    types: tuple[int, ...]
    ends: tuple[int, ...] = ()
    duplicates: tuple[tuple[int, int], ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)


def read_vocabulary(metadata: Metadata, spell: Callable[[str], str] = str) -> Vocabulary:
    """The tokens that the metadata lists. spell: how a text is looked up.

    Raises CheckpointError, naming the field, where it is missing, empty or of another length.
    """
    written = metadata.texts("tokenizer.ggml.tokens")
    texts = [spell(text) for text in written]
    if not texts:
        raise CheckpointError(f"{metadata.path}: 'tokenizer.ggml.tokens' is empty")
    stated = _TYPES in metadata
    types = metadata.integers(_TYPES, len(texts)) if stated else [NORMAL] * len(texts)
    # A text that is looked up otherwise than it is written is found by merges, not in the text as it is given.
    types = [
        NORMAL if kind == USER_DEFINED and text != before else kind
        for kind, text, before in zip(types, texts, written, strict=True)
    ]
    vocabulary = _named(Vocabulary(tuple(texts), tuple(types)))
    vocabulary = _with_ends(vocabulary, texts, _merged(metadata, known_ends(texts)))
    return _with_control(vocabulary, _control(metadata, vocabulary), stated)


def _named(vocabulary: Vocabulary) -> Vocabulary:
    """Empty texts and repeated ones under names of their own."""
    texts, types = list(vocabulary.texts), list(vocabulary.types)
    first: dict[str, int] = {}
    duplicates: list[tuple[int, int]] = []
    for index, text in enumerate(texts):
        texts[index] = text = text or f"[EMPTY_{index}]"
        if first.setdefault(text, index) != index:
            duplicates.append((index, first[text]))
    for index, _ in duplicates:
        name = f"[DUPLICATE_{index}]"
        while name in first:
            name = f"[{name}]"
        first[name] = index
        texts[index], types[index] = name, UNUSED
    return replace(vocabulary, texts=tuple(texts), types=tuple(types), duplicates=tuple(duplicates))


def _merged(metadata: Metadata, texts: Collection[str]) -> set[str]:
    """Those of the texts that a merge spells. They were learned from text, such as the tag "</s>" from HTML."""
    if "tokenizer.ggml.merges" not in metadata:
        return set()
    return {line.replace(" ", "", 1) for line in metadata.texts("tokenizer.ggml.merges")}.intersection(texts)


def _with_ends(vocabulary: Vocabulary, texts: list[str], merged: Collection[str]) -> Vocabulary:
    """texts: as the file has them, so that every id of a text that ends an answer ends it."""
    known = [text for text in known_ends(texts) if text not in merged]
    order = {text: place for place, text in enumerate(known)}
    ends = sorted((order[text], index) for index, text in enumerate(texts) if text in order)
    return replace(vocabulary, ends=tuple(index for _, index in ends))


def _with_control(vocabulary: Vocabulary, control: Collection[int], stated: bool) -> Vocabulary:
    """These ids as control tokens, and a warning of those that the file does not say it of."""
    types = list(vocabulary.types)
    copies = {index for index, _ in vocabulary.duplicates}
    corrected = []
    for index in control:
        if types[index] != CONTROL and index not in copies:
            types[index] = CONTROL
            corrected.append(vocabulary.texts[index])
    if not corrected:
        return vocabulary
    listing = ", ".join(sorted(corrected)[:8]) + (f" and {len(corrected) - 8} more" if len(corrected) > 8 else "")
    reason = "does not mark them as such" if stated else "is missing"
    warning = f"taken as control tokens, though '{_TYPES}' {reason}: {listing}"
    return replace(vocabulary, types=tuple(types), warnings=(*vocabulary.warnings, warning))


def _control(metadata: Metadata, vocabulary: Vocabulary) -> Collection[int]:
    """Known ends and marks of filling; markers of the template, and ids with a role and a text that looks like it."""
    markers = set(MARKER.findall(metadata.text("tokenizer.chat_template", "")))
    named = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _ROLES)
    roles = {value for value in named if isinstance(value, int)}
    control = dict.fromkeys(vocabulary.ends)
    for index, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.types, strict=True)):
        in_role = index in roles and _BRACKETED.fullmatch(text) is not None
        if text in MARKS_OF_FILLING or (kind in _PLAIN and (text in markers or in_role)):
            control[index] = None
    return control
