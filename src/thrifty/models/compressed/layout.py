"""What lies in a folder that `thrifty compress` wrote, and the document that tells it from other folders.

- `model.safetensors`: every array of every part, called "layers.0.attention.query/codes"; what a linear is (see
  `PackedLinear.meta`) stands in the header's metadata under "weights";
- `config.json`: the decoder's config, the tokenizer's settings, and the SHA-256 of the weights;
- `tokenizer.json`, and the chat templates as `.jinja` files;
- `recipe.toml`: the weight techniques that were applied; `run.toml`: the other stages of the recipe, where it had any;
- `report.json`: of every tensor the format, bytes, bits per weight and error, and the totals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.errors import CheckpointError
from thrifty.models.config.model_config import ModelConfig, as_dict, from_dict
from thrifty.models.config.own import OWN
from thrifty.models.huggingface.safetensors_file import read_json
from thrifty.models.tokens.settings import TokenizerSettings

LAYOUT = 1
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
RECIPE, RUN, REPORT = "recipe.toml", "run.toml", "report.json"
TEMPLATE, TOOL_TEMPLATE = "chat_template.jinja", "additional_chat_templates/tool_use.jinja"
PADDING = "padding."  # names of arrays that only fill the file up to the next multiple of 64 bytes begin so
METHOD = "thrifty"


@dataclass(frozen=True)
class Compressed:
    """What `config.json` says. tokenizer: settings without templates, None for a model without a tokenizer. sha256: of
    the weights' file. recipe: the tables of the weight techniques that were applied.
    """

    config: ModelConfig
    tokenizer: TokenizerSettings | None
    sha256: str
    recipe: tuple[Mapping[str, Any], ...]

    def document(self) -> dict[str, Any]:
        """As `config.json` has it."""
        settings = None
        if self.tokenizer is not None:
            known = self.tokenizer.to_json().items()
            settings = {name: value for name, value in known if name not in ("chat_template", "tool_template")}
        return {
            "model_type": OWN,
            "architectures": ["ThriftyForCausalLM"],
            "decoder": as_dict(self.config),
            "tokenizer": settings,
            "quantization_config": {
                "quant_method": METHOD,
                "layout": LAYOUT,
                "weights_sha256": self.sha256,
                "recipe": [dict(table) for table in self.recipe],
            },
        }


def is_compressed(folder: Path) -> bool:
    """Whether `thrifty compress` wrote a folder, as its `config.json` says. False for anything that cannot be read."""
    path = folder / CONFIG
    if not path.is_file():
        return False
    try:
        data = read_json(path)
    except CheckpointError:
        return False
    method = data.get("quantization_config") if isinstance(data, Mapping) else None
    return isinstance(method, Mapping) and method.get("quant_method") == METHOD


def read_document(folder: Path) -> Compressed:
    """The `config.json` of a compressed folder. Raises CheckpointError naming the field."""
    path = folder / CONFIG
    data: Any = read_json(path)
    method, decoder = data["quantization_config"], data.get("decoder")
    if method.get("layout") != LAYOUT:
        raise CheckpointError(
            f"{path}: quantization_config.layout is {method.get('layout')!r:.40}; this version of Thrifty reads "
            f"{LAYOUT}. Compress the model again with this version, or load it with the one that wrote it."
        )
    if not isinstance(decoder, Mapping):
        raise CheckpointError(f"{path}: decoder is missing or not a table.")
    sha256, recipe = method.get("weights_sha256"), method.get("recipe")
    if not isinstance(sha256, str) or not isinstance(recipe, list):
        raise CheckpointError(f"{path}: quantization_config lacks weights_sha256 or recipe; compress the model again.")
    try:
        config = from_dict(decoder)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: decoder: {error}.") from error
    settings = data.get("tokenizer")
    tokenizer = None if settings is None else TokenizerSettings.from_json(settings)
    return Compressed(config, tokenizer, sha256, tuple(table for table in recipe if isinstance(table, Mapping)))
