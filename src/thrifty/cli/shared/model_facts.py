"""What a checkpoint is, for people and programs: `thrifty models MODEL`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import output
from thrifty.cli.shared.layout import Column
from thrifty.errors import PromptError

if TYPE_CHECKING:
    from thrifty.evaluation.roofline.sizes import ModelSizes
    from thrifty.models.config.model_config import ModelConfig
    from thrifty.models.inspection import FileFacts, TypeFacts
    from thrifty.recipe import Recipe

CONTEXTS = (2048, 8192)  # beside the model's own
LISTED = 8  # special tokens; --json has all
SMALLEST = {
    "weights": [{"technique": "rtn", "bits": 4, "group": 128, "embedding_bits": 4}],
    "cache": [{"technique": "kivi", "bits": 2}],
}
"""About the least that `fit` offers with every token kept."""

DRAFTS = "What {0} takes, which drafts for it, is not in these figures: its weights, and its cache of every sequence."
EXACT_BUDGETS = 100 * 10**6  # bytes; of smaller ones the example tells kB


def show(model: str, recipe: Recipe, contexts: Sequence[int] | None, as_json: bool) -> None:
    """All facts. contexts: None for the usual ones. Raises PromptError for one that the model does not have."""
    from thrifty.models.inspection import inspect

    with output.waiting(f"reading {model}"):
        facts = inspect(model)
        told = document(model, facts, recipe, contexts)
    if as_json:
        output.json_line(told)
        return
    output.card("", list(_lines(facts)))
    output.table("tensors", _TYPES, [_type_row(entry) for entry in facts.types])
    output.table(f"memory, {recipe.label()} (workspace of a few MB beside)", _MEMORY, [*map(_row, told["memory"])])
    if told["drafts"]:
        output.say(DRAFTS.format(" and ".join(told["drafts"])))
    for line in _fit_lines(told["fit"]):
        output.say(line)


def document(model: str, facts: FileFacts, recipe: Recipe, contexts: Sequence[int] | None = None) -> dict[str, Any]:
    """Everything, JSON-ready."""
    from thrifty.evaluation.roofline import sizes

    shipped = sizes.of_file(facts.config, facts.tensors)
    limit = facts.config.context_length
    asked = contexts or tuple(sorted({min(entry, limit) for entry in (*CONTEXTS, limit)}))
    if max(asked) > limit:
        raise PromptError(f"context {max(asked)} is beyond what this model was made for; use 1 to {limit}")
    return {
        "model": model,
        "path": str(facts.path),
        "format": facts.kind,
        "architecture": facts.architecture,
        "title": facts.title,
        "files": facts.files,
        "bytes": facts.nbytes,
        "parameters": facts.parameters,
        "sizes": _sizes(facts.config),
        "tensors": [_type_document(entry) for entry in facts.types],
        "tokenizer": _tokenizer(facts),
        "copy": None if facts.copy is None else {"path": str(facts.copy.path), "bytes": facts.copy.nbytes},
        "recipe": recipe.label(),
        "drafts": list(recipe.drafts),
        "memory": [_need(shipped, recipe, context) for context in asked],
        "fit": _fit(model, shipped, asked[-1] if contexts else min(8192, limit)),
    }


def _sizes(config: ModelConfig) -> dict[str, Any]:
    experts = config.experts
    windows = sorted({layer.window for layer in config.layers if layer.window is not None})
    return {
        "layers": len(config.layers),
        "hidden": config.hidden_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate": config.intermediate_size,
        "layers_of_own_widths": sum(own.has_widths or own.intermediate_size is not None for own in config.layers),
        "vocabulary": config.vocabulary_size,
        "context": config.context_length,
        "windows": windows,
        "windowed_layers": sum(layer.window is not None for layer in config.layers),
        "recurrent_layers": sum(layer.recurrent is not None for layer in config.layers),
        "experts": None if experts is None else {"count": experts.count, "active": experts.active},
        "tied_embeddings": config.tied_embeddings,
    }


def _type_document(facts: TypeFacts) -> dict[str, Any]:
    return {
        "type": facts.type,
        "tensors": facts.tensors,
        "parameters": facts.parameters,
        "bytes": facts.nbytes,
        "stored": list(facts.stored),
        "exact": facts.exact,
        "error": facts.error,
        "largest_error": facts.largest,
        "looked_at": facts.looked,
    }


def _tokenizer(facts: FileFacts) -> dict[str, Any] | None:
    settings = facts.settings
    if settings is None:
        return None
    return {
        "vocabulary": settings.vocabulary_size,
        "bos_id": settings.bos_id,
        "adds_bos": settings.add_bos,
        "end_ids": sorted({*settings.eos_ids, *facts.config.eos_ids}),
        "pad_id": settings.pad_id,
        "special_tokens": {str(token): text for token, text in facts.special.items()},
        "chat_template": settings.chat_template,
        "tool_template": settings.tool_template,
        "warnings": list(settings.warnings),
    }


def _need(shipped: ModelSizes, recipe: Recipe, context: int) -> dict[str, int]:
    """Bytes of weights and of one sequence's cache at its peak."""
    from thrifty.evaluation.roofline.cache_reads import model_info, peak_bytes
    from thrifty.frontier.predict import as_stored

    stored = as_stored(shipped, recipe.techniques("weights"))
    cache = peak_bytes(model_info(stored), recipe.techniques("cache"), context)
    return {"context": context, "weights": stored.nbytes, "cache": cache, "together": stored.nbytes + cache}


def _fit(model: str, shipped: ModelSizes, context: int) -> dict[str, Any]:
    """What `fit` would be asked at a context: between which budgets it has a choice to make. They hold the workspace
    too, which is estimated.
    """
    from thrifty.evaluation.roofline.workspace import workspace
    from thrifty.recipe import Recipe

    beside = workspace(shipped.config)
    whole = _need(shipped, Recipe(), context)["together"] + beside
    hidden = 4 * context * shipped.config.hidden_size  # of a prompt that is compressed when it is complete
    smallest = Recipe.from_document(SMALLEST)
    both = _need(shipped, smallest, context)["together"] + hidden
    rounded = _need(shipped, Recipe(weights=smallest.weights), context)["together"]
    least = min(whole, both + beside, rounded + beside)
    middle = (whole + least) / 2
    budget = f"{middle / 1e6:.0f}MB" if middle >= EXACT_BUDGETS else f"{middle / 1e3:.0f}kB"
    words = ["thrifty", "fit", model, "--memory", budget, "--context", str(context)]
    return {
        "context": context,
        "workspace": beside,
        "as_shipped": whole,
        "smallest": least,
        "example": shlex.join(words),
    }


def _fit_lines(fit: dict[str, Any]) -> Iterator[str]:
    whole, least = output.megabytes(fit["as_shipped"]), output.megabytes(fit["smallest"])
    yield (
        f"With its workspace it takes {whole} as it is at {fit['context']} tokens; `thrifty fit` looks for what loses "
        f"least between about {least} and that, such as:"
    )
    yield f"  {fit['example']}"


def _lines(facts: FileFacts) -> Iterator[tuple[str, str]]:
    config, sizes = facts.config, _sizes(facts.config)
    yield "file", f"{facts.path} ({facts.kind}, {facts.files} file{'s' * (facts.files > 1)}, {_mb(facts.nbytes)})"
    yield "model", f"{facts.title}; architecture {facts.architecture}, {facts.parameters / 1e6:,.1f} M parameters"
    layers = f"{sizes['layers']} layers"
    if sizes["windowed_layers"]:
        windows = ", ".join(map(str, sizes["windows"]))
        layers += f" ({sizes['windowed_layers']} of them see a window of {windows} tokens)"
    if sizes["recurrent_layers"]:
        layers += f" ({sizes['recurrent_layers']} of them are recurrent)"
    if sizes["layers_of_own_widths"]:
        layers += f" ({sizes['layers_of_own_widths']} of them have heads or MLP sizes of their own)"
    heads = f"{config.heads} query and {config.kv_heads} KV heads of {config.head_dim}"
    mlp = f"MLP {config.intermediate_size}{_experts(sizes)}"
    yield "sizes", f"{layers}, hidden {config.hidden_size}, {heads}, {mlp}"
    head = "tied to the embedding" if config.tied_embeddings else "a matrix of their own"
    yield "vocabulary", f"{config.vocabulary_size} tokens; logits: {head}"
    yield "context", f"{config.context_length} tokens"
    yield from _tokenizer_lines(_tokenizer(facts))
    yield "converted copy", _copy(facts)


def _copy(facts: FileFacts) -> str:
    from thrifty.models.inspection import COMPRESSED

    if facts.kind == COMPRESSED:
        return "none is needed: the file is mapped as it is"
    if facts.copy is None:
        return "none yet; the first load makes it"
    return f"{facts.copy.path} ({_mb(facts.copy.nbytes)})"


def _experts(sizes: dict[str, Any]) -> str:
    experts = sizes["experts"]
    return "" if experts is None else f", {experts['count']} experts, {experts['active']} of them a token"


def _tokenizer_lines(tokenizer: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if tokenizer is None:
        yield "tokenizer", "none: it takes and gives token ids only"
        return
    special = tokenizer["special_tokens"]
    names = list(special.values())
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    begins = "puts none before a text"
    if tokenizer["adds_bos"]:
        begins = f"puts {_token(special, tokenizer['bos_id'])} before a text"
    ends = ", ".join(_token(special, token) for token in tokenizer["end_ids"]) or "none"
    yield "special tokens", f"{', '.join(names[:LISTED])}{more}" if names else "none"
    yield "begin and end", f"{begins}; an answer ends with {ends}"
    template = tokenizer["chat_template"]
    if template is None:
        yield "chat template", "none: it goes on with plain text"
    else:
        tools = "takes tools" if tokenizer["tool_template"] or "tools" in template else "takes no tools"
        yield "chat template", f"{len(template)} characters, {tools}; --json prints it"
    for warning in tokenizer["warnings"]:
        yield "warning", warning


def _token(special: dict[str, str], token: int) -> str:
    text = special.get(str(token))
    return str(token) if text is None else f"{text} ({token})"


_TYPES = (
    Column("type", number=False),
    Column("tensors", rank=3),
    Column("M parameters", rank=3),
    Column("MB", rank=1),
    Column("loaded as", number=False, rank=2),
    Column("values", number=False, rank=1),
)
_MEMORY = (Column("context, tokens"), Column("weights MB", rank=2), Column("cache MB", rank=1), Column("together MB"))


def _type_row(facts: TypeFacts) -> tuple[str, ...]:
    values = "kept exactly"
    if not facts.exact:
        values = (
            f"rounded: {facts.error:.2e} of their size (mean square), at most {facts.largest:.2e}; by {facts.looked}"
        )
    return (
        facts.type,
        str(facts.tensors),
        f"{facts.parameters / 1e6:,.1f}",
        f"{facts.nbytes / 1e6:,.1f}",
        ", ".join(facts.stored),
        values,
    )


def _row(need: dict[str, int]) -> tuple[str, ...]:
    return (str(need["context"]), *(f"{need[name] / 1e6:,.1f}" for name in ("weights", "cache", "together")))


def _mb(count: int) -> str:
    return output.megabytes(count)
