"""Whether a prompt's embedded pieces can be served: by this model, this chunk size, and the request's policies."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.cache.composition import rehearsing
from thrifty.cache.policy import CachePolicy
from thrifty.decoding.strategy import DecodingStrategy
from thrifty.engine.media import PromptMedia
from thrifty.engine.runner import CHUNK
from thrifty.errors import PromptError, RecipeError
from thrifty.models.config.model_config import ModelConfig


def check_media(media: PromptMedia, config: ModelConfig, policies: Sequence[CachePolicy], chunk: int) -> None:
    """Raise PromptError or RecipeError where they cannot, with what could. chunk: the most rows of a step."""
    if media.pieces and media.hidden_size != config.hidden_size:
        raise PromptError(
            f"embeddings have width {media.hidden_size}; this model's hidden size is {config.hidden_size}"
        )
    attending = [layer for layer in config.layers if layer.mixer == "attention"]
    if media.axes == 3 and not all(layer.rope.sections for layer in attending):
        raise PromptError("embeddings bring three positions a row, and this model's ropes take one; give one a row")
    if media.longest_span > chunk:
        fitting = -(-media.longest_span // CHUNK) * CHUNK
        raise PromptError(
            f"{media.longest_span} rows see ahead of each other, and the engine takes {chunk} rows at once; use an "
            f"engine with chunk = {fitting}"
        )
    reader = rehearsing(policies)
    if reader is not None:
        raise RecipeError(
            f"{reader.name} reads the prompt's tokens again, and embedded rows have none, those of a masked-diffusion "
            "model no order; use a policy that reads no tokens, such as snapkv, or a causal model and token ids"
        )
    if media.positions is not None:
        for policy in policies:
            if policy.renumbers:
                raise RecipeError(
                    f"{policy.name} renumbers rows, and this prompt brings positions of its own; turn renumbering off, "
                    "or leave the positions out"
                )


def room_behind(media: PromptMedia, rows: int, context: int) -> int:
    """Tokens that may follow `rows` rows, ≥ 1: neither their number nor their positions may pass the context.

    Raises PromptError where none may.
    """
    room = context - rows - max(0, media.shift)
    if room < 1:
        raise PromptError(
            f"the prompt's positions go up to {rows + media.shift - 1}; the context holds {context}, the answer "
            f"included: use positions up to {context - 2}"
        )
    return room


def check_drafts(strategy: DecodingStrategy) -> None:
    """Raise RecipeError where a strategy drafts: drafts read the prompt's tokens, and embedded rows have none."""
    if strategy.rows > 1:
        raise RecipeError(
            f"{type(strategy).__name__} drafts from the prompt's tokens, and embedded rows have none; use "
            "decoding = [] for this request, or a prompt of token ids"
        )
