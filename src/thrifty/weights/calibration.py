"""What linear layers see on calibration text, layer by layer, in the model as techniques have left it so far."""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from thrifty.errors import RecipeError
from thrifty.models.attention import causal
from thrifty.models.decoder import Decoder
from thrifty.models.model import Model
from thrifty.weights.structure import LinearInfo

SEQUENCES, TOKENS = 16, 256
_SAME_INPUT = {"query": ("key", "value"), "gate": ("up",)}  # later linears that read what an earlier one reads


@dataclass(frozen=True)
class Activations:
    """What a linear layer saw on calibration text. inputs: fp32 [tokens, in_features]; of an expert the tokens that
    were sent to it, which can be none.
    """

    inputs: Tensor


Calibration = Callable[[LinearInfo], Activations]


@dataclass(frozen=True)
class CalibrationSet:
    """Token ids to calibrate with. name: of the text. sequences: int64 [sequences, tokens]."""

    name: str
    sequences: Tensor

    @property
    def label(self) -> str:
        """What a model's version says of it: the name, the size and a digest of the ids."""
        count, tokens = self.sequences.shape
        digest = hashlib.sha256(self.sequences.to(torch.int64).contiguous().numpy().tobytes()).hexdigest()
        return f"{self.name}:{count}x{tokens}:{digest[:12]}"


def default_calibration(model: Model, sequences: int = SEQUENCES, tokens: int = TOKENS) -> CalibrationSet:
    """The beginning of `texts/calibration.txt` in the model's tokens, cut to at most `sequences` of `tokens` each.

    Raises RecipeError for a model without a tokenizer, or one that makes fewer than 2 tokens of the text.
    """
    if model.tokenizer is None:
        raise RecipeError(
            "calibration text needs a tokenizer and this model has none: pass a CalibrationSet of its ids"
        )
    tokens = min(tokens, model.config.context_length)
    ids = list(model.tokenizer.encode(_text()))[: sequences * tokens]
    tokens = min(tokens, len(ids))
    if tokens < 2:
        raise RecipeError(f"the tokenizer makes {len(ids)} tokens of the calibration text; it must make at least 2")
    count = len(ids) // tokens
    return CalibrationSet("thrifty-docs", torch.tensor(ids[: count * tokens], dtype=torch.int64).view(count, tokens))


def _text() -> str:
    return (importlib.resources.files("thrifty.weights") / "texts" / "calibration.txt").read_text(encoding="utf-8")


@dataclass
class LayerInputs:
    """A `Calibration` that runs a set through a decoder. Ask in the decoder's order, and replace linears meanwhile:
    what comes later sees what was replaced before.

    It holds the hidden state [sequences, tokens, hidden] fp32 before one layer, and the inputs asked for.
    """

    decoder: Decoder
    sequences: Tensor
    _layer: int = -1
    _hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    _kept: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def __call__(self, linear: LinearInfo) -> Activations:
        """The inputs of a linear, now. An embedding is a table that reads none, unless it makes the logits too."""
        if linear.name not in self._kept:
            self._kept = self._run(linear)
        return Activations(self._kept.pop(linear.name))

    def _run(self, linear: LinearInfo) -> dict[str, Tensor]:
        layer = len(self.decoder.layers) if linear.layer is None else linear.layer
        if linear.role == "embedding" and self.decoder.head is not None:
            return {linear.name: torch.empty(0, linear.linear.in_features)}
        if self._layer < 0 or layer < self._layer:
            self._layer, self._hidden = 0, torch.stack([self.decoder.embed(row) for row in self.sequences]).float()
        while self._layer < layer:
            for index, hidden in enumerate(self._hidden):
                self._hidden[index] = self._forward(self._layer, hidden)
            self._layer += 1
        if linear.layer is None:
            return {linear.name: self.decoder.final_norm(self._hidden).flatten(0, 1).float()}
        return self._watched(layer, [linear.name, *_same_input(linear)])

    def _watched(self, layer: int, names: list[str]) -> dict[str, Tensor]:
        """The inputs of linears of one layer, in a pass through it that changes nothing."""
        seen: list[Tensor] = []
        module = self.decoder.get_submodule(names[0])

        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0].detach().flatten(0, -2).float())

        handle = module.register_forward_pre_hook(look)
        try:
            for hidden in self._hidden:
                self._forward(layer, hidden)
        finally:
            handle.remove()
        width = int(module.in_features)  # type: ignore[arg-type]
        inputs = torch.cat(seen) if seen else torch.empty(0, width)
        return dict.fromkeys(names, inputs)

    def _forward(self, layer: int, hidden: Tensor) -> Tensor:
        positions = torch.arange(len(hidden))
        return self.decoder.layer(layer, hidden, positions, causal(self.decoder.config))


def _same_input(linear: LinearInfo) -> list[str]:
    parts = linear.name.split(".")
    place = len(parts) - 1 - parts[::-1].index(linear.role)
    return [".".join([*parts[:place], role, *parts[place + 1 :]]) for role in _SAME_INPUT.get(linear.role, ())]
