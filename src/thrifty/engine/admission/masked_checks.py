"""What a masked-diffusion model does not do: it is refused by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thrifty.errors import PromptError, RecipeError

if TYPE_CHECKING:
    from thrifty.engine.request import Request
    from thrifty.models.config.model_config import ModelConfig

INSTEAD = "leave it out, or use a causal model"


def check_masked(request: Request) -> None:
    """Raise PromptError where a request asks a masked-diffusion model for what it cannot give: its answers are not
    chosen one after the other, and its prompt is read whole.
    """
    sampling = request.sampling
    asked = {
        "forced": request.forced is not None,
        "logits": request.logits,
        "session": request.session is not None,
        "taps": bool(request.taps),
        "embeddings": request.media is not None,
        "sampling.grammar": sampling.grammar is not None,
        "a penalty of sampling": sampling.penalised,
    }
    for name, given in asked.items():
        if given:
            raise PromptError(f"{name} is set, and this model fills in masks in any order; {INSTEAD}")


def check_kind(name: str, fills_masks: bool, config: ModelConfig) -> None:
    """Raise RecipeError where a strategy is for the other kind of model. name: of the strategy."""
    if fills_masks and config.mask_id is None:
        raise RecipeError(
            f"decoding technique {name!r} fills in masks, and this {config.family} model has none: use a "
            "masked-diffusion model, such as letters-diffusion, or decode with 'autoregressive'"
        )
    if not fills_masks and config.mask_id is not None:
        raise RecipeError(
            f"decoding technique {name!r} predicts one token after the other, and this {config.family} model fills in "
            "masks: use 'dimple', 'lavida' or 'daedal'"
        )
