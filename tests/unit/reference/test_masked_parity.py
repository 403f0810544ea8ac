"""A masked-diffusion checkpoint in Dream's layout: what is read and refused, its passes against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.reference.test_decoder_parity import SIZES, TOLERANCE, load_plain, oracle

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import ConfigError
from thrifty.models.config.huggingface import from_huggingface
from thrifty.models.config.model_config import as_dict, from_dict
from thrifty.models.huggingface.source import HuggingFaceSource
from thrifty.models.loading import assemble

MASK = 96


def dream(folder: Path) -> Any:
    """A random Qwen2 of transformers, saved as Dream's checkpoints are."""
    model = oracle("Qwen2", {"num_key_value_heads": 2}, seed=4)
    model.save_pretrained(folder)
    data = json.loads((folder / "config.json").read_text())
    for field in ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers"):
        data.pop(field, None)
    own = {"model_type": "Dream", "architectures": ["DreamModel"], "mask_token_id": MASK, "use_mrope": False}
    auto = {"auto_map": {"AutoModel": "modeling_dream.DreamModel"}, "max_window_layers": 28, "sliding_window": None}
    (folder / "config.json").write_text(json.dumps(data | own | auto))
    return model


def both_ways(model: Any, tokens: list[int], prompt: int) -> Any:
    """transformers' logits where the prompt sees the prompt, and the canvas all."""
    visible = torch.zeros(1, 1, len(tokens), len(tokens))
    visible[..., :prompt, prompt:] = torch.finfo(torch.float32).min
    with torch.no_grad():
        return model(torch.tensor([tokens]), attention_mask=visible).logits[0].numpy()


def test_a_pass_equals_transformers_with_a_full_mask(tmp_path: Path) -> None:
    """The canvas's choices in one pass that fills in everything: the engine's tokens are those of the oracle."""
    model = dream(tmp_path)
    own = assemble(HuggingFaceSource(tmp_path), np.dtype(np.float32))
    assert own.config.mask_id == MASK and own.config.attention_bias and own.config.family == "Dream"
    prompt = [3 + (7 * place) % 80 for place in range(30)]
    engine = Engine(own, native=False)
    try:
        sampling = SamplingParameters(max_tokens=12, ignore_eos=True)
        decoding = [{"technique": "lavida", "length": 10, "ratio": 0.1}]
        found = engine.submit(Request(prompt=prompt, sampling=sampling, decoding=decoding)).result().token_ids
    finally:
        engine.close()
    first = both_ways(model, prompt, len(prompt))[-1]
    first[MASK] = -np.inf
    tokens = [*prompt, int(first.argmax()), *[MASK] * 10]
    logits = both_ways(model, tokens, len(prompt))[len(prompt) : len(prompt) + 10]
    logits[:, MASK] = -np.inf
    assert found[:11] == [int(first.argmax()), *logits.argmax(1).tolist()]
    full = both_ways(model, [*prompt, *found[:11]], len(prompt))[-1]
    full[MASK] = -np.inf
    assert found[11] == int(full.argmax())


def test_causal_logits_are_those_of_the_same_weights(tmp_path: Path) -> None:
    model = dream(tmp_path)
    ids = torch.arange(3, 40)
    with torch.no_grad():
        theirs = model(ids[None]).logits[0]
    assert (load_plain(tmp_path).logits(ids) - theirs).abs().max() < TOLERANCE


DREAM = {**SIZES, "model_type": "Dream", "mask_token_id": MASK, "rms_norm_eps": 1e-6}


def test_the_config_goes_through_its_own_words() -> None:
    config = from_huggingface(DREAM)
    assert config.mask_id == MASK and config.attention_bias
    assert from_dict(as_dict(config)) == config
    assert not from_huggingface({**DREAM, "qkv_bias": False}).attention_bias


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token_id": 97}, "mask_token_id is 97.* 96"),
        ({"mask_token_id": None}, "mask_token_id"),
        ({"mask_token_id": -1}, "mask_token_id"),
        ({"mask_token_id": "x"}, "mask_token_id"),
    ],
)
def test_a_mask_that_is_no_token_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_huggingface({**DREAM, **change})


def test_layers_with_windows_do_not_see_both_ways() -> None:
    data = as_dict(from_huggingface(DREAM))
    data["layers"][1]["window"] = 16
    with pytest.raises(ConfigError, match="mask_token_id is 96, and a layer is recurrent or has a window"):
        from_dict(data)
