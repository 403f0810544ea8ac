"""Some layers of a model as a model of its own, which shares all arrays with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from thrifty.errors import RecipeError
from thrifty.models.adapters import Adapter
from thrifty.models.assembly import Assembly
from thrifty.models.model import Model
from thrifty.models.parts import parts


def with_layers(model: Model, layers: Sequence[int]) -> Model:
    """The model without its other layers; nothing is copied. layers: numbers of layers, rising.

    Raises RecipeError for layers that the model does not have.
    """
    count = len(model.config.layers)
    missing = [layer for layer in layers if layer >= count]
    if missing:
        raise RecipeError(f"the model has no layer {missing[0]}; its {count} layers are 0 to {count - 1}")
    kept = tuple(model.config.layers[layer] for layer in layers)
    experts = model.config.experts if any(layer.experts for layer in kept) else None
    config = replace(model.config, layers=kept, experts=experts)
    assembly = Assembly(config)
    for name in parts(config):
        before = _before(name, layers)
        if before in model.linears:
            assembly.put(name, model.linears[before])
        elif before in model.norms:
            assembly.put(name, model.norms[before])
    linears, norms = assembly.finish()
    version = f"{model.version} layers {','.join(map(str, layers))}"
    return Model(config, linears, norms, model.tokenizer, version=version, path=model.path, file=model.file)


def adapter_of_layers(adapter: Adapter, layers: Sequence[int]) -> Adapter:
    """What an adapter adds to these layers, under the names that they have in `with_layers`. Nothing is copied. Raises
    RecipeError where it adds nothing to them.
    """
    names = {f"layers.{layer}.": f"layers.{new}." for new, layer in enumerate(layers)}

    def new(name: str) -> str | None:
        head = next((head for head in names if name.startswith(head)), None)
        return None if head is None else names[head] + name.removeprefix(head)

    chosen = {renamed: pair for name, pair in adapter.weights.items() if (renamed := new(name)) is not None}
    if not chosen:
        raise RecipeError(f"the adapter adds nothing to the layers {', '.join(map(str, layers))}: leave it out")
    scales = {renamed: scale for name, scale in adapter.scales.items() if (renamed := new(name)) is not None}
    return Adapter(chosen, adapter.scale, scales)


def _before(name: str, layers: Sequence[int]) -> str:
    """The name that a part of the subset has in the whole model."""
    words = name.split(".")
    if words[0] == "layers":
        words[1] = str(layers[int(words[1])])
    return ".".join(words)
