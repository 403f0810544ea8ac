"""The names and shapes of a decoder's parts, in its order."""

from __future__ import annotations

import dataclasses

from tests.tiny import tiny_config

from thrifty.models.config.model_config import ExpertConfig, LayerSpec
from thrifty.models.parts import parts


def test_a_plain_decoder() -> None:
    layer = "layers.0"
    assert list(parts(tiny_config(layers=1)).items()) == [
        ("embedding", (272, 128)),
        (f"{layer}.attention_norm", (128,)),
        (f"{layer}.attention.query", (256, 128)),
        (f"{layer}.attention.key", (128, 128)),
        (f"{layer}.attention.value", (128, 128)),
        (f"{layer}.attention.output", (128, 256)),
        (f"{layer}.mlp_norm", (128,)),
        (f"{layer}.mlp.gate", (256, 128)),
        (f"{layer}.mlp.up", (256, 128)),
        (f"{layer}.mlp.down", (128, 256)),
        ("final_norm", (128,)),
    ]


def test_norms_biases_and_a_head_of_its_own() -> None:
    changes = {"qk_norm": "full", "post_norms": True, "tied_embeddings": False}
    biases = {"attention_bias": True, "output_bias": True, "mlp_bias": True}
    found = parts(tiny_config(layers=1, **changes, **biases))
    assert found["layers.0.attention.query_norm"] == (256,) and found["layers.0.attention.key_norm"] == (128,)
    assert found["layers.0.attention.query.bias"] == (256,) and found["layers.0.mlp.down.bias"] == (128,)
    assert list(found)[-3:] == ["layers.0.post_mlp_norm", "final_norm", "head"]
    names = list(found)
    assert names[names.index("layers.0.attention.output") + 1] == "layers.0.attention.output.bias"
    assert names.index("layers.0.post_attention_norm") == names.index("layers.0.mlp_norm") - 1
    assert parts(tiny_config(layers=1, qk_norm="head"))["layers.0.attention.query_norm"] == (64,)


def test_a_mixture_of_experts_beside_a_gated_layer() -> None:
    experts = ExpertConfig(3, 2, 48, True, shared_intermediate_size=80, shared_gate=True)
    config = tiny_config(layers=2)
    layers = (config.layers[0], LayerSpec(None, config.layers[0].rope, experts=True))
    found = parts(dataclasses.replace(config, layers=layers, experts=experts))
    assert "layers.0.mlp.gate" in found
    mixture = {name.removeprefix("layers.1.mlp."): shape for name, shape in found.items() if ".1.mlp." in name}
    assert list(mixture.items()) == [
        ("router", (3, 128)),
        *((f"experts.gate.{index}", (48, 128)) for index in range(3)),
        *((f"experts.up.{index}", (48, 128)) for index in range(3)),
        *((f"experts.down.{index}", (128, 48)) for index in range(3)),
        ("shared.gate", (80, 128)),
        ("shared.up", (80, 128)),
        ("shared.down", (128, 80)),
        ("shared_gate", (1, 128)),
    ]
