"""Whether a file that was written says the same of a model as the model does."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from thrifty.errors import ConfigError
from thrifty.models.config.model_config import ModelConfig

# A family is a name; the ids that begin and end text are the tokenizer's, and the file has them there.
_BESIDE = ("family", "bos_ids", "eos_ids", "pad_id")


def check_same(written: ModelConfig, config: ModelConfig, what: str) -> None:
    """Raise ConfigError naming the first field in which they differ. what: the file, as the message calls it."""
    for field in dataclasses.fields(ModelConfig):
        found, wanted = getattr(written, field.name), getattr(config, field.name)
        if field.name not in _BESIDE and not _alike(found, wanted):
            raise ConfigError(
                f"{what} cannot say {field.name} = {wanted!r:.80} of this model (it would be read as {found!r:.80}): "
                "run the folder of `thrifty compress` itself"
            )


def _alike(found: Any, wanted: Any) -> bool:
    """Equal; of numbers within what fp32 holds."""
    if dataclasses.is_dataclass(wanted) and type(found) is type(wanted):
        return all(_alike(getattr(found, item.name), getattr(wanted, item.name)) for item in dataclasses.fields(wanted))
    if isinstance(wanted, tuple) and isinstance(found, tuple):
        return len(found) == len(wanted) and all(map(_alike, found, wanted))
    if isinstance(wanted, float) and isinstance(found, float):
        return math.isclose(found, wanted, rel_tol=1e-6)
    return bool(found == wanted)
