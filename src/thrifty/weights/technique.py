"""The stage of weight compression: what a technique writes, and what is done for it.

Three kinds of technique share it. A `WeightTechnique` (here) stores each linear in fewer bytes; a `GroupTechnique`
(`group_technique`) changes linears and the norm before them together; a `StructureTechnique` (`structure_technique`)
leaves layers, heads, neurons or experts out.
"""

from __future__ import annotations

import fnmatch
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.errors import KernelError, RecipeError, nearest
from thrifty.formats.linear import PackedLinear
from thrifty.models.model import Model, TensorReport
from thrifty.storage.process import let_go
from thrifty.weights.calibration import Activations, Calibration, CalibrationSet, default_calibration, seen
from thrifty.weights.results import Phase, Result, Results, Stepped
from thrifty.weights.structure import LinearInfo, linears

OUTSIDE = ("embedding", "head")  # the ends of the model, whose precision is an option of its own
COMPARED = 1 << 19  # values at a time, fp64
KEPT = ("router", "shared_gate")  # tiny, and an expert chosen wrongly costs more than their bytes


@dataclass(frozen=True)
class Preparation:
    """What a technique is given beside the model.

    calibration: what linears read, None where the technique needs none. before: called before every part; what it
    raises ends the work. errors: whether the report tells how far each part is from what it was. results: what was made
    before an interruption, and where results go. text: the ids behind `calibration`.
    """

    calibration: Calibration | None = None
    before: Callable[[], None] = lambda: None
    errors: bool = True
    results: Results = field(default_factory=Results)
    text: CalibrationSet | None = None

    def stepping(self, technique: str, what: str = "training") -> Callable[[Stepped], None]:
        """What a training of a technique calls after each of its steps: `before`, and the results are told of it."""

        def say(now: Stepped) -> None:
            self.results.tell(Phase(technique, what, now.step, now.steps, now.seconds_left, now.saved))
            self.before()

        return say

    def counting(self, technique: str, what: str, total: int) -> Callable[[int], None]:
        """What a search of a technique calls with the steps that it has done. A search that is killed begins anew."""
        began = time.monotonic()

        def say(done: int) -> None:
            left = (time.monotonic() - began) / done * (total - done)
            self.results.tell(Phase(technique, what, done, total, left))

        return say


@dataclass(frozen=True, kw_only=True)
class Technique(ABC):
    """One method on the weights of a model, of any kind; options are fields."""

    needs_calibration: ClassVar[bool] = False
    name: ClassVar[str]
    card: ClassVar[Card]

    @abstractmethod
    def apply(self, model: Model, preparation: Preparation) -> None:
        """Change the model, a part at a time; its dictionaries of norms, which others may share, are exchanged."""

    @abstractmethod
    def check(self, model: Model) -> None:
        """Raise RecipeError where an option does not fit the model. Nothing is computed."""

    def units(self, model: Model) -> int:
        """In how many parts `apply` gives its results; 0: all in the end."""
        return 0

    def version(self, before: str) -> str:
        """The model's version afterwards: keys and values of the model before are worthless for it."""
        return f"{before}+{self.name}{options_of(self)}"


@dataclass(frozen=True, kw_only=True)
class PlacedTechnique(Technique):
    """A technique that acts on places of the decoder one by one.

    layers: the decoder layers it acts on, all by default. skip: names to leave alone, with * and ?, such as
    "*.down".
    """

    layers: tuple[int, ...] | None = None
    skip: tuple[str, ...] = ()

    def includes(self, layer: int | None, names: Iterable[str]) -> bool:
        """Whether `layers` and `skip` leave a place in."""
        if self.layers is not None and layer is not None and layer not in self.layers:
            return False
        return not any(fnmatch.fnmatch(name, pattern) for name in names for pattern in self.skip)

    def inside(self, model: Model) -> list[LinearInfo]:
        """The linears of the layers that `layers` and `skip` leave in, without the model's ends and its routers."""
        return [
            info
            for info in linears(model)
            if info.role not in OUTSIDE + KEPT and self.includes(info.layer, (info.name,))
        ]

    def check(self, model: Model) -> None:
        """Raise RecipeError where `layers` or `skip` name something that this model does not have, or `skip` everything
        that it has.
        """
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
        if names and not any(self.includes(None, (name,)) for name in names):
            raise RecipeError(
                f"technique '{self.name}': skip {list(self.skip)} matches every linear layer of this model: narrow it, "
                "or leave the technique out of the recipe"
            )


@dataclass(frozen=True, kw_only=True)
class WeightTechnique(PlacedTechnique):
    """One method of storing linear layers in fewer bytes. A technique writes `compress`.

    Embedding, logits and expert routers are left alone unless the technique says otherwise in `covers`.
    bytes_need_calibration: of a technique with calibration, whether that decides how many bytes it stores; where it
    does not, `thrifty fit` predicts them as it does for techniques without. bytes_need_weights: whether they depend on
    the values of the weights, so that nobody can predict them.
    """

    bytes_need_calibration: ClassVar[bool] = True
    bytes_need_weights: ClassVar[bool] = False

    @abstractmethod
    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        """The layer in its new format, same shape and bias; `linear` stays as it is.

        calibration: given where `needs_calibration` is true, else None.
        """

    def by_rows(self) -> WeightTechnique:
        """What stores as many bytes as this technique in the part of a layer that grows with its rows, to be asked for
        them without its work: the technique itself, unless it knows better. See `sizes`.
        """
        return self

    def beyond_rows(self, rows: int, columns: int) -> tuple[int, str]:
        """Bytes that a layer [rows, columns] takes beyond `by_rows`, and what they add to the format's name."""
        return 0, ""

    def covers(self, linear: LinearInfo) -> bool:
        """Whether this technique is meant for the layer, before `layers` and `skip`."""
        return linear.role not in OUTSIDE + KEPT

    def selects(self, linear: LinearInfo) -> bool:
        """Whether `apply` compresses the layer."""
        return self.covers(linear) and self.includes(linear.layer, (linear.name,))

    def units(self, model: Model) -> int:
        """In how many parts `apply` gives its results."""
        return sum(self.selects(linear) for linear in linears(model))

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique. What was compressed and is mapped from a file leaves the process meanwhile."""
        reports = {entry.name: entry for entry in model.report}
        for linear in linears(model):
            if not self.selects(linear):
                continue
            result = self._result(linear, preparation, reports.pop(linear.name, None))
            assert isinstance(result.value, PackedLinear)
            model.replace(linear.name, result.value)
            if result.report is not None:
                reports[linear.name] = result.report
            let_go(linear.linear.state().values())
        model.report[:] = _in_order(reports, model.report)

    def _result(self, linear: LinearInfo, preparation: Preparation, held: TensorReport | None) -> Result:
        """The layer in its new format: made now, or before an interruption. held: what the report tells of it."""
        made = preparation.results.of(linear.name)
        if made is not None:
            return made[0]
        preparation.before()
        shown = preparation.calibration
        try:
            packed = self.compress(linear, None if shown is None else shown(linear))
        except KernelError as error:
            raise KernelError(f"technique '{self.name}', '{linear.name}': {error}") from error
        report = error_of(linear, packed, held) if preparation.errors else None
        result = preparation.results.keep(linear.name, Result(linear.name, packed, report))
        preparation.results.close(linear.name)
        return result


def prepare(
    model: Model,
    techniques: Sequence[Technique],
    *,
    calibration: CalibrationSet | None = None,
    in_place: bool = False,
    before: Callable[[], None] | None = None,
    errors: bool = True,
    results: Results | None = None,
) -> Model:
    """The model with the techniques applied in order, each to the result of those before; itself without any.

    calibration: what techniques that need it see; None: the text that ships with the package. The given model stays as
    it is and shares the untouched tensors, unless `in_place`: then its layers are exchanged one at a time, so that the
    peak is the model plus one layer. What was compressed and is mapped from a file leaves the process meanwhile, and
    comes back where it is used. before: called before every linear; what it raises ends the work. errors: whether the
    report tells how far each part is from what it was, which takes as long as rounding it; without, it tells nothing of
    them. results: what was made before an interruption, and where results go; None: only into the model. Raises
    RecipeError for options that do not fit the model, or where a technique needs calibration and the model has no
    tokenizer for the text, or fills in masks.
    """
    for technique in techniques:
        technique.check(model)
        if technique.needs_calibration and model.config.mask_id is not None:
            raise RecipeError(
                f"technique '{technique.name}' looks at a text token after token, and this {model.config.family} model "
                "fills in masks, its rows seeing both ways: use one that needs no calibration, such as rtn"
            )
    if calibration is None and any(technique.needs_calibration for technique in techniques):
        calibration = default_calibration(model)
    if techniques and not in_place:
        model = replace(model, linears=dict(model.linears), report=list(model.report))
    nothing = Preparation().before
    results = results or Results()
    for stage, technique in enumerate(techniques):
        label = f"[{calibration.label}]" if technique.needs_calibration and calibration is not None else ""
        if not results.restore(stage, model):
            technique.check(model)  # again: one before may have left layers out
            shown = text = None
            if technique.needs_calibration and calibration is not None:
                # Anew for each: one before may have changed what the first layer sees.
                shown, text = seen(model, calibration, f"technique '{technique.name}'"), calibration
            results.begin(stage, model)
            technique.apply(model, Preparation(shown, before or nothing, errors, results, text))
            results.finish(stage, model)
        model.version = technique.version(model.version) + label
    return model


def exchange(model: Model, name: str, linear: PackedLinear) -> None:
    """Put a linear in a place without an error of its own: the report tells its format and bytes, and keeps the error
    that the place had. What was there and is mapped from a file leaves the process. Raises as `Model.replace`.
    """
    before = model.linears.get(name)
    model.replace(name, linear)
    model.report[:] = [
        replace(entry, format=linear.label, nbytes=linear.nbytes) if entry.name == name else entry
        for entry in model.report
    ]
    if before is not None:
        let_go(before.state().values())


def tell(model: Model, report: TensorReport) -> None:
    """Put what is told of a part into the model's report, in its place."""
    reports = {entry.name: entry for entry in model.report} | {report.name: report}
    model.report[:] = _in_order(reports, model.report)


def error_of(linear: LinearInfo, packed: PackedLinear, held: TensorReport | None) -> TensorReport:
    """How far `packed` is from the linear that it replaces, with the origin that the report tells so far."""
    entry = _report(linear, packed)
    return entry if held is None else replace(entry, origin=held.origin)


def place(model: Model, result: Result) -> None:
    """Put a linear that was compressed in its place. What was there and is mapped from a file leaves the process."""
    assert isinstance(result.value, PackedLinear)
    before, reports = model.linears.get(result.name), {entry.name: entry for entry in model.report}
    model.replace(result.name, result.value)
    reports.pop(result.name, None)
    if result.report is not None:
        reports[result.name] = result.report
    model.report[:] = _in_order(reports, model.report)
    if before is not None:
        let_go(before.state().values())


def _in_order(reports: dict[str, TensorReport], before: Sequence[TensorReport]) -> list[TensorReport]:
    """Those that were there before in their places, new ones behind them."""
    first = [entry.name for entry in before if entry.name in reports]
    return [reports[name] for name in dict.fromkeys([*first, *reports])]


def relative_error(
    before: PackedLinear, after: PackedLinear, rows: Floats | None = None, columns: Floats | None = None
) -> float:
    """Relative root-mean-square difference from diag(rows)·before·diag(columns), fp32 [out] and [in], 1 where None."""
    return _apart(before, after, rows, columns)[0]


def _apart(
    before: PackedLinear, after: PackedLinear, rows: Floats | None = None, columns: Floats | None = None
) -> tuple[float, float]:
    """(relative root-mean-square, largest) difference, measured some rows at a time."""
    difference = power = largest = 0.0
    step = max(16, COMPARED // after.in_features // 16 * 16)
    for start in range(0, after.out_features, step):
        stop = min(start + step, after.out_features)
        reference = before.tile(start, stop).astype(np.float64)
        if rows is not None:
            reference *= rows[start:stop, None]
        if columns is not None:
            reference *= columns
        errors = np.abs(after.tile(start, stop) - reference)
        difference += float(np.square(errors).sum())
        power += float(np.square(reference).sum())
        largest = max(largest, float(errors.max()))
    return ((difference / power) ** 0.5 if power else difference**0.5), largest


def _report(before: LinearInfo, after: PackedLinear) -> TensorReport:
    """Both errors are against the layer that the technique was given."""
    relative, largest = _apart(before.linear, after)
    return TensorReport(
        name=before.name,
        format=after.label,
        origin=before.linear.label,
        nbytes=after.nbytes,
        error=relative,
        largest_error=largest,
    )


def options_of(technique: Any) -> str:
    """All options of a technique, as a model's version names them."""
    values = ",".join(f"{key}={value}" for key, value in sorted(vars(technique).items()))
    return f"({values})"
