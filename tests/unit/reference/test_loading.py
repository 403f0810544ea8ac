"""A model in torch: it reads the packed model's own memory, and plain weights are exact and train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.checkpoint import write_checkpoint
from tests.tiny import text_tokens, tiny_model

from thrifty import models, reference
from thrifty.errors import CheckpointError, MissingExtra
from thrifty.models.model import Model
from thrifty.reference.loading import ReferenceModel, build

TOKENS = text_tokens(40)


def pointers(model: Model) -> dict[str, int]:
    """Where the arrays of plain linears, biases and norms lie."""
    found = {f"{name}.weight": norm.ctypes.data for name, norm in model.norms.items()}
    for name, linear in model.linears.items():
        for part, array in linear.state().items():
            found[f"{name}.{part}"] = array.ctypes.data
    return found


@pytest.mark.parametrize("packed", [True, False])
def test_the_decoder_reads_the_models_own_memory(packed: bool) -> None:
    model = tiny_model(packed)
    decoder = build(model).decoder
    places = pointers(model)
    for name, parameter in decoder.named_parameters():
        assert parameter.data_ptr() == places[name], name
    assert {name for name, _ in decoder.linears()} == set(model.linears)
    for name, linear in decoder.linears():
        assert linear.stored is model.linears[name]


def test_a_change_of_the_packed_arrays_is_a_change_of_the_reference() -> None:
    model = tiny_model(packed=True)
    made = build(model)
    before = made.logits(TOKENS)
    model.linears["layers.2.mlp.down"].scales[...] *= np.float16(2)  # type: ignore[attr-defined]
    assert not torch.equal(made.logits(TOKENS), before)


def test_a_loaded_model_is_the_packed_one_without_a_copy(cache: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model")
    made = reference.load(path)
    assert made.model.version == models.load(path).version
    for name, parameter in made.decoder.named_parameters():
        assert parameter.data_ptr() == pointers(made.model)[name] and not parameter.requires_grad
    assert made.tokenizer.decode(made.tokenizer.encode("abc")) == "abc"
    assert made.config is made.model.config


def test_plain_weights_are_the_checkpoints_and_train(cache: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path = write_checkpoint(tmp_path / "model")
    stored = load_file(path / "model.safetensors")
    made = reference.load(path, dtype=torch.float32)
    weight = made.decoder.get_parameter("layers.1.mlp.up.weight")
    assert np.array_equal(weight.detach().numpy(), stored["model.layers.1.mlp.up_proj.weight"])
    before = losses(made)
    optimizer = torch.optim.SGD(made.decoder.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        losses(made).backward()
        optimizer.step()
    assert losses(made) < before - 0.05
    assert np.array_equal(load_file(path / "model.safetensors")["model.norm.weight"], stored["model.norm.weight"])


def losses(made: ReferenceModel) -> torch.Tensor:
    from thrifty.reference.attention import causal

    ids = torch.tensor(TOKENS)
    logits = made.decoder(ids[:-1], torch.arange(len(ids) - 1), causal(made.config))
    return torch.nn.functional.cross_entropy(logits, ids[1:])


def test_half_precision_is_the_other_plain_type(cache: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model")
    half, whole = (reference.load(path, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    assert half.decoder.get_parameter("embedding.weight").dtype == torch.bfloat16
    assert half.model.version.endswith("-bfloat16") and half.model.version != whole.model.version
    ids = half.tokenizer.encode("some text")
    assert 0 < (half.logits(ids) - whole.logits(ids)).abs().max() < 0.05 * whole.logits(ids).abs().max()
    with pytest.raises(CheckpointError, match=r"dtype is torch.float16; it must be torch.float32, torch.bfloat16"):
        reference.load(path, dtype=torch.float16)


def test_the_room_is_imported_without_torch_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, thrifty.reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"thrifty.reference needs torch.*pip install 'thrifty-engine\[torch\]'"):
        reference.load("nothing")
    with pytest.raises(AttributeError, match="has no attribute 'lead'"):
        reference.lead  # type: ignore[attr-defined]  # noqa: B018
