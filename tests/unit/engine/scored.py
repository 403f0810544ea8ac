"""Head scores for a tiny model, as `thrifty heads` would save them."""

from __future__ import annotations

from thrifty.models.head_scores import HeadScores, checkpoint_version, save
from thrifty.models.model import Model


def score(model: Model, kind: str = "r") -> None:
    """Scores of which each head has another, in the cache directory."""
    layers = tuple(index for index, layer in enumerate(model.config.layers) if layer.keeps_all)
    rows = tuple(
        tuple(1.0 + (3 * rank + head) ** 2 for head in range(model.config.heads)) for rank, _ in enumerate(layers)
    )
    version = checkpoint_version(model)
    scores = HeadScores(
        kind=kind, version=version, layers=layers, scores=rows, asked=1, used=1, settings={}, date="2026-01-01"
    )
    save(model, scores)
