"""Which techniques a model of `thrifty compress` has been through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty import registry
from thrifty.errors import RecipeError
from thrifty.models.model import Model
from thrifty.weights.technique import Technique


def check_new(model: Model, techniques: Sequence[Technique]) -> None:
    """Raise RecipeError where these techniques were applied to the model already, in this order and one after the
    other. Options count by their values: a default that is written down is the same as one that is not.
    """
    before, asked = [_built(table) for table in model.applied], list(techniques)
    if asked and any(before[start : start + len(asked)] == asked for start in range(len(before))):
        raise RecipeError(
            f"{model.path} was compressed with these techniques already: run it as it is, without [[weights]]"
        )


def _built(table: Mapping[str, Any]) -> object:
    """The technique of a table; None where this version of Thrifty cannot build it."""
    try:
        return registry.build("weights", table)
    except RecipeError:
        return None
