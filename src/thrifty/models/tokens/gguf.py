"""A tokenizer from a GGUF file's metadata: byte-level merges ("gpt2") or SentencePiece merges with scores ("llama").

The result is a `tokenizers` definition (the JSON of a tokenizer.json) and its settings, so that what runs at inference
is the `tokenizers` library, and the work here is done once, at conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from thrifty.errors import CheckpointError, nearest
from thrifty.models.gguf.metadata import Metadata
from thrifty.models.gguf.vocabulary import BYTE, CONTROL, UNUSED, USER_DEFINED, Vocabulary, read_vocabulary
from thrifty.models.tokens.merges import in_lines
from thrifty.models.tokens.pre import DEFAULT, cut
from thrifty.models.tokens.settings import TokenizerDefinition, TokenizerSettings

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_PRE = "tokenizer.ggml.pre"
SPACE = "\u2581"
# Families whose scores do not follow the order in which their merges were learned; the order of the ids does.
_MERGED_BY_ID = ("gemma", "gemma2", "gemma3")


Builder = Callable[[Metadata, Vocabulary], "Tokenizer"]


def from_metadata(metadata: Metadata) -> TokenizerDefinition:
    """The tokenizer that the metadata describes.

    Raises CheckpointError, naming the field, where it is missing, inconsistent or of an unknown kind.
    """
    kind = metadata.text("tokenizer.ggml.model")
    builders: dict[str, tuple[Builder, Callable[[str], str]]] = {
        "gpt2": (_byte_level, str),
        "llama": (_sentence_piece, _spelled),
    }
    if kind not in builders:
        raise CheckpointError(
            f"{metadata.path}: 'tokenizer.ggml.model' is '{kind[:80]}', which is not supported. "
            f"{nearest(kind, builders)}"
        )
    build, spell = builders[kind]
    vocabulary = read_vocabulary(metadata, spell)
    backend = build(metadata, vocabulary)
    _add_tokens(backend, vocabulary, CONTROL)
    _add_tokens(backend, vocabulary, USER_DEFINED)
    if backend.get_vocab_size(with_added_tokens=True) != len(vocabulary):
        raise CheckpointError(f"{metadata.path}: 'tokenizer.ggml.token_type' does not fit 'tokenizer.ggml.tokens'")
    return TokenizerDefinition(in_lines(backend.to_str()), _settings(metadata, vocabulary, kind))


def _byte_level(metadata: Metadata, tokens: Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    way = cut(metadata.text(_PRE, DEFAULT))
    vocabulary = {token: index for index, token in enumerate(tokens.texts)}
    merges = [
        _merge(metadata, index, line, vocabulary) for index, line in enumerate(metadata.texts("tokenizer.ggml.merges"))
    ]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=way.whole_words))
    backend.pre_tokenizer = way.pre_tokenizer()
    if way.compose:
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _merge(metadata: Metadata, index: int, line: str, vocabulary: dict[str, int]) -> tuple[str, str]:
    left, separator, right = line.partition(" ")
    for piece in (left, right, left + right):
        if not separator or piece not in vocabulary:
            raise CheckpointError(
                f"{metadata.path}: 'tokenizer.ggml.merges'[{index}] is {line[:80]!r}; "
                "both of its halves and their join must be tokens"
            )
    return left, right


def _sentence_piece(metadata: Metadata, tokens: Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    by_id = metadata.text("general.architecture") in _MERGED_BY_ID
    scores = _scores(metadata, len(tokens), by_id)
    vocabulary = {token: index for index, token in enumerate(tokens.texts)}
    unknown = metadata.integer("tokenizer.ggml.unknown_token_id", 0, maximum=len(tokens) - 1)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=derive_merges(tokens.texts, tokens.types, scores),
            unk_token=tokens.texts[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.flag("tokenizer.ggml.add_space_prefix", True):
        # Every stretch of text gets its space, also one that begins with a space: Metaspace would leave that out.
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
        steps.append(decoders.Strip(content=" ", left=1))
    else:
        backend.normalizer = normalizers.Replace(" ", SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    backend.decoder = decoders.Sequence(steps)
    return backend


def _scores(metadata: Metadata, count: int, by_id: bool) -> np.ndarray:
    if by_id:
        return -np.arange(count, dtype=np.float64)
    scores = metadata.numbers("tokenizer.ggml.scores", count).astype(np.float64)
    if not np.isfinite(scores).all():
        raise CheckpointError(f"{metadata.path}: 'tokenizer.ggml.scores' holds values that are not finite")
    return scores


def _spelled(token: str) -> str:
    """Runs of two or more plain spaces are stored as such, but looked up as the space symbol."""
    return SPACE * len(token) if len(token) > 1 and not token.strip(" ") else token


def derive_merges(tokens: Sequence[str], types: Sequence[int], scores: np.ndarray) -> list[tuple[str, str]]:
    """The merges that a scored vocabulary implies: every cut of a token into two tokens, best score first.

    Among the cuts of one score the one with the longest left half comes first. Byte and control tokens take no part:
    text never spells them by merging. Work is bounded by the squared length of the longest token that is kept.
    """
    parts = {token for token, kind in zip(tokens, types, strict=True) if kind not in (CONTROL, BYTE, UNUSED)}
    pairs: list[tuple[str, str]] = []
    keys: list[tuple[float, int, int]] = []
    for token, kind, score in zip(tokens, types, scores.tolist(), strict=True):
        if kind in (CONTROL, BYTE, UNUSED) or len(token) > MAX_TOKEN_LENGTH:
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in parts and right in parts:
                pairs.append((left, right))
                keys.append((-score, -at, at - len(token)))
    order = sorted(range(len(pairs)), key=keys.__getitem__)
    return [pairs[index] for index in order]


# Longer tokens exist in no vocabulary that merges could reach; the bound keeps hostile files cheap.
MAX_TOKEN_LENGTH = 1024


def _add_tokens(backend: Tokenizer, vocabulary: Vocabulary, kind: int) -> None:
    """Tokens of that kind are found in any text, before it is cut."""
    from tokenizers import AddedToken

    added: list[AddedToken] = [
        AddedToken(text, normalized=False, special=kind == CONTROL)
        for text, stated in zip(vocabulary.texts, vocabulary.types, strict=True)
        if stated == kind and backend.token_to_id(text) is not None
    ]
    if kind == CONTROL:
        backend.add_special_tokens(added)
    else:
        backend.add_tokens(added)


def _settings(metadata: Metadata, vocabulary: Vocabulary, kind: str) -> TokenizerSettings:
    count = len(vocabulary)
    bos = _token_id(metadata, "bos_token_id", count)
    named = [_token_id(metadata, f"{name}_token_id", count) for name in ("eos", "eot", "eom")]
    ends = [end for end in (*named, *vocabulary.ends) if end is not None]
    template = metadata.text("tokenizer.chat_template", "")
    tool_template = metadata.text("tokenizer.chat_template.tool_use", "")
    default_bos = kind == "llama" or cut(metadata.text(_PRE, DEFAULT)).bos
    return TokenizerSettings(
        bos_id=bos,
        eos_ids=tuple(dict.fromkeys(ends)),
        pad_id=_token_id(metadata, "padding_token_id", count),
        add_bos=bos is not None and metadata.flag("tokenizer.ggml.add_bos_token", default_bos),
        chat_template=template if template.strip() else None,
        tool_template=tool_template if tool_template.strip() else None,
        vocabulary_size=count,
        duplicates=vocabulary.duplicates,
        warnings=(*vocabulary.warnings, *(_guesses(metadata) if kind == "gpt2" else ())),
    )


def _guesses(metadata: Metadata) -> tuple[str, ...]:
    """A warning where the file leaves open how text is cut into words."""
    name = metadata.text(_PRE, "")
    if name not in ("", DEFAULT):
        return ()
    reason = f"'{_PRE}' is '{name}'" if _PRE in metadata else f"'{_PRE}' is missing"
    guess = "so how text is cut into words is a guess, llama.cpp's; prompts may be encoded otherwise than in training"
    return (f"{reason}, {guess} and answers be worse. Convert the model again with a converter of today.",)


def _token_id(metadata: Metadata, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}"
    value = metadata.integer(key, -1, minimum=-1, maximum=2**64 - 1)
    if value in (-1, 2**32 - 1, 2**64 - 1):  # -1 as several widths write it: none
        return None
    if value >= count:
        raise CheckpointError(f"{metadata.path}: '{key}' is {value}; the vocabulary has {count} tokens")
    return value
