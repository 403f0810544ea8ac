"""What compressing a model takes: steps, and bytes on the disk."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.errors import RecipeError
from thrifty.models.model import Model
from thrifty.weights.expert_pairs import ExpertPairs
from thrifty.weights.group_technique import GroupTechnique
from thrifty.weights.groups import groups
from thrifty.weights.scaled_rounding import ScaledRounding
from thrifty.weights.sizes import Predictor
from thrifty.weights.structure import linears
from thrifty.weights.technique import Technique, WeightTechnique


def steps(model: Model, technique: Technique) -> int:
    """How often a technique tells that something is done, on this model: its units, and its end."""
    if isinstance(technique, ScaledRounding):
        return 1 + len(technique.chosen_layers(model))
    if isinstance(technique, GroupTechnique):
        return 1 + sum(technique.selects(group) for group in groups(model))
    if isinstance(technique, ExpertPairs):
        return 1 + len(list(technique.merged_layers(model)))
    return 1 + technique.units(model)


def predicted_bytes(model: Model, techniques: Sequence[Technique]) -> int | None:
    """Bytes of the compressed weights; None where they are not known before the techniques ran."""
    try:
        predictor = Predictor(techniques)
    except RecipeError:
        return None
    total = model.nbytes
    for name, linear in model.linears.items():
        stored = predictor.stored(name, linear.out_features, linear.in_features, bias=linear.bias is not None)
        if stored is not None:
            total += stored[0] - linear.nbytes
    return total


def disk_bytes(model: Model, techniques: Sequence[Technique]) -> int:
    """About the bytes that are on the disk at the end, before what was needed on the way goes: the result, and what
    every technique made. Of a technique that changes more than single linears, as much as its linears in fp32; of one
    that stores them in the end, what it stores.
    """
    result = predicted_bytes(model, techniques)
    inside = [linear for linear in linears(model) if linear.layer is not None]
    fp32 = sum(4 * info.linear.out_features * info.linear.in_features for info in inside)
    total = model.nbytes if result is None else result
    for own in techniques:
        technique = own.storage() if isinstance(own, ScaledRounding) else own
        known = predicted_bytes(model, [technique])
        if known is None:
            total += fp32 if not isinstance(technique, WeightTechnique) else model.nbytes
        else:
            total += known - _untouched(model, technique)
    return total


def _untouched(model: Model, technique: Technique) -> int:
    """Bytes of what a technique leaves as it is: they are not written for it."""
    assert isinstance(technique, WeightTechnique), "its bytes are known"
    kept = sum(info.linear.nbytes for info in linears(model) if not technique.selects(info))
    return kept + sum(norm.nbytes for norm in model.norms.values())
