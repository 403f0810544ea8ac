"""SmoothQuant+: one smoothing strength for the whole model, then group-wise 4-bit weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thrifty.arrays import Floats
from thrifty.card import Card
from thrifty.errors import RecipeError
from thrifty.formats.linear import PackedLinear
from thrifty.formats.packed import TILE
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import Activations, Calibration, CalibrationSet, seen
from thrifty.weights.groups import LinearGroup, groups
from thrifty.weights.scaled_rounding import ScaledRounding
from thrifty.weights.structure import LinearInfo
from thrifty.weights.technique import Preparation, WeightTechnique
from thrifty.weights.techniques.rtn import RoundToNearest

GRID = tuple(round(0.05 * step, 2) for step in range(21))  # of the strength
LEAST = 1e-5  # of a scale and of max|W|, as in the authors' code
SEARCHED = 4  # sequences of the calibration text on which strengths are compared


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
            "the error is the squared error of the logits before a soft cap; the authors' search is not published",
            "strengths are compared on 1,024 tokens of the calibration text; the paper takes HumanEval's prompts",
            "norms before attention and MLP are smoothed, as in the authors' code; all linears are rounded",
            "a model without norms in front of its branches has nothing to smooth and is refused",
            "the search takes 21 passes over the text, each with all weights rounded anew",
            "a search does not predict the bytes of a recipe with it: it changes more than one linear at a time",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class SmoothQuantPlus(ScaledRounding):
    """alpha: the strength of smoothing, 0 to 1; None: searched in steps of 0.05. bits, group: of rounded weights."""

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
                f"technique '{self.name}' smooths norms in front of attention and MLP; this {model.config.family} "
                "model has none that `layers` and `skip` leave in. Use rtn, which needs none"
            )

    def factors(self, group: LinearGroup, calibration: Activations | None) -> Floats | None:
        assert calibration is not None and self.alpha is not None, "the search is over"
        return smoothing(peaks_of(calibration), group, self.alpha)

    def storage(self) -> WeightTechnique:
        return RoundToNearest(bits=self.bits, group=self.group)

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique. While strengths are compared, a rounded model is held beside the model."""
        text = preparation.text
        assert text is not None, "given where needs_calibration is true"
        peaks = self._peaks(model, text)
        alpha = self._searched(model, peaks, text, preparation) if self.alpha is None else self.alpha
        self._with(alpha, model, replace(preparation, calibration=peaks))

    def strength(self, model: Model, text: CalibrationSet) -> float:
        """The alpha that the search finds; the model stays as it is."""
        return self._searched(model, self._peaks(model, text), text, Preparation())

    def _with(self, alpha: float, model: Model, preparation: Preparation) -> None:
        ScaledRounding.apply(replace(self, alpha=alpha), model, preparation)

    def _peaks(self, model: Model, text: CalibrationSet) -> Calibration:
        """max|X| of what each group reads in the model as it is given, as if it were the only token; of all else no
        token. Smoothing and rounding change it, so it is looked at once and before.
        """
        shown = seen(model, text, f"technique '{self.name}'")
        first = [group.readers[0] for group in groups(model) if self.selects(group)]
        peaks = {reader.name: Activations(peaks_of(shown(reader))[None]) for reader in first}
        return lambda linear: (
            peaks.get(linear.name) or Activations(np.empty((0, linear.linear.in_features), np.float32))
        )

    def _searched(self, model: Model, peaks: Calibration, text: CalibrationSet, preparation: Preparation) -> float:
        """The strength of least error of the output (§3.2); of equals the first."""
        part = replace(text, sequences=text.sequences[:SEARCHED])
        metric, wanted = logit_metric(model.head), last_state(model, part, self.name)
        errors: dict[float, float] = {}
        say = preparation.counting(self.name, "its search for a strength", len(GRID))
        for alpha in GRID:
            rounded = replace(model, linears=dict(model.linears), report=[])
            self._with(alpha, rounded, Preparation(peaks, preparation.before, errors=False))
            apart = last_state(rounded, part, self.name) - wanted
            errors[alpha] = float(((apart @ metric) * apart).sum())
            say(len(errors))
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
