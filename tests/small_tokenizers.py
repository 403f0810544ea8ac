"""Small tokenizers of every kind, made by the `tokenizers` library."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPACE = "\u2581"
WORDS = (f"{SPACE}Paris", f"{SPACE}the", f"{SPACE}a", SPACE, SPACE * 2, SPACE * 3)


def byte_level(special: Sequence[str] = (), added: Sequence[str] = (), pieces: Iterable[str] = ()) -> Tokenizer:
    """256 byte symbols, then `pieces` (in GPT-2's alphabet), special tokens, and added tokens that are not special."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for piece in pieces:
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return with_added(tokenizer, special, added)


def sentence_piece(
    prefix: str = "prepend",
    special: Sequence[str] = ("<unk>", "<s>", "</s>"),
    added: Sequence[str] = (),
    words: Sequence[str] = WORDS,
) -> Tokenizer:
    """BPE with byte fallback. prefix: "prepend" as Llama 2 has it, "none", or a `prepend_scheme` of Metaspace."""
    vocabulary = {text: index for index, text in enumerate(("<unk>", "<s>", "</s>"))}
    for piece in [*(f"<0x{byte:02X}>" for byte in range(256)), *string.ascii_letters, *".,!?'</>|", *words]:
        vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prefix in ("prepend", "none"):
        steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        replace = normalizers.Replace(" ", SPACE)
        first = [normalizers.Prepend(SPACE)] if prefix == "prepend" else []
        tokenizer.normalizer = normalizers.Sequence([*first, replace])
        tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if first else [])])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prefix), decoders.Fuse()]
        )
    return with_added(tokenizer, special, added)


def unigram(special: Sequence[str] = ("<s>", "</s>"), added: Sequence[str] = ()) -> Tokenizer:
    """A Unigram vocabulary with byte fallback whose pieces spell its control tokens, too."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -9.0) for byte in range(256))]
    pieces += [(letter, -3.0) for letter in [*string.ascii_letters, *".,!?'</>|", SPACE]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return with_added(tokenizer, special, added)


def with_added(tokenizer: Tokenizer, special: Sequence[str], added: Sequence[str]) -> Tokenizer:
    """The same tokenizer with special tokens, and with added tokens that are not special."""
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    return tokenizer
