"""What linear layers read on calibration text, layer by layer, in the model as techniques have left it so far."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from thrifty.arrays import Floats, Integers
from thrifty.models.model import Model
from thrifty.reference.arrays import array_of, tensor_of
from thrifty.reference.attention import causal, of_each
from thrifty.reference.decoder import Decoder
from thrifty.reference.linear import Linear, parameter
from thrifty.reference.loading import build
from thrifty.reference.recurrent import from_zero

WORKSPACE = 256 << 20  # bytes
_SAME_INPUT = {"query": ("key", "value"), "gate": ("up",)}  # later linears that read what an earlier one reads


@dataclass
class LayerInputs:
    """Runs sequences (int64 [sequences, tokens]) through a model. Ask for linears in the model's order, and replace
    them and norms meanwhile: what comes later sees what was replaced before.

    It holds the hidden state [sequences, tokens, hidden] fp32 before one layer, and the inputs asked for. Sequences
    pass a layer together, as many as have room in `workspace` bytes and at least one: stored weights are dequantised
    once for all of them. Attention and recurrences stay within a sequence. A pass ends at the linear that is watched.
    """

    model: Model
    sequences: Integers
    workspace: int = WORKSPACE
    _decoder: Decoder = field(init=False)
    _names: dict[str, list[str]] = field(init=False)  # of linears, by their place: "embedding", "layers.3", "head"
    _norms: dict[str, Floats] = field(init=False)  # as the decoder has them
    _layer: int = -1
    _hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    _kept: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._decoder = build(self.model).decoder
        self._names, self._norms = {}, dict(self.model.norms)
        for name in self.model.linears:
            self._names.setdefault(_place(name), []).append(name)

    @torch.no_grad()
    def __call__(self, name: str) -> Floats:
        """The inputs [tokens, in_features] of a linear, now; of an expert those of the tokens that were sent to it.

        An embedding is a table that reads none, unless it makes the logits too.
        """
        if name not in self._kept:
            self._kept = self._run(name)
        return self._kept.pop(name)

    def _run(self, name: str) -> dict[str, Floats]:
        parts = name.split(".")
        inside = parts[0] == "layers"
        layer = int(parts[1]) if inside else len(self._decoder.layers)
        if name == "embedding" and self._decoder.head is not None:
            return {name: array_of(torch.empty(0, self.model.linears[name].in_features))}
        if self._layer < 0 or layer < self._layer:
            self._refresh("embedding")
            tokens = tensor_of(self.sequences)
            self._layer, self._hidden = 0, torch.stack([self._decoder.embed(row) for row in tokens])
        while self._layer < layer:
            self._refresh(f"layers.{self._layer}")
            for hidden in self._batches(self._layer):
                hidden.copy_(self._forward(self._layer, hidden))
            self._layer += 1
        if not inside:
            self._refresh_norms("final_norm")
            return {name: array_of(self._decoder.final_norm(self._hidden).flatten(0, 1))}
        self._refresh(f"layers.{layer}")
        return self._watched(layer, [name, *_same_input(parts)])

    def _refresh(self, place: str) -> None:
        """Take over the linears of a place that were replaced in the model."""
        for name in self._names[place]:
            module, linear = self._decoder.get_submodule(name), self.model.linears[name]
            if not isinstance(module, Linear) or module.stored is not linear:
                self._decoder.replace(name, Linear(linear))
        self._refresh_norms(place)

    def _refresh_norms(self, place: str) -> None:
        for name, weight in self.model.norms.items():
            if weight is not self._norms[name] and _place(name.removesuffix(".bias")) == place:
                module = self._decoder.get_submodule(name.removesuffix(".bias"))
                setattr(module, "bias" if name.endswith(".bias") else "weight", parameter(weight, trains=False))
                self._norms[name] = weight

    def _watched(self, layer: int, names: list[str]) -> dict[str, Floats]:
        """The inputs of linears of one layer, in a pass through it that changes nothing and ends where they are read.

        An expert reads fewer tokens than there is room for: memory that nothing is written to is not taken.
        """
        module, count = self._decoder.get_submodule(names[0]), 0
        inputs = torch.empty(self.sequences.size, self.model.linears[names[0]].in_features)

        def look(_: nn.Module, read: tuple[Tensor, ...]) -> None:
            nonlocal count
            rows = read[0].flatten(0, -2)
            inputs[count : count + len(rows)] = rows
            count += len(rows)
            raise _Seen

        handle = module.register_forward_pre_hook(look)
        try:
            for hidden in self._batches(layer):
                with suppress(_Seen):
                    self._forward(layer, hidden)
        finally:
            handle.remove()
        return dict.fromkeys(names, array_of(inputs[:count]))

    def _batches(self, layer: int) -> Sequence[Tensor]:
        """The hidden state in parts [sequences, tokens, hidden] that pass a layer within `workspace`."""
        config = self.model.config
        heads, kv_heads, head_dim = config.widths(layer)
        widths = 4 * config.hidden_size + 3 * config.inner(layer) + 2 * (heads + kv_heads) * head_dim
        sequence = 4 * widths * self.sequences.shape[1]
        return self._hidden.split(max(1, self.workspace // sequence))

    def _forward(self, layer: int, hidden: Tensor) -> Tensor:
        """A layer on hidden [sequences, tokens, hidden]."""
        count, tokens, _ = hidden.shape
        positions = torch.arange(tokens).repeat(count)
        attend, recur = of_each(causal(self.model.config), tokens), of_each(from_zero, tokens)
        rows = self._decoder.layer(layer, hidden.flatten(0, 1), positions, attend, recur=recur)
        return rows.view_as(hidden)


class _Seen(Exception):
    """What was looked for was read: the rest of the layer is not needed."""


def _place(name: str) -> str:
    return ".".join(name.split(".")[:2]) if name.startswith("layers.") else name


def _same_input(parts: list[str]) -> list[str]:
    """The names of later linears that read what the one called `parts` reads."""
    place = next(place for place in reversed(range(len(parts))) if not parts[place].isdigit())
    return [".".join([*parts[:place], role, *parts[place + 1 :]]) for role in _SAME_INPUT.get(parts[place], ())]
