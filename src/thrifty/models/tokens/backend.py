"""The `tokenizers` library's object of a tokenizer.json, and the decoder that it names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from thrifty.errors import CheckpointError
from thrifty.models.tokens.pieces import byte_of_character
from thrifty.storage import heap

if TYPE_CHECKING:
    import tokenizers

SENTENCE_PIECE = frozenset(("Sequence", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"))
"""The steps of decoders for vocabularies that spell a space as ▁."""


def decoder_of(backend: tokenizers.Tokenizer) -> Mapping[str, Any] | None:
    """The JSON of a tokenizer's decoder as the library writes it, None where it has none.

    Where the vocabulary is byte-level and the decoder is SentencePiece's, as in some exports of Mistral's tokenizers,
    it is the byte-level one: the other would leave the spellings of bytes in the text.
    """
    if backend.decoder is None:
        return None
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    if _kinds(decoder) <= SENTENCE_PIECE and _is_byte_level(backend):
        return {"type": "ByteLevel"}
    return decoder


def _is_byte_level(backend: tokenizers.Tokenizer) -> bool:
    """Whether text is cut into spellings of bytes, each of which is a token."""
    steps = backend.pre_tokenizer
    if steps is None or "ByteLevel" not in _kinds(json.loads(steps.__getstate__())):
        return False
    return all(backend.token_to_id(character) is not None for character in byte_of_character())


def _kinds(step: Mapping[str, Any]) -> set[str]:
    """The types of a step of a tokenizer, and of those inside it."""
    inner = (*step.get("pretokenizers", ()), *step.get("decoders", ()))
    return {step["type"]}.union(*map(_kinds, inner))


def load_backend(definition: str) -> tokenizers.Tokenizer:
    """A `tokenizers` object from the text of a tokenizer.json. Raises CheckpointError where it is not valid."""
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_str(definition)
    except BaseException as error:  # the library reports some faults as panics, which are not Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise CheckpointError(f"tokenizer.json is not valid: {str(error)[:200]}") from error
    heap.hand_back()  # what the library freed is more than what it keeps
    backend.no_truncation()
    backend.no_padding()
    return backend
