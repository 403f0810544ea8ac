"""What a compressed model is, as `report.json` tells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from thrifty.arrays import Floats
from thrifty.formats.linear import PackedLinear
from thrifty.models.model import Model, TensorReport
from thrifty.version import VERSION

RUN = "run"  # the part of the report that differs between two runs on the same question


def report(
    model: Model,
    source: Mapping[str, Any],
    recipe: Sequence[Mapping[str, Any]],
    calibration: str | None,
    original: Mapping[str, float | None],
) -> dict[str, Any]:
    """JSON-ready. source: what the model was before. calibration: the label of the texts that techniques saw.

    bits_per_weight: 8 · bytes / weights, scales, tables, masks and padding included; of `layers` without embedding and
    logits. error: relative root-mean-square difference from what the last technique on that tensor was given.
    error_from_original: from what the first was given, the weights of `source` (see `origin`), by `original`; null
    where parts were left out, so that there is nothing to hold it against.
    """
    tensors = [{**entry, "error_from_original": original.get(entry["name"], 0.0)} for entry in _tensors(model)]
    inside = [entry for entry in tensors if entry["name"].startswith("layers.") and entry["format"] != "norm"]
    return {
        "thrifty": VERSION,
        "source": dict(source),
        "recipe": [dict(table) for table in recipe],
        "calibration": calibration,
        "version": model.version,
        "totals": {
            "bytes": sum(entry["bytes"] for entry in tensors),
            "weights": sum(entry["weights"] for entry in tensors),
            "bits_per_weight": bits(tensors),
            "layers_bits_per_weight": bits(inside),
            "layers_error": _error(inside, "error"),
            "layers_error_from_original": _error(inside, "error_from_original"),
        },
        "tensors": tensors,
    }


def bits(tensors: Sequence[Mapping[str, Any]]) -> float:
    """Bits per weight of some tensors together."""
    weights = sum(entry["weights"] for entry in tensors)
    return round(8 * sum(entry["bytes"] for entry in tensors) / weights, 4) if weights else 0.0


def _tensors(model: Model) -> Iterator[dict[str, Any]]:
    told = {entry.name: entry for entry in model.report}
    for name, linear in model.linears.items():
        yield _tensor(name, linear, told.get(name))
    for name, norm in model.norms.items():
        yield _tensor(name, norm, told.get(name))


def _tensor(name: str, value: PackedLinear | Floats, told: TensorReport | None) -> dict[str, Any]:
    if isinstance(value, PackedLinear):
        weights, label = value.out_features * value.in_features, value.label
    else:
        weights, label = value.size, "norm"
    return {
        "name": name,
        "format": label,
        "bytes": value.nbytes,
        "weights": weights,
        "bits_per_weight": round(8 * value.nbytes / weights, 4),
        "error": 0.0 if told is None else told.error,
        "largest_error": 0.0 if told is None else told.largest_error,
    }


def _error(tensors: Sequence[Mapping[str, Any]], which: str) -> float | None:
    """Root-mean-square of the tensors' relative errors, each by its weights; None where one is not known."""
    if any(entry[which] is None for entry in tensors):
        return None
    weights = sum(entry["weights"] for entry in tensors)
    total = sum(entry["weights"] * entry[which] ** 2 for entry in tensors)
    return float((total / weights) ** 0.5) if weights else 0.0
