"""SmoothQuant+: one smoothing strength for the whole model, then group-wise 4-bit weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.formats.linear import GroupLinear, PackedLinear
from thrifty.formats.packed import TILE
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import Activations, CalibrationSet, seen
from thrifty.weights.group_technique import GroupTechnique
from thrifty.weights.groups import LinearGroup, Replacement, groups, rescaled
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import KEPT, OUTSIDE, Preparation, store

GRID = tuple(round(0.05 * step, 2) for step in range(21))  # of the strength
LEAST = 1e-5  # of a scale and of max|W|, as in the authors' code
SEARCHED = 4  # sequences of the calibration text on which strengths are compared

Peaks = Mapping[str, Floats]
"""max|X| of the channels behind each smoothed norm, fp32 [hidden], by the norm's name."""


@technique(
    stage="weights",
    card=Card(
        title="SmoothQuant+: Accurate and Efficient 4-bit Post-Training WeightQuantization for LLM",
        paper="arXiv 2312.03788",
        year=2023,
        mechanism="Channels of large activations are made smaller in the norm and larger in the weights behind it, by "
        "one strength for the whole model, which is searched for the least error of its output once all weights are "
        "rounded to 4 bits in groups.",
        claim="Code Llama-34B at 4 bits on one A100 of 40 GB: no loss of accuracy, 1.9 to 4.0 times the throughput of "
        "FP16 on two, 68 % of its time a token",
        limits=(
            "groups store a FP16 minimum, 4.25 bits a weight at 128; the paper's zero points of 4 bits make 4.16",
            f"the error is that of the logits before a soft cap, squared, on the first {SEARCHED} sequences of the "
            "calibration text; the authors' search is not published, and calibrates with HumanEval's prompts",
            "norms before attention and MLP are smoothed; what reads the attention's or the MLP's own result is rounded "
            "as it is, as in the authors' code",
            "a model without norms in front of its branches has nothing to smooth and is refused",
            "the search takes 21 passes over the text, each with all weights rounded anew",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class SmoothQuantPlus(GroupTechnique):
    """alpha: the strength of smoothing, 0 to 1; None: searched in steps of 0.05. bits, group: of the rounded weights."""

    needs_calibration: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    bits: Literal[4, 8] = 4
    group: Literal[32, 64, 128] = 128

    def covers(self, group: LinearGroup) -> bool:
        return group.kind == "norm" and group.layer is not None

    def check(self, model: Model) -> None:
        """See Technique; also where there is no norm to smooth."""
        super().check(model)
        if not any(self.selects(group) for group in groups(model)):
            raise RecipeError(
                f"technique '{self.name}' smooths norms in front of attention and MLP; this {model.config.family} model "
                "has none that `layers` and `skip` leave in. Use rtn, which needs none"
            )

    def transform(self, group: LinearGroup, calibration: Activations | None) -> Iterable[Replacement]:
        """The group smoothed by `alpha`, unrounded."""
        assert calibration is not None and self.alpha is not None, "the search is over"
        return rescaled(group, smoothing(peaks_of(calibration), group, self.alpha))

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique. A group is smoothed and rounded at once, so that one linear is held in fp32 beside the model;
        while strengths are compared, a rounded model too.
        """
        text = preparation.text
        assert text is not None, "given where needs_calibration is true"
        peaks = self._peaks(model, text)
        alpha = self._searched(model, peaks, text, preparation) if self.alpha is None else self.alpha
        self.compress(model, peaks, alpha, preparation)

    def strength(self, model: Model, text: CalibrationSet) -> float:
        """The alpha that the search finds; the model stays as it is."""
        return self._searched(model, self._peaks(model, text), text, Preparation())

    def compress(self, model: Model, peaks: Peaks, alpha: float, preparation: Preparation) -> None:
        """Smooth the model, and round its linears."""
        stored: set[str] = set()
        for group in groups(model):
            if group.source.name not in peaks:
                continue
            preparation.before()
            for name, value in rescaled(group, smoothing(peaks[group.source.name], group, alpha)):
                self._replace(model, group, name, value)
                if isinstance(value, PackedLinear) and self._rounds(LinearInfo(name, value)):
                    self._round(model, LinearInfo(name, value), preparation)
                    stored.add(name)
        for linear in linears(model):
            if linear.name not in stored and self._rounds(linear):
                preparation.before()
                self._round(model, linear, preparation)

    def _peaks(self, model: Model, text: CalibrationSet) -> Peaks:
        shown = seen(model, text, f"technique '{self.name}'")
        smoothed = (group for group in groups(model) if self.selects(group))
        return {group.source.name: peaks_of(shown(group.readers[0])) for group in smoothed}

    def _rounds(self, linear: LinearInfo) -> bool:
        return linear.role not in OUTSIDE + KEPT and self.includes(linear.layer, (linear.name,))

    def _round(self, model: Model, linear: LinearInfo, preparation: Preparation) -> None:
        store(model, linear, GroupLinear.requantize(linear.linear, self.bits, self.group), preparation.errors)

    def _searched(self, model: Model, peaks: Peaks, text: CalibrationSet, preparation: Preparation) -> float:
        """The strength of least error of the output (§3.2); of equals the first."""
        part = replace(text, sequences=text.sequences[:SEARCHED])
        metric, wanted = logit_metric(model.head), last_state(model, part, self.name)
        errors: dict[float, float] = {}
        for alpha in GRID:
            rounded = replace(model, linears=dict(model.linears), report=[])
            self.compress(rounded, peaks, alpha, replace(preparation, errors=False))
            apart = last_state(rounded, part, self.name) - wanted
            errors[alpha] = float(((apart @ metric) * apart).sum())
        return min(errors, key=errors.__getitem__)


def peaks_of(calibration: Activations) -> Floats:
    """max|X_j| over tokens, fp32 [columns]."""
    peaks: Floats = np.abs(calibration.inputs).max(axis=0, initial=0.0)
    return peaks


def smoothing(peaks: Floats, group: LinearGroup, alpha: float) -> Floats:
    """s_j = max|X_j|^α / max|W_j|^(1−α), fp32 [columns], W_j over all linears that read channel j (§3.1; SmoothQuant,
    arXiv 2211.10438, equation 4).
    """
    weights = np.full(len(peaks), LEAST, np.float32)
    for reader in group.readers:
        for start in range(0, reader.linear.out_features, TILE):
            tile = reader.linear.tile(start, min(start + TILE, reader.linear.out_features))
            weights = np.maximum(weights, np.abs(tile).max(axis=0))
    scale: Floats = np.maximum(peaks**alpha / weights ** (1 - alpha), LEAST).astype(np.float32)
    return scale


def last_state(model: Model, text: CalibrationSet, what: str) -> Floats:
    """What the matrix of logits reads, fp32 [tokens, hidden]."""
    name = "embedding" if model.config.tied_embeddings else "head"
    return seen(model, text, f"technique '{what}'")(LinearInfo(name, model.head)).inputs


def logit_metric(head: PackedLinear) -> Floats:
    """WᵀW of the matrix of logits, fp32 [hidden, hidden]: d·WᵀW·d is the squared error of the logits of an error d."""
    metric = np.zeros((head.in_features, head.in_features), np.float32)
    for start in range(0, head.out_features, TILE):
        tile = head.tile(start, min(start + TILE, head.out_features))
        metric += tile.T @ tile
    return metric
