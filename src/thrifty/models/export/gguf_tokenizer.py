"""A byte-level tokenizer as the metadata of a GGUF file: the inverse of `models.tokens.gguf`."""

from __future__ import annotations

import json
from typing import Any

from thrifty.errors import CheckpointError
from thrifty.models.export.gguf_writer import Value
from thrifty.models.gguf.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from thrifty.models.tokens.pre import CUTS, DEFAULT
from thrifty.models.tokens.tokenizer import Tokenizer

REMEDY = "export it with --gptq or --awq, which keep tokenizer.json, or run the folder itself"


def tokenizer_fields(tokenizer: Tokenizer, rows: int) -> dict[str, Value]:
    """The fields `tokenizer.*`. rows: of the embedding, which may have more than there are tokens.

    Raises CheckpointError for a tokenizer that is not byte-level, or cuts text in a way that GGUF has no name for.
    """
    definition: dict[str, Any] = json.loads(tokenizer.definition)
    model = definition["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise CheckpointError(f"this model's tokenizer is not byte-level, and only such are written to GGUF: {REMEDY}")
    texts, types = _tokens(definition, rows)
    settings = tokenizer.settings
    fields: dict[str, Value] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre(definition),
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [_merge(entry) for entry in model["merges"]],
        "tokenizer.ggml.add_bos_token": settings.add_bos,
    }
    ids = {"bos": settings.bos_id, "padding": settings.pad_id}
    ids |= dict(zip(("eos", "eot", "eom"), settings.eos_ids, strict=False))
    fields |= {f"tokenizer.ggml.{name}_token_id": token for name, token in ids.items() if token is not None}
    templates = {"": settings.chat_template, ".tool_use": settings.tool_template}
    return fields | {f"tokenizer.chat_template{name}": text for name, text in templates.items() if text is not None}


def _tokens(definition: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and types in the order of the ids; rows of the embedding without a token get names that no text spells."""
    texts, types = [f"[PAD{index}]" for index in range(rows)], [UNUSED] * rows
    for text, index in definition["model"]["vocab"].items():
        texts[index], types[index] = text, NORMAL
    for token in definition.get("added_tokens") or ():
        texts[token["id"]] = token["content"]
        types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    return texts, types


def _merge(entry: Any) -> str:
    return entry if isinstance(entry, str) else " ".join(entry)


def _pre(definition: dict[str, Any]) -> str:
    """The name of the way in which text is cut. Raises CheckpointError where there is none."""
    wanted = _way(definition)
    for name, cut in CUTS.items():
        normalizer = {"type": "NFC"} if cut.compose else None
        step = json.loads(cut.pre_tokenizer().__getstate__())
        if name != DEFAULT and wanted == (_plain(step), normalizer, cut.whole_words):
            return name
    raise CheckpointError(f"this model's tokenizer cuts text into words in a way that GGUF has no name for: {REMEDY}")


def _way(definition: dict[str, Any]) -> tuple[Any, Any, bool]:
    """Pre-tokenizer, normalizer, and whether whole words are looked up first."""
    normalizer = definition.get("normalizer")
    whole = bool(definition["model"].get("ignore_merges"))
    return _plain(definition["pre_tokenizer"]), normalizer, whole


def _plain(step: Any) -> Any:
    """A pre-tokenizer without what changes no token."""
    if isinstance(step, dict):
        return {key: _plain(value) for key, value in step.items() if key not in ("trim_offsets", "invert")}
    return [_plain(value) for value in step] if isinstance(step, list) else step
