"""`config.json` of a checkpoint in Thrifty's own words: any decoder that a `ModelConfig` can say."""

from __future__ import annotations

from collections.abc import Mapping

from thrifty.errors import ConfigError
from thrifty.models.config.fields import Fields
from thrifty.models.config.model_config import ModelConfig, from_dict

OWN = "thrifty"
"""The `model_type`, and the family of what is read. Tensors are called as the decoder's parts are, with `.weight`."""


def from_own(fields: Fields) -> ModelConfig:
    """The config in the table `decoder` (see `as_dict`). Raises ConfigError naming the field."""
    decoder = fields.raw("decoder")
    if not isinstance(decoder, Mapping):
        raise ConfigError("decoder is missing or not a table; model_type 'thrifty' has the whole config there.")
    fields.finish(OWN)
    try:
        return from_dict({**decoder, "family": OWN})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"decoder: {error}.") from error
