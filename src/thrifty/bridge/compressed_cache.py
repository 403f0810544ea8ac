"""`compressed_cache`: a model of the transformers library attends through Thrifty's cache, inside a `with`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from thrifty.bridge.facts import model_info, text_config
from thrifty.bridge.policies import policies_of
from thrifty.errors import ConfigError
from thrifty.extras import require
from thrifty.recipe import Recipe

if TYPE_CHECKING:
    from thrifty.bridge.past import Past

PREFIX = "thrifty-"


@contextmanager
def compressed_cache(
    model: Any, recipe: Recipe | Mapping[str, Any] | str, *, memory: int | str | None = None
) -> Iterator[Past]:
    """A cache to pass as `past_key_values=` to the model's `forward` or `generate`, one batch of conversations long.

    model: a decoder of transformers (version 5) whose attention goes through `AttentionInterface`. recipe: a Recipe,
    its tables, or the path of its TOML file; cache policies alone. memory: a budget for all that the cache holds, in
    bytes or as "150MB". Within the block every forward pass of the model has to use the cache; behind it the model's
    attention is as it was, whatever was raised.

    Raises RecipeError for techniques that need the engine (weights, decoding, policies that run the model again, rotate
    keys, select pages or act within the prompt), ConfigError for models that the cache cannot hold, MissingExtra where
    transformers is not installed. Beams, assisted generation, training and padding on the right raise where met.
    """
    require("transformers", "bridge", "the bridge")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from thrifty.bridge.past import Past

    config = text_config(model)
    before = config._attn_implementation
    if str(before).startswith(PREFIX):
        raise ConfigError("the model is inside another compressed_cache; leave that one first")
    facts = model_info(model)
    past = Past(model, facts, policies_of(_recipe(recipe), facts), memory)
    name = next(own for own in map(f"{PREFIX}{{}}".format, itertools.count()) if own not in ALL_ATTENTION_FUNCTIONS)
    hooks = past.hooks()
    try:
        ALL_ATTENTION_FUNCTIONS[name] = past.attend
        config._attn_implementation = name
        yield past
    finally:
        config._attn_implementation = before
        ALL_ATTENTION_FUNCTIONS.pop(name, None)
        for hook in hooks:
            hook.remove()
        past.close()


def _recipe(given: Recipe | Mapping[str, Any] | str) -> Recipe:
    if isinstance(given, Recipe):
        return given
    return Recipe.from_document(dict(given)) if isinstance(given, Mapping) else Recipe.load(given)
