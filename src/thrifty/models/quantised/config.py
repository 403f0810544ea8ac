"""`quantization_config` of `config.json` -> how the checkpoint's linears are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from thrifty.errors import ConfigError, nearest
from thrifty.models.config.fields import Fields
from thrifty.models.quantised.bitsandbytes import BitsAndBytes
from thrifty.models.quantised.integers import AWQ, GPTQ
from thrifty.models.quantised.linears import REMEDY, Method
from thrifty.models.quantised.tensors import CompressedTensors, Float8

METHODS: Mapping[str, Callable[[Fields], Method]] = {
    "gptq": GPTQ.from_config,
    "awq": AWQ.from_config,
    "compressed-tensors": CompressedTensors.from_config,
    "bitsandbytes": BitsAndBytes.from_config,
    "fp8": Float8.from_config,
}
NAMES = ("quantization_config", "compression_config")


def read_method(data: Any) -> Method | None:
    """The method of a checkpoint, from its parsed `config.json`; None for one that is not quantised.

    Raises ConfigError that names a method, or a setting of it, that is not read.
    """
    if not isinstance(data, Mapping):
        return None
    name = next((name for name in NAMES if data.get(name)), None)
    if name is None:
        return None
    fields = Fields(data[name], f"{name}.")
    method = fields.text("quant_method", "bitsandbytes" if "load_in_4bit" in fields.data else None)
    if method not in METHODS:
        known = nearest(method[:40], METHODS)
        raise ConfigError(f"{name}.quant_method is {method!r:.80}, which is not supported: {REMEDY}. {known}")
    return METHODS[method](fields)


def without_method(data: Any) -> Any:
    """`config.json` without what `read_method` reads."""
    return {name: value for name, value in data.items() if name not in NAMES} if isinstance(data, Mapping) else data
