"""The tokenizer of a Hugging Face directory: tokenizer.json, and what its neighbours say of tokens, ends, templates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from thrifty.errors import CheckpointError
from thrifty.models.checked_text import read_text
from thrifty.models.config.fields import without_fraction
from thrifty.models.huggingface.safetensors_file import read_json
from thrifty.models.tokens.added import Neighbours, add_tokens
from thrifty.models.tokens.backend import decoder_of, load_backend
from thrifty.models.tokens.ends import ENDS_OF_TURN
from thrifty.models.tokens.merges import in_lines
from thrifty.models.tokens.pieces import makers
from thrifty.models.tokens.settings import MAX_TEMPLATE, TokenizerDefinition, TokenizerSettings

JSON_LIMIT = 1 << 28


def read_tokenizer(directory: Path) -> TokenizerDefinition | None:
    """The tokenizer of a directory, or None where it has no tokenizer.json.

    Raises CheckpointError naming the file and field for one that is not valid or not supported.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    data = read_json(path, JSON_LIMIT)
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path}: not a JSON object")
    definition = read_text(path)
    backend = load_backend(definition)
    makers(decoder_of(backend))
    tables = [_table(directory / name) for name in ("tokenizer_config.json", "generation_config.json", "config.json")]
    beside = [_table(directory / name) for name in ("special_tokens_map.json", "added_tokens.json")]
    neighbours = Neighbours(directory, tables[0], *beside)
    if add_tokens(backend, neighbours, _vocabulary_size(tables[2], 0)):
        definition = backend.to_str()
    named = neighbours.named
    bos = _id(backend, named.get("bos_token"), tables[1:], "bos_token_id")
    pad = _id(backend, named.get("pad_token"), tables[1:], "pad_token_id")
    template, warnings = _template(directory, tables[0])
    settings = TokenizerSettings(
        bos_id=bos,
        eos_ids=_ends(backend, named.get("eos_token"), tables[1:]),
        pad_id=pad,
        add_bos=_adds_bos(backend, tables[0], bos),
        chat_template=template,
        tool_template=_tool_template(directory, tables[0]),
        vocabulary_size=_vocabulary_size(tables[2], backend.get_vocab_size(with_added_tokens=True)),
        special_tokens=named,
        warnings=warnings,
    )
    return TokenizerDefinition(in_lines(definition), settings)


def _table(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    data = read_json(path)
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path}: not a JSON object")
    return data


def _id(backend: Any, text: str | None, tables: list[Mapping[str, Any]], field: str) -> int | None:
    if text is not None and (token := backend.token_to_id(text)) is not None:
        return int(token)
    return next(_integers(tables, field), None)


def _ends(backend: Any, text: str | None, tables: list[Mapping[str, Any]]) -> tuple[int, ...]:
    """All ids that end an answer: the tokenizer's, the generation config's and the known ends of a turn."""
    special = {entry.content for entry in backend.get_added_tokens_decoder().values()}
    texts = [text, *(end for end in ENDS_OF_TURN if end in special)]
    named = [backend.token_to_id(item) for item in texts if item is not None]
    ids = [*(token for token in named if token is not None), *_integers(tables, "eos_token_id")]
    return tuple(dict.fromkeys(ids))


def _integers(tables: list[Mapping[str, Any]], field: str) -> Iterator[int]:
    for table in tables:
        value = table.get(field)
        for item in map(without_fraction, value if isinstance(value, list) else [value]):
            if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 2**31:
                yield item


def _adds_bos(backend: Any, table: Mapping[str, Any], bos: int | None) -> bool:
    """As the config says; without a word there, as the tokenizer's own post-processor does."""
    if bos is None:
        return False
    stated = table.get("add_bos_token")
    if isinstance(stated, bool):
        return stated
    return bool(backend.encode("a", add_special_tokens=True).ids[:1] == [bos])


def _template(directory: Path, table: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The chat template, None where there is none or a blank one, and a warning where only others are there."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return _not_blank(_read_template(path)), ()
    value = _named_templates(table.get("chat_template"))
    if isinstance(value, Mapping):
        chosen = value.get("default")
        names = ", ".join(f"'{name:.40}'" for name in list(value)[:8])
        what = f"'chat_template' of tokenizer_config.json has no 'default' among {names or 'none'}"
    else:
        chosen, what = value, f"'chat_template' of tokenizer_config.json is {value!r:.40}, no text"
    if isinstance(chosen, str):
        return _not_blank(chosen), ()
    warning = f"{what}, so the model has no chat template; write the one to use into chat_template.jinja beside it."
    return None, () if value is None else (warning,)


def _tool_template(directory: Path, table: Mapping[str, Any]) -> str | None:
    """The chat template that `transformers` takes for conversations with tools, None where there is none of its own."""
    path = directory / "additional_chat_templates" / "tool_use.jinja"
    if path.is_file():
        return _not_blank(_read_template(path))
    value = _named_templates(table.get("chat_template"))
    chosen = value.get("tool_use") if isinstance(value, Mapping) else None
    return _not_blank(chosen) if isinstance(chosen, str) else None


def _named_templates(value: Any) -> Any:
    """A list of named templates as a mapping from name to text; all else as it is."""
    if not isinstance(value, list):
        return value
    return {str(item.get("name")): item.get("template") for item in value if isinstance(item, Mapping)}


def _read_template(path: Path) -> str:
    if path.stat().st_size > 4 * MAX_TEMPLATE:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes is too long for a chat template")
    return read_text(path)


def _not_blank(template: str) -> str | None:
    return template if template.strip() else None


def _vocabulary_size(config: Mapping[str, Any], tokens: int) -> int:
    inner = config.get("text_config")
    table = inner if isinstance(inner, Mapping) and "vocab_size" in inner else config
    value = next(_integers([table], "vocab_size"), 0)
    return max(min(value, 1 << 24), tokens)
