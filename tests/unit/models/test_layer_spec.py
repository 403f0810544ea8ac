"""Layers that say what they are: round trips, parts, refusals; and checkpoints in Thrifty's own words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.tiny import hybrid_config, tiny_config, tiny_model

from thrifty.cache.model_info import Widths
from thrifty.engine.model_info import check_cacheable, model_info
from thrifty.errors import ConfigError
from thrifty.models.config.huggingface import from_huggingface
from thrifty.models.config.layer_spec import LayerSpec, RecurrentSpec, RopeConfig, recurrent_layer
from thrifty.models.config.model_config import ModelConfig, as_dict, from_dict
from thrifty.models.loading import load
from thrifty.models.parts import parts
from thrifty.reference.decoder import Decoder
from thrifty.reference.loading import build
from thrifty.reference.loading import load as load_reference

ROPE = RopeConfig(10000.0, 64)
SPEC = RecurrentSpec(3, 24, 40, "head", temperature=2.0)


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_a_config_survives_json(decay: Any) -> None:
    config = hybrid_config("rwar", decay)
    assert from_dict(json.loads(json.dumps(as_dict(config)))) == config


def test_a_config_from_before_recurrent_layers_is_read() -> None:
    data = as_dict(tiny_config(2))
    for layer in data["layers"]:
        for name in ("mixer", "recurrent", "heads", "kv_heads", "head_dim", "intermediate_size"):
            del layer[name]
    assert from_dict(data) == tiny_config(2)


def test_every_mixer_has_its_parts() -> None:
    shapes = parts(hybrid_config("ra", "channel"))
    own = {name.removeprefix("layers.0."): shape for name, shape in shapes.items() if name.startswith("layers.0.rec")}
    assert own == {
        "recurrent.query": (72, 128),
        "recurrent.key": (72, 128),
        "recurrent.value": (120, 128),
        "recurrent.decay": (72, 128),
        "recurrent.decay.bias": (72,),
        "recurrent.gate": (120, 128),
        "recurrent.norm": (40,),
        "recurrent.output": (128, 120),
    }
    assert "layers.0.attention.query" not in shapes and "layers.1.attention.query" in shapes
    assert parts(hybrid_config("ra"))["layers.0.recurrent.decay"] == (3, 128)


def test_a_layer_of_its_own_widths_has_its_parts() -> None:
    wide = LayerSpec(None, RopeConfig(10000.0, 16), heads=8, kv_heads=2, head_dim=32, intermediate_size=96)
    config = dataclasses.replace(tiny_config(2), layers=(tiny_config().layers[0], wide))
    assert parts(config)["layers.1.attention.query"] == (256, 128)
    assert parts(config)["layers.1.attention.key"] == (64, 128)
    assert parts(config)["layers.1.mlp.up"] == (96, 128) and parts(config)["layers.0.mlp.up"] == (256, 128)
    assert from_dict(json.loads(json.dumps(as_dict(config)))) == config
    model = tiny_model(config=config)
    logits = build(model).logits(list(range(20)))
    assert torch.isfinite(logits).all()
    info = model_info(model, 128)
    assert (info.of(0), info.of(1)) == (Widths(4, 2, 64), Widths(8, 2, 32))
    assert [group.layers for group in info.layer_groups()] == [(0,), (1,)]


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (LayerSpec(None, ROPE, mixer="recurrent"), "layers.1.mixer is 'recurrent' and layers.1.recurrent is None"),
        (LayerSpec(None, ROPE, recurrent=SPEC), "layers.1.mixer is 'attention' and"),
        (LayerSpec(7, RopeConfig(1e4, 0), False, "recurrent", SPEC), "layers.1 is recurrent and has a window"),
        (LayerSpec(None, ROPE, False, "recurrent", SPEC), "layers.1 is recurrent and has a window, a rope"),
        (LayerSpec(None, ROPE, heads=3), "layers.1 has 3 heads, 2 KV heads"),
        (LayerSpec(None, ROPE, head_dim=32), "layers.1.rope.dimension is 64; it must be an integer from 0 to 32"),
        (LayerSpec(None, ROPE, head_dim=0), "layers.1.head_dim is 0"),
        (LayerSpec(None, ROPE, intermediate_size=0), "layers.1.intermediate_size is 0"),
        (LayerSpec(None, ROPE, True, intermediate_size=8), "layers.1 has experts and intermediate_size 8"),
        (LayerSpec(None, ROPE, mixer="mamba"), "layers.1.mixer is 'mamba'; it must be one of"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_belong_together_is_refused(layer: LayerSpec, words: str) -> None:
    config = tiny_config(2)
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(config, layers=(config.layers[0], layer))
    assert words in str(error.value)


def test_a_model_attends_somewhere() -> None:
    with pytest.raises(ConfigError, match="all layers are recurrent; one at least must attend"):
        hybrid_config("rr")


@pytest.mark.parametrize("field", ["heads", "key_dim", "value_dim"])
def test_sizes_of_a_state_are_bounded(field: str) -> None:
    for value in (0, 1 << 20, 2.5):
        with pytest.raises(ConfigError, match=f"recurrent.{field} is {value}"):
            dataclasses.replace(SPEC, **{field: value})
    with pytest.raises(ConfigError, match=r"recurrent\.decay is 'row'"):
        RecurrentSpec(1, 2, 2, "row")  # type: ignore[arg-type]


def test_latent_layers_are_known_and_not_built() -> None:
    config = dataclasses.replace(
        tiny_config(2), layers=(tiny_config().layers[0], LayerSpec(None, ROPE, mixer="latent"))
    )
    for build_it in (parts, Decoder):
        with pytest.raises(ConfigError, match=r"layers\.1\.mixer is 'latent'"):
            build_it(config)
    with pytest.raises(ConfigError, match=r"layers\.1 mixes by latent attention, which the cache does not hold"):
        check_cacheable(config)


def checkpoint(folder: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """A directory in Thrifty's own words, of random weights."""
    random = torch.Generator().manual_seed(3)
    names = {name if name.endswith(".bias") else f"{name}.weight": shape for name, shape in parts(config).items()}
    tensors = {name: torch.randn(shape, generator=random) * 0.1 for name, shape in names.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "thrifty", "decoder": as_dict(config)}))
    return tensors


def test_a_checkpoint_in_its_own_words_loads(tmp_path: Path) -> None:
    config = hybrid_config("rwa", "channel")
    tensors = checkpoint(tmp_path, config)
    reference = load_reference(tmp_path, dtype=torch.float32)
    assert reference.config == dataclasses.replace(config, family="thrifty")
    assert torch.equal(
        reference.decoder.get_parameter("layers.0.recurrent.decay.bias"), tensors["layers.0.recurrent.decay.bias"]
    )
    tokens = list(range(40))
    plain, packed = reference.logits(tokens), build(load(tmp_path)).logits(tokens)
    assert np.abs((plain - packed).numpy()).max() < 0.05 * plain.abs().max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder": None}, "decoder is missing or not a table"),
        ({"decoder": {}}, "layers is missing or not a list"),
        ({"more": 1}, "more"),
    ],
)
def test_a_config_in_its_own_words_is_checked(change: dict[str, Any], words: str) -> None:
    data = {"model_type": "thrifty", "decoder": as_dict(hybrid_config()), **change}
    with pytest.raises(ConfigError, match=words):
        from_huggingface(data)


@pytest.mark.parametrize("field", ["bos_ids", "layers", "hidden_size", "experts", "heads", "norm", "tied_embeddings"])
@pytest.mark.parametrize("value", [5, "x", [5], {"a": 1}, None, -1, 1e300])
def test_a_hostile_config_gives_an_error_or_a_config(field: str, value: object) -> None:
    decoder = {**as_dict(hybrid_config()), field: value}
    try:
        config = from_huggingface({"model_type": "thrifty", "decoder": json.loads(json.dumps(decoder))})
    except ConfigError:
        return
    assert isinstance(config, ModelConfig)


def test_the_helper_makes_a_layer() -> None:
    assert recurrent_layer(SPEC).recurrent == SPEC and not recurrent_layer(SPEC).keeps_all
    assert LayerSpec(None, ROPE).keeps_all and not LayerSpec(5, ROPE).keeps_all
