"""Random weights for speed: the types of llama.cpp's mixture, and values of a size that a model has."""

from __future__ import annotations

from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf", reason="the peers' environment has it")
import numpy as np  # noqa: E402
from benchmarks.peer_engines import random_llama  # noqa: E402
from benchmarks.peer_engines.random_llama import DEVIATION, Shape, write_random_llama  # noqa: E402


@pytest.mark.parametrize("mixture", ["Q4_0", "Q4_1", "Q4_K_M"])
def test_the_values_of_every_matrix_have_about_the_deviation(
    mixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(random_llama.SHAPES, "tiny", Shape(256, 8, 4, 2, 512, 300, mixture))
    write_random_llama(tmp_path / "tiny.gguf", "tiny")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    for name, tensor in tensors.items():
        if len(tensor.shape) == 2:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert 0.5 * DEVIATION < np.std(values) < 2 * DEVIATION, name
    if mixture == "Q4_K_M":
        six = {name for name, tensor in tensors.items() if tensor.tensor_type.name == "Q6_K"}
        assert "output.weight" in six and "token_embd.weight" not in six
        assert {f"blk.{layer}.ffn_down.weight" for layer in (0, 3, 6, 7)} == {n for n in six if "down" in n}
