"""ZeroQuant: group-wise weights, token-wise activations, and layer-by-layer distillation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from thrifty import extras
from thrifty.arrays import Array, Floats
from thrifty.card import Card
from thrifty.formats.linear import DenseLinear, PackedLinear, TokenWiseLinear
from thrifty.formats.token_wise import whole_row
from thrifty.kernels.reference.activations import quantise_tokens
from thrifty.kernels.reference.affine import Halves, require_finite, to_float16
from thrifty.kernels.reference.packing import pad_to
from thrifty.models.model import Model
from thrifty.registry import technique
from thrifty.weights.calibration import CalibrationSet, random_calibration
from thrifty.weights.results import Result
from thrifty.weights.structure import LinearInfo, linears
from thrifty.weights.technique import Activations, Preparation, WeightTechnique, error_of, place

if TYPE_CHECKING:
    from thrifty.reference.distillation import LayerDistillation


@technique(
    stage="weights",
    card=Card(
        title="ZeroQuant: Efficient and Affordable Post-Training Quantization for Large-Scale Transformers",
        paper="arXiv 2206.01861",
        year=2022,
        mechanism="Weights are rounded in groups, activations to int8 with one scale a token; then each layer learns, "
        "from the full-precision model's own hidden states, to give what it gave before.",
        claim="INT8 weights and activations at no loss: GPT-2's perplexity on WikiText-2 goes from 19.37 to 19.47 (the "
        "authors' tutorial); with INT4 in the MLP, distilled, a third of FP16's memory",
        limits=(
            "a group is a row of weights or a part of one; the paper's 48 to 64 groups a matrix span several rows",
            "scales are FP16, and codes follow from the rounded scale",
            "by default nothing is distilled: the paper's W8A8; `steps = 100` is the paper's distillation",
            "distillation trains the linears that are rounded, without weight decay; the authors' code the norms too",
            "distillation rounds all activations that will be; the authors' example leaves the MLP's out",
            "a step takes `batch` sequences of 256 tokens, 4 by default; the paper takes 32 of its task's",
            "an expert that no token of a batch was sent to learns nothing from it",
            "attention itself, embedding and logits are not rounded",
        ),
    ),
)
@dataclass(frozen=True, kw_only=True)
class ZeroQuant(WeightTechnique):
    """attention_bits, mlp_bits: of weights; 8 and 8 are the paper's W8A8, 8 and 4 its W4/8A8. group: columns that share
    a scale, None for a whole row. steps: of layer-by-layer distillation, in each layer (the paper: 100); 0: none.
    learning_rate, batch: of it, in sequences. text: what it reads: the calibration text, or random tokens, since the
    paper needs no original data.
    """

    bytes_need_calibration: ClassVar[bool] = False

    attention_bits: Literal[4, 8] = 8
    mlp_bits: Literal[4, 8] = 8
    group: Literal[32, 64, 128] | None = None
    steps: Annotated[int, Field(ge=0, le=100_000)] = 0
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-6
    batch: Annotated[int, Field(ge=1, le=1024)] = 4
    text: Literal["calibration", "random"] = "calibration"

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]  # of the base a constant of the class
        """Only for distillation on a text."""
        return self.steps > 0 and self.text == "calibration"

    def check(self, model: Model) -> None:
        """See Technique; MissingExtra where distillation is asked for without torch."""
        super().check(model)
        if self.steps:
            extras.require_torch(f"technique '{self.name}' with steps")

    def bits(self, linear: LinearInfo) -> Literal[4, 8]:
        """Of a linear's weights: the MLP takes fewer, attention is more sensitive (§4.1)."""
        return self.mlp_bits if linear.branch == "mlp" else self.attention_bits

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> PackedLinear:
        bits = self.bits(linear)
        grid = partial(group_wise, bits=bits, group=self.group)
        return TokenWiseLinear.rounded(linear.linear, grid, bits, self.group)

    def units(self, model: Model) -> int:
        """Linears; whole layers where these are distilled."""
        return len(model.config.layers) if self.steps else super().units(model)

    def apply(self, model: Model, preparation: Preparation) -> None:
        """See Technique. Layers are distilled one after the other: all weights of one are held in fp32."""
        if not self.steps:
            super().apply(model, preparation)
            return
        from thrifty.reference.distillation import LayerDistillation

        distillation = LayerDistillation(
            model, self._text(model, preparation).sequences,
            steps=self.steps, batch=self.batch, learning_rate=self.learning_rate,
        )  # fmt: skip
        for layer in range(len(model.config.layers)):
            unit, results = f"layers.{layer}", preparation.results
            made = results.of(unit)
            if made is None:
                made = [results.keep(unit, own) for own in self._distilled(distillation, model, layer, preparation)]
                results.close(unit)
            else:
                distillation(layer, {}, rounded_tokens, preparation.before)
            for result in made:
                place(model, result)

    def _distilled(
        self, distillation: LayerDistillation, model: Model, layer: int, preparation: Preparation
    ) -> Iterator[Result]:
        """The linears of a layer in their new format, once they are trained."""
        chosen = [info for info in linears(model) if info.layer == layer and self.selects(info)]
        for info in chosen:
            require_finite(info.linear.dequantize(), f"technique '{self.name}', '{info.name}'")
        grids = {info.name: partial(rounded_weight, bits=self.bits(info), group=self.group) for info in chosen}
        learned = distillation(layer, grids, rounded_tokens, preparation.before)
        held = {entry.name: entry for entry in model.report}
        for info in chosen:
            weight = DenseLinear.from_weight(learned.pop(info.name), bias=info.linear.bias)
            packed = self.compress(LinearInfo(info.name, weight), None)
            report = error_of(info, packed, held.get(info.name)) if preparation.errors else None
            yield Result(info.name, packed, report)

    def _text(self, model: Model, preparation: Preparation) -> CalibrationSet:
        if self.text == "random":
            return random_calibration(model)
        assert preparation.text is not None, "given where needs_calibration is true"
        return preparation.text


def group_wise(weight: Floats, bits: int, group: int | None) -> tuple[Array, Halves]:
    """Codes, integers [n, in], and scales fp16 [n, groups] of rows fp32 [n, in]: S = 2·max|w|/2^b of each group, codes
    round(w/S) clamped to −2^(b−1)..2^(b−1)−1 (equation 1, §4.1). The greatest value is clipped by one step.
    """
    rows, columns = weight.shape
    group = whole_row(columns) if group is None else group
    groups = -(-columns // group)
    grouped = pad_to(weight, rows, groups * group).reshape(rows, groups, group)
    scales = to_float16(2 * np.abs(grouped).max(axis=2) / np.float32(2**bits), "group scale")
    step = scales.astype(np.float32)[..., None]
    codes = np.rint(np.divide(grouped, step, out=np.zeros_like(grouped), where=step != 0))
    codes = np.clip(codes, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int16)
    return codes.reshape(rows, -1)[:, :columns], scales


def rounded_weight(weight: Floats, bits: int, group: int | None) -> Floats:
    """What a weight fp32 [out, in] is once it is stored."""
    codes, scales = group_wise(weight, bits, group)
    width = whole_row(weight.shape[1]) if group is None else group
    return codes.astype(np.float32) * scales.astype(np.float32)[:, np.arange(weight.shape[1]) // width]


def rounded_tokens(activations: Floats) -> Floats:
    """What rows of activations fp32 [tokens, columns] are once each is int8 with one scale (§4.1, token-wise)."""
    codes, scales, _ = quantise_tokens(activations)
    rounded: Floats = codes.reshape(len(codes), -1)[:, : activations.shape[1]] * scales[:, None]
    return rounded
