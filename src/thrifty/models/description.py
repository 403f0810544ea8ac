"""All of a checkpoint but its weights, in the cache: config, tokenizer settings, and the text of its tokenizer.json.

It has a key of its own, so that an edited chat template costs no conversion of weights.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import CheckpointError
from thrifty.models.config.model_config import ModelConfig, as_dict, from_dict
from thrifty.models.source import Source
from thrifty.models.store.cache_entry import CacheEntry, Contents, open_entry, write_file
from thrifty.models.store.checksums import Section
from thrifty.models.tokens.settings import TokenizerDefinition, TokenizerSettings

KIND = "descriptions"
LAYOUT = 4
DEFINITION = "tokenizer.json"


@dataclass(frozen=True)
class Description:
    """settings: None for a checkpoint without a tokenizer."""

    entry: CacheEntry
    config: ModelConfig
    settings: TokenizerSettings | None

    def definition(self) -> str:
        """The text of the tokenizer.json. Raises CheckpointError where the file is damaged."""
        path = self.entry.path / DEFINITION
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        if hashlib.sha256(raw).hexdigest() != self.entry.body["definition"]:
            raise CheckpointError(f"{path}: {DEFINITION} is damaged; load the model again to make it anew")
        return raw.decode("utf-8")

    @property
    def tokenizer(self) -> TokenizerDefinition | None:
        """The tokenizer; its definition is read when this is called."""
        return None if self.settings is None else TokenizerDefinition(self.definition(), self.settings)


def open_description(key: str, make_source: Callable[[], Source]) -> Description:
    """The description for a content key, read now from `make_source()` where there is none yet; see `open_entry`."""
    entry = open_entry(KIND, key, LAYOUT, lambda directory: _write(directory, make_source()))
    settings: Any = entry.body["tokenizer"]
    parsed = None if settings is None else TokenizerSettings.from_json(settings)
    return Description(entry, from_dict(entry.body["config"]), parsed)


def _write(directory: Path, source: Source) -> Contents:
    tokenizer = source.tokenizer
    definition = b"" if tokenizer is None else tokenizer.definition.encode("utf-8")
    write_file(directory / DEFINITION, definition)
    body = {
        "config": as_dict(source.config),
        "tokenizer": None if tokenizer is None else tokenizer.settings.to_json(),
        "definition": hashlib.sha256(definition).hexdigest(),
    }
    return Contents(body, [Section(DEFINITION, DEFINITION, 0, len(definition), zlib.crc32(definition))])
