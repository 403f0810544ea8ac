"""Added tokens that a Hugging Face directory names beside its tokenizer.json.

The order is that of transformers: `added_tokens_decoder` of tokenizer_config.json; where that is missing
special_tokens_map.json and added_tokens.json; then the tokens that have a role (`eos_token` and the like).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Neighbours:
    """The JSON objects beside a tokenizer.json that name tokens; empty where there is no such file."""

    directory: Path
    config: Mapping[str, Any]
    special_tokens: Mapping[str, Any]
    added_tokens: Mapping[str, Any]

    @property
    def roles(self) -> dict[str, Any]:
        """What the files say of `eos_token` and the like, and of the special tokens beside them."""
        if "added_tokens_decoder" in self.config:
            return {**self.special_tokens, **_without_none(self.config)}
        return {**self.config, **_without_none(self.special_tokens)}

    @property
    def named(self) -> dict[str, str]:
        """The texts of the tokens that have a role."""
        texts = {name: _text(self.roles.get(name)) for name in NAMED_TOKENS}
        return {name: text for name, text in texts.items() if text is not None}

    @property
    def extra(self) -> list[str]:
        """The texts of special tokens without one of these roles."""
        texts: list[str | None] = []
        for name in ("additional_special_tokens", "extra_special_tokens"):
            value = self.roles.get(name)
            items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
            texts += [_text(item) for item in items]
        return [text for text in dict.fromkeys(texts) if text is not None]


def add_tokens(backend: Backend, neighbours: Neighbours, rows: int) -> bool:
    """Give `backend` the tokens that only its neighbours name, and their flags. Returns whether it changed.

    rows: of the model's embedding, 0 where it is not known: a special token without an id in any file takes the next
    row, or is left out where there is none. Raises CheckpointError where a token cannot have the id that is stated.
    """
    known = backend.get_added_tokens_decoder()
    stated = sorted(_stated(neighbours, {entry.content for entry in known.values()}), key=lambda item: item[0])
    entries = [entry for token, entry in stated if repr(known.get(token)) != repr(entry)]
    new = {entry.content for entry in entries if backend.token_to_id(entry.content) is None}
    backend.add_tokens(entries)
    for token, entry in stated:
        if entry.content in new and backend.token_to_id(entry.content) != token:
            raise CheckpointError(
                f"{neighbours.directory}: the added token {entry.content!r:.80} is stated as {token}, but "
                f"{backend.token_to_id(entry.content)} is its place behind tokenizer.json's; save the tokenizer again, "
                "so that tokenizer.json holds it"
            )
    return bool(_add_special(backend, neighbours, rows) or entries)


def _add_special(backend: Backend, neighbours: Neighbours, rows: int) -> int:
    """Tokens that are special by their role, whatever the files say of their flags, and special tokens without a role
    that are no added tokens yet. Returns how many changed.
    """
    known = {entry.content: entry for entry in backend.get_added_tokens_decoder().values()}
    roles = [text for text in neighbours.named.values() if text not in known or not known[text].special]
    texts = dict.fromkeys([*roles, *(text for text in neighbours.extra if text not in known)])
    room = rows - backend.get_vocab_size(with_added_tokens=True)
    wanted = []
    for text in texts:
        if backend.token_to_id(text) is None:
            room -= 1
            if room < 0:
                continue
        flags = {name: getattr(known[text], name) for name in _FLAGS} if text in known else {}
        wanted.append(_entry({**flags, "content": text, "special": True}, "a special token"))
    return int(backend.add_special_tokens(wanted)) if wanted else 0


def _stated(neighbours: Neighbours, known: set[str]) -> Iterator[tuple[int, AddedToken]]:
    """Tokens with the ids that the files state. known: texts that tokenizer.json adds, which added_tokens.json leaves
    as they are; it counts only where there is no `added_tokens_decoder`.
    """
    decoder = neighbours.config.get("added_tokens_decoder", {})
    if not isinstance(decoder, Mapping):
        raise CheckpointError(f"{neighbours.directory}: 'added_tokens_decoder' is not a JSON object")
    seen = set(known)
    for token, value in decoder.items():
        entry = _entry(value, f"{neighbours.directory}: 'added_tokens_decoder' at {token!r:.40}")
        seen.add(entry.content)
        yield _id(token, neighbours.directory), entry
    if "added_tokens_decoder" in neighbours.config:
        return
    special = {*neighbours.named.values(), *neighbours.extra}
    for text, token in neighbours.added_tokens.items():
        if text not in seen:
            flags = {"content": text, "normalized": text not in special, "special": text in special}
            yield _id(token, neighbours.directory), _entry(flags, f"{neighbours.directory}: added_tokens.json")


def _entry(value: object, where: str) -> AddedToken:
    from tokenizers import AddedToken

    text = _text(value)
    flags = {name: value[name] for name in _FLAGS if name in value} if isinstance(value, Mapping) else {}
    if not text or not all(isinstance(flag, bool) for flag in flags.values()):
        raise CheckpointError(f"{where}: {value!r:.120} is not an added token: it needs a 'content', and flags")
    try:
        return AddedToken(text, **flags)
    except (TypeError, UnicodeEncodeError) as error:
        raise CheckpointError(f"{where}: {text!r:.80} cannot be written in UTF-8") from error


def _id(token: object, directory: Path) -> int:
    try:
        value = int(token) if isinstance(token, str) else token
    except ValueError:
        value = None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise CheckpointError(f"{directory}: {token!r:.80} is no id of an added token")
    return value


def _text(value: object) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if value is not None}
