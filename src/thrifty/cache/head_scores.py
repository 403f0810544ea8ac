"""Scores of a model's heads, as policies read them: checked, and reduced from query heads to KV heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thrifty.errors import RecipeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from thrifty.arrays import Floats
    from thrifty.cache.model_info import ModelInfo

    Doubles = npt.NDArray[np.float64]


def check_scores(name: str, model: ModelInfo, kind: str) -> None:
    """Raises RecipeError, with the command, where the model has no scores of this kind, one a query head of every
    global layer. name: of the technique that needs them."""
    scores = model.head_scores.get(kind)
    if scores is None:
        raise RecipeError(
            f"cache technique '{name}' needs the scores of this model's heads, and there are none of kind "
            f"'{kind}': run `thrifty heads MODEL --kind {kind}` once"
        )
    expected = (len(model.policy_layers), model.most_heads)
    if tuple(scores.shape) != expected:
        raise RecipeError(
            f"cache technique '{name}': the scores of heads have shape {list(scores.shape)}, this model needs "
            f"{list(expected)}: run `thrifty heads MODEL --kind {kind}` again"
        )


def by_kv_head(model: ModelInfo, kind: str, how: str) -> list[Doubles]:
    """The saved scores of a kind by global layer, fp64 [KV heads]; see `reduced`."""
    return reduced(model.head_scores[kind], model, how)


def reduced(scores: Floats, model: ModelInfo, how: str) -> list[Doubles]:
    """By global layer fp64 [KV heads], from scores of query heads [global layers, most heads]. how: "max" or "mean" of
    a KV head's query heads."""
    groups = []
    for own, layer in zip(scores.astype("float64"), model.policy_layers, strict=True):
        widths = model.of(layer)
        grouped = own[: widths.heads].reshape(widths.kv_heads, widths.group)
        groups.append(grouped.max(axis=1) if how == "max" else grouped.mean(axis=1))
    return groups
