"""What a tokenizer is beside its merges: the ids that begin and end text, and the chat template. Plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thrifty.errors import CheckpointError

MAX_TEMPLATE = 1 << 18  # characters of a chat template


@dataclass(frozen=True)
class TokenizerSettings:
    """`eos_ids` are all ids that end an answer. `vocabulary_size` bounds the ids that may be decoded: the model's,
    which can exceed the tokenizer's. `special_tokens` are names that a chat template may use, such as "bos_token".
    `tool_template` is the chat template of conversations with tools, where the model has another one for them.
    `duplicates` are pairs of ids: the first decodes as the second, an earlier token of the same text. `warnings` tell
    people what was guessed or put right in the checkpoint; they are said at every load.
    """

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    add_bos: bool = False
    chat_template: str | None = None
    tool_template: str | None = None
    vocabulary_size: int = 0
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    duplicates: tuple[tuple[int, int], ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; the reverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: object) -> TokenizerSettings:
        """Checked for types and unknown fields. Raises CheckpointError that names the field."""
        if not isinstance(data, Mapping):
            raise CheckpointError("tokenizer settings: not a JSON object")
        checks = {
            "bos_id": _is_optional_id,
            "eos_ids": lambda value: isinstance(value, (list, tuple)) and all(_is_id(item) for item in value),
            "pad_id": _is_optional_id,
            "add_bos": lambda value: isinstance(value, bool),
            "chat_template": lambda value: value is None or isinstance(value, str),
            "tool_template": lambda value: value is None or isinstance(value, str),
            "vocabulary_size": _is_id,
            "special_tokens": lambda value: (
                isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values())
            ),
            "duplicates": lambda value: isinstance(value, (list, tuple)) and all(_is_pair(item) for item in value),
            "warnings": lambda value: isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value),
        }
        for field, value in data.items():
            if field not in checks or not checks[field](value):
                raise CheckpointError(f"tokenizer settings: '{field}' is unknown or has a wrong value: {value!r:.80}")
        lists = {field: tuple(data.get(field, ())) for field in ("eos_ids", "warnings")}
        duplicates = tuple((token, first) for token, first in data.get("duplicates", ()))
        return cls(**{**data, **lists, "duplicates": duplicates})


@dataclass(frozen=True)
class TokenizerDefinition:
    """`definition` is the text of a tokenizer.json."""

    definition: str
    settings: TokenizerSettings


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _is_pair(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(_is_id(item) for item in value)


def _is_optional_id(value: object) -> bool:
    return value is None or _is_id(value)
