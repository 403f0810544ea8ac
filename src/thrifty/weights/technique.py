"""The stage of weight compression: what a technique writes, and what is done for it."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from thrifty.card import Card
from thrifty.errors import RecipeError, nearest
from thrifty.formats.linear import PackedLinear
from thrifty.models.model import Model, TensorReport
from thrifty.storage.process import let_go
from thrifty.weights.calibration import Activations, Calibration, CalibrationSet, default_calibration, seen
from thrifty.weights.structure import LinearInfo, linears

OUTSIDE = ("embedding", "head")  # the ends of the model, whose precision is an option of its own
COMPARED = 1 << 19  # values at a time, fp64
KEPT = ("router", "shared_gate")  # tiny, and an expert chosen wrongly costs more than their bytes


@dataclass(frozen=True, kw_only=True)
class WeightTechnique(ABC):
    """One method of storing linear layers in fewer bytes. A technique writes `compress`; options are fields.

    layers: the decoder layers it acts on, all by default. skip: names to leave alone, with * and ?, such as
    "*.down". Embedding, logits and expert routers are left alone unless the technique says otherwise in
    `covers`.
    """

    needs_calibration: ClassVar[bool] = False
    name: ClassVar[str]
    card: ClassVar[Card]

    layers: tuple[int, ...] | None = None
    skip: tuple[str, ...] = ()

    @abstractmethod
    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        """The layer in its new format, same shape and bias; `linear` stays as it is.

        calibration: given where `needs_calibration` is true, else None.
        """

    @staticmethod
    def prepare(model: Model, techniques: Sequence[WeightTechnique], in_place: bool = False) -> Model:
        """The function `prepare`, for rooms below this one that hold techniques and may not import it."""
        return prepare(model, techniques, in_place=in_place)

    def covers(self, linear: LinearInfo) -> bool:
        """Whether this technique is meant for the layer, before `layers` and `skip`."""
        return linear.role not in OUTSIDE + KEPT

    def selects(self, linear: LinearInfo) -> bool:
        """Whether `apply` compresses the layer."""
        if self.layers is not None and linear.layer is not None and linear.layer not in self.layers:
            return False
        return self.covers(linear) and not any(fnmatch.fnmatch(linear.name, pattern) for pattern in self.skip)

    def check(self, model: Model) -> None:
        """Raise RecipeError where `layers` or `skip` name something that this model does not have."""
        count = len(model.config.layers)
        for layer in self.layers or ():
            if not 0 <= layer < count:
                raise RecipeError(f"technique '{self.name}': layer {layer} is outside 0..{count - 1}")
        names = list(model.linears)
        for pattern in self.skip:
            if not fnmatch.filter(names, pattern):
                raise RecipeError(
                    f"technique '{self.name}': skip '{pattern}' matches no linear layer. {nearest(pattern, names)}"
                )


def prepare(
    model: Model,
    techniques: Sequence[WeightTechnique],
    *,
    calibration: CalibrationSet | None = None,
    in_place: bool = False,
    before: Callable[[], None] | None = None,
    errors: bool = True,
) -> Model:
    """The model with the techniques applied in order, each to the result of those before; itself without any.

    calibration: what techniques that need it see; None: the text that ships with the package. The given model stays as
    it is and shares the untouched tensors, unless `in_place`: then its layers are exchanged one at a time, so that the
    peak is the model plus one layer. What was compressed and is mapped from a file leaves the process meanwhile, and
    comes back where it is used. before: called before every linear; what it raises ends the work. errors: whether the
    report tells how far each part is from what it was, which takes as long as rounding it; without, it tells nothing of
    them. Raises RecipeError for options that do not fit the model, or where a technique needs calibration and the model
    has no tokenizer for the text.
    """
    for technique in techniques:
        technique.check(model)
    if calibration is None and any(technique.needs_calibration for technique in techniques):
        calibration = default_calibration(model)
    if techniques and not in_place:
        model = replace(model, linears=dict(model.linears), report=list(model.report))
    for technique in techniques:
        if technique.needs_calibration and calibration is not None:
            # Anew for each: one before may have changed what the first layer sees.
            _apply(model, technique, seen(model, calibration, f"technique '{technique.name}'"), before, errors)
            model.version += f"[{calibration.label}]"
        else:
            _apply(model, technique, None, before, errors)
    return model


def _apply(
    model: Model,
    technique: WeightTechnique,
    calibration: Calibration | None,
    before: Callable[[], None] | None,
    errors: bool,
) -> None:
    reports = {entry.name: entry for entry in model.report}
    for linear in linears(model):
        if not technique.selects(linear):
            continue
        if before is not None:
            before()
        activations = None if calibration is None else calibration(linear)
        packed = technique.compress(linear, activations)
        model.replace(linear.name, packed)
        held = reports.pop(linear.name, None)
        if errors:
            entry = _report(linear, packed)
            reports[linear.name] = entry if held is None else replace(entry, origin=held.origin)
        let_go(linear.linear.state().values())
    model.report[:] = _in_order(reports, model.report)
    # Keys and values of the uncompressed model are worthless for this one.
    model.version = f"{model.version}+{technique.name}{_options(technique)}"


def _in_order(reports: dict[str, TensorReport], before: Sequence[TensorReport]) -> list[TensorReport]:
    """Those that were there before in their places, new ones behind them."""
    first = [entry.name for entry in before if entry.name in reports]
    return [reports[name] for name in dict.fromkeys([*first, *reports])]


def _report(before: LinearInfo, after: PackedLinear) -> TensorReport:
    """Both errors are against the layer that the technique was given, measured some rows at a time."""
    difference = power = largest = 0.0
    rows = max(16, COMPARED // after.in_features // 16 * 16)
    for start in range(0, after.out_features, rows):
        stop = min(start + rows, after.out_features)
        reference = before.linear.tile(start, stop).astype(np.float64)
        errors = np.abs(after.tile(start, stop) - reference)
        difference += float(np.square(errors).sum())
        power += float(np.square(reference).sum())
        largest = max(largest, float(errors.max()))
    relative = (difference / power) ** 0.5 if power else difference**0.5
    return TensorReport(
        name=before.name,
        format=after.label,
        origin=before.linear.label,
        nbytes=after.nbytes,
        error=relative,
        largest_error=largest,
    )


def _options(technique: Any) -> str:
    values = ",".join(f"{key}={value}" for key, value in sorted(vars(technique).items()))
    return f"({values})"
