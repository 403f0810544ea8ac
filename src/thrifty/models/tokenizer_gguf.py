"""A tokenizer from a GGUF file's metadata: byte-level merges ("gpt2") or SentencePiece merges with scores ("llama").

The result is a `tokenizers` definition (the JSON of a tokenizer.json) and its settings, so that what runs at inference
is the `tokenizers` library, and the work here is done once, at conversion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thrifty.errors import CheckpointError, nearest
from thrifty.models.gguf import Metadata
from thrifty.models.tokenizer_pre import cut
from thrifty.models.tokenizer_settings import TokenizerDefinition, TokenizerSettings

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# token types of `tokenizer.ggml.token_type`
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
# Families whose scores do not follow the order in which their merges were learned; the order of the ids does.
_MERGED_BY_ID = ("gemma", "gemma2", "gemma3")
# Texts of tokens that end a turn, besides the ids that the metadata names.
ENDS_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


def from_metadata(metadata: Metadata) -> TokenizerDefinition:
    """The tokenizer that the metadata describes.

    Raises CheckpointError, naming the field, where it is missing, inconsistent or of an unknown kind.
    """
    kind = metadata.text("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if kind not in builders:
        raise CheckpointError(
            f"{metadata.path}: 'tokenizer.ggml.model' is '{kind[:80]}', which is not supported. "
            f"{nearest(kind, builders)}"
        )
    tokens = metadata.texts("tokenizer.ggml.tokens")
    if not tokens:
        raise CheckpointError(f"{metadata.path}: 'tokenizer.ggml.tokens' is empty")
    types = _types(metadata, len(tokens))
    _check_unique(metadata, tokens)
    backend = builders[kind](metadata, tokens, types)
    _add_tokens(backend, tokens, types, special=CONTROL)
    _add_tokens(backend, tokens, types, special=USER_DEFINED)
    _check_ids(metadata, backend, tokens)
    return TokenizerDefinition(backend.to_str(), _settings(metadata, tokens, types, kind))


def _types(metadata: Metadata, count: int) -> list[int]:
    if "tokenizer.ggml.token_type" not in metadata:
        return [NORMAL] * count
    return [int(value) for value in metadata.numbers("tokenizer.ggml.token_type", count)]


def _check_unique(metadata: Metadata, tokens: list[str]) -> None:
    first: dict[str, int] = {}
    for index, token in enumerate(tokens):
        if first.setdefault(token, index) != index:
            raise CheckpointError(
                f"{metadata.path}: 'tokenizer.ggml.tokens' holds {token[:80]!r} twice, at {first[token]} and {index}"
            )


def _byte_level(metadata: Metadata, tokens: list[str], types: list[int]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    way = cut(metadata.text("tokenizer.ggml.pre", "default"))
    vocabulary = {token: index for index, token in enumerate(tokens)}
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


def _sentence_piece(metadata: Metadata, tokens: list[str], types: list[int]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    by_id = metadata.text("general.architecture") in _MERGED_BY_ID
    scores = _scores(metadata, len(tokens), by_id)
    spelled = [_spelled(token) for token in tokens]
    vocabulary = {token: index for index, token in enumerate(spelled)}
    if len(vocabulary) < len(tokens):
        raise CheckpointError(f"{metadata.path}: 'tokenizer.ggml.tokens' spells a run of spaces in two ways")
    unknown = metadata.integer("tokenizer.ggml.unknown_token_id", 0, maximum=len(tokens) - 1)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=derive_merges(spelled, types, scores),
            unk_token=spelled[unknown],
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


def derive_merges(tokens: list[str], types: list[int], scores: np.ndarray) -> list[tuple[str, str]]:
    """The merges that a scored vocabulary implies: every cut of a token into two tokens, best score first.

    Among the cuts of one score the one with the longest left half comes first. Byte and control tokens take no part:
    text never spells them by merging. Work is bounded by the squared length of the longest token that is kept.
    """
    parts = {token for token, kind in zip(tokens, types, strict=True) if kind not in (CONTROL, BYTE, UNUSED)}
    found: list[tuple[str, str]] = []
    keys: list[tuple[float, int, int]] = []
    for token, kind, score in zip(tokens, types, scores.tolist(), strict=True):
        if kind in (CONTROL, BYTE, UNUSED) or len(token) > MAX_TOKEN_LENGTH:
            continue
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in parts and right in parts:
                found.append((left, right))
                keys.append((-score, -at, at - len(token)))
    order = sorted(range(len(found)), key=keys.__getitem__)
    return [found[index] for index in order]


# Longer tokens exist in no vocabulary that merges could reach; the bound keeps hostile files cheap.
MAX_TOKEN_LENGTH = 1024


def _add_tokens(backend: Tokenizer, tokens: list[str], types: list[int], special: int) -> None:
    from tokenizers import AddedToken

    found: list[AddedToken] = [
        AddedToken(token, normalized=False, special=special == CONTROL)
        for token, kind in zip(tokens, types, strict=True)
        if kind == special and token and backend.token_to_id(token) is not None
    ]
    if special == CONTROL:
        backend.add_special_tokens(found)
    else:
        backend.add_tokens(found)


def _check_ids(metadata: Metadata, backend: Tokenizer, tokens: list[str]) -> None:
    if backend.get_vocab_size(with_added_tokens=True) != len(tokens):
        raise CheckpointError(f"{metadata.path}: 'tokenizer.ggml.token_type' does not fit 'tokenizer.ggml.tokens'")


def _settings(metadata: Metadata, tokens: list[str], types: list[int], kind: str) -> TokenizerSettings:
    bos = _token_id(metadata, "bos_token_id", len(tokens))
    named = [_token_id(metadata, f"{name}_token_id", len(tokens)) for name in ("eos", "eot", "eom")]
    index = {
        token: at
        for at, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ in (CONTROL, USER_DEFINED)
    }
    ends = [*named, *(index.get(text) for text in ENDS_OF_TURN)]
    default_bos = kind == "llama" or cut(metadata.text("tokenizer.ggml.pre", "default")).bos
    template = metadata.text("tokenizer.chat_template", "")
    return TokenizerSettings(
        bos_id=bos,
        eos_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        pad_id=_token_id(metadata, "padding_token_id", len(tokens)),
        add_bos=bos is not None and metadata.flag("tokenizer.ggml.add_bos_token", default_bos),
        chat_template=template or None,
        vocabulary_size=len(tokens),
    )


def _token_id(metadata: Metadata, name: str, count: int) -> int | None:
    key = f"tokenizer.ggml.{name}"
    value = metadata.integer(key, -1, minimum=-1, maximum=2**32 - 1)
    if value in (-1, 2**32 - 1):  # both mean "none"
        return None
    if value >= count:
        raise CheckpointError(f"{metadata.path}: '{key}' is {value}; the vocabulary has {count} tokens")
    return value
