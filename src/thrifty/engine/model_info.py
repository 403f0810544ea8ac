"""What the cache must know of a model, from the model."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from thrifty.arrays import Floats, Integers
from thrifty.cache.model_info import ModelInfo, TokenClasses, Widths, no_opening
from thrifty.engine.instruction import instruction
from thrifty.engine.opening import opening
from thrifty.errors import ConfigError, RecipeError
from thrifty.models.head_scores import SavedScores
from thrifty.models.rope import rotation

if TYPE_CHECKING:
    from thrifty.models.config.model_config import ModelConfig
    from thrifty.models.model import Model


def check_cacheable(config: ModelConfig) -> None:
    """Raise ConfigError naming the first layer that the cache does not hold: no runner of an engine can run it."""
    for index, layer in enumerate(config.layers):
        if layer.mixer == "latent":
            raise ConfigError(
                f"layers.{index} mixes by latent attention, which the cache does not hold: it holds attention and "
                "recurrent layers."
            )


def widths_of(config: ModelConfig) -> tuple[Widths, ...]:
    """Those of every layer, as ModelInfo takes them: empty where no layer has its own."""
    own = tuple(Widths(*config.widths(index)) for index in range(len(config.layers)))
    return own if any(layer.has_widths for layer in config.layers) else ()


def model_info(model: Model, chunk: int) -> ModelInfo:
    """chunk: the most rows that are appended at once. Plain fp32 weights get an fp32 cache: the reference's own
    numerics. Raises ConfigError naming a layer that the cache cannot hold.
    """
    config = model.config
    check_cacheable(config)
    plain = all(linear.label == "f32" for linear in model.linears.values())

    def rotate(layer: int, positions: Integers) -> tuple[Floats, Floats]:
        return rotation(config.layers[layer].rope, positions)

    @cache
    def classes() -> TokenClasses:
        if model.tokenizer is None:
            raise RecipeError(
                "a cache technique asked which tokens are special, but this checkpoint has no tokenizer: add its "
                "tokenizer.json, or leave the technique out"
            )
        return TokenClasses(model.tokenizer.special_ids, model.tokenizer.punctuation_ids)

    return ModelInfo(
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        windows=tuple(layer.window for layer in config.layers),
        states=config.states,
        widths=widths_of(config),
        scale=config.query_scale,
        softcap=config.attention_softcap,
        format="f32" if plain else "bf16",
        chunk=chunk,
        version=model.version,
        rotation=rotate,
        classes=classes,
        head_scores=SavedScores(model),
        context=config.context_length,
        instruct=None if model.tokenizer is None else instruction(model.tokenizer),
        opening=no_opening if model.tokenizer is None else opening(model.tokenizer),
    )
