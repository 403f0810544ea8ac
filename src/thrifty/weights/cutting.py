"""A smaller decoder out of a model's own parts: fewer layers, heads, neurons or experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from thrifty.arrays import Integers
from thrifty.errors import RecipeError
from thrifty.models.assembly import Assembly
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.model import Model
from thrifty.models.parts import parts
from thrifty.weights.slicing import Chosen, take
from thrifty.weights.structure import LinearInfo

PerLayer = Mapping[int, Sequence[int]]


@dataclass(frozen=True)
class Structure:
    """What is left of a model, by the numbers that the parts have in it; None: all.

    layers: in the order in which they will run. heads: query heads of every layer that is left and attends; a KV head
    stays where one of its query heads does, and all that stay keep equally many. neurons: of the MLP of every layer
    without experts. experts: of every layer with experts. All layers keep equally many of each.
    """

    layers: Sequence[int] | None = None
    heads: PerLayer | None = None
    neurons: PerLayer | None = None
    experts: PerLayer | None = None


def cut(model: Model, structure: Structure) -> None:
    """Leave out of `model` all that is not in a structure. What stays whole is shared with what the model held.

    Raises RecipeError for numbers that the model does not have, and where layers would not be equally wide.
    """
    chosen = _Choice(model.config, structure)
    assembly, names = Assembly(chosen.cut_config), dict(_names(chosen))
    for name, before in names.items():
        if before in model.linears:
            assembly.put(name, take(model.linears[before], *chosen.of(LinearInfo(before, model.linears[before]))))
        elif before in model.norms:
            norm, rows = model.norms[before], chosen.of_norm(before)
            assembly.put(name, norm if rows is None else norm[rows])
    linears, norms = assembly.finish()
    reports = {entry.name: entry for entry in model.report}
    model.report = [
        replace(reports[before], name=name, format=linears[name].label, nbytes=linears[name].nbytes)
        if name in linears
        else replace(reports[before], name=name, nbytes=norms[name].nbytes)
        for name, before in names.items()
        if before in reports and (name in linears or name in norms)
    ]
    model.config, model.linears, model.norms = chosen.cut_config, linears, norms


class _Choice:
    """A structure that was checked against a config. cut_config: of what is left."""

    def __init__(self, config: ModelConfig, structure: Structure) -> None:
        self.config = config
        layers = range(len(config.layers)) if structure.layers is None else structure.layers
        _check("layers", layers, len(config.layers))
        self.layers = list(layers)
        if structure.heads is not None or structure.neurons is not None:
            self._check_equal()
        attending = [layer for layer in self.layers if config.layers[layer].mixer == "attention"]
        with_experts = [layer for layer in self.layers if config.layers[layer].experts]
        dense = [layer for layer in self.layers if not config.layers[layer].experts]
        count = 0 if config.experts is None else config.experts.count
        self.heads = _numbers("heads", structure.heads, attending, config.heads)
        self.neurons = _numbers("neurons", structure.neurons, dense, config.intermediate_size)
        self.experts = _numbers("experts", structure.experts, with_experts, count)
        self.kv_heads = {layer: self._kv_heads(layer, heads) for layer, heads in self.heads.items()}
        self.cut_config = self._cut_config(with_experts)

    def _check_equal(self) -> None:
        """Raise RecipeError naming the first layer that is not as wide as the model: heads and neurons are chosen of
        layers that are."""
        for index in self.layers:
            layer = self.config.layers[index]
            if layer.has_widths or layer.intermediate_size is not None:
                raise RecipeError(f"layers.{index} has widths of its own: choose layers or experts alone in this model")

    def of(self, linear: LinearInfo) -> tuple[Chosen, Chosen]:
        """Rows and columns that stay of a linear of the model."""
        layer, size = linear.layer, self.config.head_dim
        if layer is None:
            return None, None
        match linear.branch, linear.role:
            case "attention", "query" if layer in self.heads:
                return _channels(self.heads[layer], size), None
            case "attention", "key" | "value" if layer in self.heads:
                return _channels(self.kv_heads[layer], size), None
            case "attention", "output" if layer in self.heads:
                return None, _channels(self.heads[layer], size)
            case "mlp", "gate" | "up" if layer in self.neurons:
                return self.neurons[layer], None
            case "mlp", "down" if layer in self.neurons:
                return None, self.neurons[layer]
            case "mlp", "router" if layer in self.experts:
                return self.experts[layer], None
        return None, None

    def of_norm(self, name: str) -> Chosen:
        """What stays of a norm: of one over all heads, those that stay."""
        layer = LinearInfo.layer_of(name)
        if layer is None or layer not in self.heads or self.config.qk_norm != "full":
            return None
        heads = {"query_norm": self.heads, "key_norm": self.kv_heads}.get(name.rpartition(".")[2])
        return None if heads is None else _channels(heads[layer], self.config.head_dim)

    def _kv_heads(self, layer: int, heads: Integers) -> Integers:
        group = self.config.heads // self.config.kv_heads
        kept, counts = np.unique(heads // group, return_counts=True)
        if len(set(counts.tolist())) > 1 or (np.diff(heads // group) < 0).any():
            raise RecipeError(
                f"heads {heads.tolist()} of layer {layer} do not share {len(kept)} KV heads evenly: keep "
                f"equally many of each group of {group}, in their order"
            )
        return kept

    def _cut_config(self, with_experts: Sequence[int]) -> ModelConfig:
        config = self.config
        changes: dict[str, Any] = {}
        if self.heads:
            changes = {"heads": _width("heads", self.heads), "kv_heads": _width("KV heads", self.kv_heads)}
        if self.neurons:
            changes["intermediate_size"] = _width("neurons", self.neurons)
        experts = config.experts if with_experts else None
        if experts is not None and self.experts:
            count = _width("experts", self.experts)
            if count < experts.active:
                raise RecipeError(f"{count} experts are left; a token takes {experts.active}: keep as many or more")
            experts = replace(experts, count=count)
        layers = tuple(config.layers[layer] for layer in self.layers)
        return replace(config, layers=layers, experts=experts, **changes)


def _names(choice: _Choice) -> Iterator[tuple[str, str]]:
    """Of every part of the cut model, its name and the one that it had."""
    for name in parts(choice.cut_config):
        words = name.split(".")
        if words[0] == "layers":
            layer = choice.layers[int(words[1])]
            words[1] = str(layer)
            if "experts" in words and layer in choice.experts:
                place = words.index("experts") + 2
                words[place] = str(choice.experts[layer][int(words[place])])
        yield name, ".".join(words)


def _numbers(what: str, chosen: PerLayer | None, layers: Sequence[int], count: int) -> dict[int, Integers]:
    """The numbers of each layer, checked; none at all where all stay."""
    if chosen is None:
        return {}
    if not isinstance(chosen, Mapping):
        raise RecipeError(f"{what}: {chosen!r:.80} must be a mapping from a layer's number to the numbers that stay")
    if not layers or set(chosen) != set(layers):
        raise RecipeError(f"{what} are chosen for layers {list(chosen)}; choose them for {list(layers)}, one by one")
    for layer in layers:
        _check(f"{what} of layer {layer}", chosen[layer], count)
    return {layer: np.array(chosen[layer], np.int64) for layer in layers}


def _check(what: str, numbers: Sequence[int], count: int) -> None:
    if not isinstance(numbers, Sequence | np.ndarray):
        raise RecipeError(f"{what}: {numbers!r:.80} must be a sequence of whole numbers from 0 to {count - 1}")
    wrong = [number for number in numbers if isinstance(number, bool) or not isinstance(number, Integral)]
    if wrong:
        raise RecipeError(f"{what}: {wrong[0]!r:.80} must be a whole number from 0 to {count - 1}")
    if not len(numbers) or len(set(numbers)) < len(numbers) or min(numbers) < 0 or max(numbers) >= count:
        raise RecipeError(f"{what}: {list(numbers)[:12]} must be one or more different numbers from 0 to {count - 1}")


def _width(what: str, chosen: Mapping[int, Integers]) -> int:
    """How many every layer keeps."""
    widths = {layer: len(numbers) for layer, numbers in chosen.items()}
    if len(set(widths.values())) > 1:
        raise RecipeError(f"layers keep different numbers of {what}: {widths}; keep equally many in each")
    return next(iter(widths.values()))


def _channels(heads: Integers, size: int) -> Integers:
    """The channels of heads, int64 [heads · size]."""
    return (heads[:, None] * size + np.arange(size)).reshape(-1)
