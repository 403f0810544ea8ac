"""PEFT's LoRA directories: what is read, and what is refused by its name."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.lora_files import lora_tensors, write_lora
from tests.peft_configs import PEFT_CONFIGS
from tests.tiny import tiny_config

from thrifty.arrays import BFLOAT16, Floats
from thrifty.errors import CheckpointError
from thrifty.models.adapters import MOST_RANK, Adapter, adaptable, check_adapter, load_adapter, open_adapter
from thrifty.models.huggingface.safetensors_file import TensorReader

CONFIG = tiny_config()
QUERY, UP = "layers.0.attention.query", "layers.2.mlp.up"


def small(names: tuple[str, ...] = (QUERY, UP), rank: int = 3) -> Adapter:
    random, shapes = np.random.default_rng(0), adaptable(CONFIG)

    def values(*shape: int) -> Floats:
        return random.standard_normal(shape, np.float32)

    return Adapter({name: (values(rank, shapes[name][1]), values(shapes[name][0], rank)) for name in names})


def test_matrices_and_the_scale_are_read(tmp_path: Path) -> None:
    adapter = small()
    write_lora(tmp_path, adapter, rank=3, alpha=6)
    loaded = load_adapter(tmp_path, CONFIG)
    assert set(loaded.weights) == {QUERY, UP}
    for name, matrices in adapter.weights.items():
        for found, wanted in zip(loaded.weights[name], matrices, strict=True):
            assert found.dtype == np.float32
            assert np.array_equal(found, wanted)
        assert loaded.scale_of(name) == 2.0
    assert loaded.nbytes == adapter.nbytes


@pytest.mark.parametrize("version", PEFT_CONFIGS)
def test_what_versions_of_peft_write_is_read(tmp_path: Path, version: str) -> None:
    adapter = small()
    write_lora(tmp_path, adapter, rank=3, alpha=6, **PEFT_CONFIGS[version])
    loaded = load_adapter(tmp_path, CONFIG)
    assert set(loaded.weights) == {QUERY, UP}
    assert loaded.scale_of(UP) == 2.0
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields == PEFT_CONFIGS[version], "nothing else is in it"


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_bytes_and_rank_are_known_before_a_matrix_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    adapter = Adapter({**small((QUERY,), 5).weights, **small((UP,), 3).weights})
    tensors = {name: value.astype(dtype) for name, value in lora_tensors(adapter).items()}
    write_lora(tmp_path, adapter, rank=3, alpha=6, tensors=tensors, rank_pattern={"q_proj": 5})
    with monkeypatch.context() as patched:
        patched.setattr(TensorReader, "read", None)
        opened = open_adapter(tmp_path, CONFIG)
        assert opened.rank == 5
        nbytes = opened.nbytes
    loaded = opened.load()
    assert (loaded.nbytes, loaded.rank) == (nbytes, 5)
    assert nbytes == adapter.nbytes, "fp32, whatever the file holds"


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_narrow_matrices_become_fp32_exactly(tmp_path: Path, dtype: Any) -> None:
    tensors = {name: value.astype(dtype) for name, value in lora_tensors(small()).items()}
    if dtype == BFLOAT16:
        pytest.importorskip("torch")
        import torch
        from safetensors.torch import save_file

        write_lora(tmp_path, small(), rank=3, alpha=3)
        wide = {name: torch.from_numpy(value.astype(np.float32)).bfloat16() for name, value in tensors.items()}
        save_file(wide, tmp_path / "adapter_model.safetensors")
    else:
        write_lora(tmp_path, small(), rank=3, alpha=3, tensors=tensors)
    down, _ = load_adapter(tmp_path, CONFIG).weights[QUERY]
    wanted = small().weights[QUERY][0].astype(dtype).astype(np.float32)
    assert np.array_equal(down, wanted)


def test_ranks_and_alphas_by_module_and_their_root(tmp_path: Path) -> None:
    wide, narrow = small((QUERY,), 5), small((UP,), 3)
    adapter = Adapter({**wide.weights, **narrow.weights})
    patterns = {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.2.mlp.up_proj": 12}}
    write_lora(tmp_path, adapter, rank=3, alpha=6, **patterns)
    loaded = load_adapter(tmp_path, CONFIG)
    assert loaded.scale_of(QUERY) == 6 / 5
    assert loaded.scale_of(UP) == 4.0
    write_lora(tmp_path, adapter, rank=3, alpha=6, use_rslora=True, **patterns)
    assert load_adapter(tmp_path, CONFIG).scale_of(QUERY) == 6 / math.sqrt(5)


def test_a_joined_module_is_taken_apart(tmp_path: Path) -> None:
    """phi3's qkv_proj: one `down` for three linears, the rows of `up` in their order."""
    shapes = adaptable(CONFIG)
    names = [f"layers.1.attention.{part}" for part in ("query", "key", "value")]
    random = np.random.default_rng(1)
    down = random.standard_normal((2, 128)).astype(np.float32)
    up = random.standard_normal((sum(shapes[name][0] for name in names), 2)).astype(np.float32)
    module = "base_model.model.model.layers.1.self_attn.qkv_proj"
    tensors = {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
    write_lora(tmp_path, small(), rank=2, alpha=2, tensors=tensors)
    loaded = load_adapter(tmp_path, CONFIG)
    assert loaded.nbytes == open_adapter(tmp_path, CONFIG).nbytes == down.nbytes + up.nbytes
    assert list(loaded.weights) == names
    assert np.array_equal(np.concatenate([loaded.weights[name][1] for name in names]), up)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; LORA is what is done"),
        ({"use_qalora": True, "qalora_group_size": 16}, "use_qalora is True, which is not done"),
        ({"use_bdlora": {"target_modules_bd_a": ["q_proj"]}}, "use_bdlora is "),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters is "),
        ({"trainable_token_indices": [3]}, r"trainable_token_indices is \[3\], which is not done"),
        ({"alora_invocation_tokens": [7, 8]}, r"alora_invocation_tokens is \[7, 8\]"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config is "),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga', which changes the base weights"),
        ({"use_dora": True}, "use_dora is True, which is not done"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\], which is not done"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"something_new": 3}, "something_new is 3, which is not done"),
        ({"r": 0}, "r is 0; it must be from 1"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "2"}, "lora_alpha is '2'"),
        ({"rank_pattern": {"(a+)+b": 3}}, "no regular expressions"),
        ({"rank_pattern": {"q_proj": 9}}, r"is \[3, 128\]; this model and its rank of 9 need \[9, 128\]"),
        ({"alpha_pattern": 5}, "alpha_pattern is 5; it must be a table"),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_lora(tmp_path, small(), rank=3, alpha=6, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(tmp_path, CONFIG)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    good = lora_tensors(small())
    first = next(iter(good))

    def refused(tensors: dict[str, Any], message: str) -> None:
        write_lora(tmp_path, small(), rank=3, alpha=6, tensors=tensors)
        with pytest.raises(CheckpointError, match=message):
            load_adapter(tmp_path, CONFIG)

    refused({**good, "base_model.model.lm_head.lora_embedding_A": good[first]}, "is none of a LoRA of linears")
    refused({name: value for name, value in good.items() if name != first}, "has lora_B alone; both are needed")
    refused({name.replace("q_proj", "z_proj"): value for name, value in good.items()}, "takes no adapter here")
    refused({name.replace("layers.0", "layers.9"): value for name, value in good.items()}, "takes no adapter here")
    refused({**good, first: good[first][:, :64]}, r"need \[3, 128\]")
    refused({**good, first: np.full_like(good[first], np.inf)}, "not finite")
    refused({first: good[first].astype(np.int8)} | {n: v for n, v in good.items() if n != first}, "type I8")
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="adapter_model.safetensors"):
        load_adapter(tmp_path, CONFIG)


def test_the_version_tells_contents_apart() -> None:
    adapter = small()
    assert adapter.version == Adapter(dict(adapter.weights)).version
    assert adapter.version != dataclasses.replace(adapter, scale=2.0).version
    other = {name: (down, up + np.float32(1)) for name, (down, up) in adapter.weights.items()}
    assert adapter.version != Adapter(other).version


def test_an_empty_adapter_is_refused() -> None:
    with pytest.raises(CheckpointError, match="holds no matrices"):
        check_adapter(Adapter({}), CONFIG)


def pair(rank: int = 2, **more: Any) -> tuple[Any, Any]:
    """(down, up) of QUERY, or what is given instead."""
    rows, columns = adaptable(CONFIG)[QUERY]
    return more.get("down", np.ones((rank, columns), np.float32)), more.get("up", np.ones((rows, rank), np.float32))


@pytest.mark.parametrize(
    ("weights", "more", "message"),
    [
        ({QUERY: pair(down=np.full((2, 128), np.nan, np.float32))}, {}, "down of .* not finite"),
        ({QUERY: pair(up=np.full((256, 2), np.inf, np.float32))}, {}, "up of .* not finite"),
        ({QUERY: pair(MOST_RANK + 1)}, {}, f"of rank 1 to {MOST_RANK}"),
        ({QUERY: pair(0)}, {}, f"of rank 1 to {MOST_RANK}"),
        ({QUERY: pair(down=np.float32(1))}, {}, "down of .* expected float32"),
        ({QUERY: pair(down=np.array(1, np.float32))}, {}, "down of .* expected float32"),
        ({QUERY: pair(down=[[1.0] * 128] * 2)}, {}, "down of .* expected float32"),
        ({QUERY: pair(down=None)}, {}, "down of .* is None; expected float32"),
        ({QUERY: pair(up=None)}, {}, "up of .* is None; expected float32"),
        ({QUERY: None}, {}, "use two float32 arrays"),
        ({QUERY: (pair()[0],)}, {}, "use two float32 arrays"),
        ([pair()], {}, "are mappings"),
        (None, {}, "are mappings"),
        ({3: pair()}, {}, "3 takes no adapter"),
        ({QUERY: pair()}, {"scale": math.nan}, "the scale of .* use a finite number"),
        ({QUERY: pair()}, {"scale": "1"}, "the scale of .* use a finite number"),
        ({QUERY: pair()}, {"scale": True}, "the scale of .* use a finite number"),
        ({QUERY: pair()}, {"scales": {QUERY: math.inf}}, "the scale of .* use a finite number"),
        ({QUERY: pair()}, {"scales": {"head": 1.0}}, "'head' takes no adapter"),
        ({QUERY: pair()}, {"scales": None}, "are mappings"),
    ],
)
def test_what_is_no_adapter_is_refused(weights: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_adapter(Adapter(weights, **more), CONFIG)


def test_matrices_become_contiguous_and_shared_ones_stay_shared() -> None:
    down, up = pair()
    key = QUERY.replace("query", "key")
    short = np.ones((adaptable(CONFIG)[key][0], 2), np.float32)
    shared = np.asfortranarray(down)
    adapter = Adapter({QUERY: (shared, up), key: (shared, short)})
    check_adapter(adapter, CONFIG)
    matrices = [matrix for pair in adapter.weights.values() for matrix in pair]
    assert all(matrix.flags.c_contiguous and not matrix.flags.writeable for matrix in matrices)
    assert adapter.weights[QUERY][0] is adapter.weights[key][0]
    assert adapter.nbytes == down.nbytes + up.nbytes + short.nbytes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 3.0}, "r is 3.0; .* a whole number"),
        ({"rank_pattern": {"q_proj": 3.5}}, "rank_pattern.q_proj is 3.5; .* a whole number"),
        ({"use_rslora": "false"}, "use_rslora is 'false'; it must be true or false"),
        ({"use_rslora": 0}, "use_rslora is 0; it must be true or false"),
        ({"use_dora": 0}, "use_dora is 0; it must be true or false"),
    ],
)
def test_fields_of_other_types_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write_lora(tmp_path, small(), rank=3, alpha=6, **fields)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lora_A.weight", "lora_A.default.weight", "are one tensor; keep one"),
        ("base_model.model.", "", "are one tensor; keep one"),
    ],
)
def test_two_spellings_of_a_tensor_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    tensors = lora_tensors(small((QUERY,)))
    tensors |= {name.replace(old, new): value for name, value in tensors.items()}
    write_lora(tmp_path, small(), rank=3, alpha=6, tensors=tensors)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(tmp_path, CONFIG)


def test_a_linear_that_two_modules_adapt_is_refused(tmp_path: Path) -> None:
    shapes = adaptable(CONFIG)
    names = [f"layers.0.attention.{part}" for part in ("query", "key", "value")]
    module = "base_model.model.model.layers.0.self_attn.qkv_proj"
    rows = sum(shapes[name][0] for name in names)
    tensors = {**lora_tensors(small((QUERY,)))}
    tensors[f"{module}.lora_A.weight"] = np.ones((3, 128), np.float32)
    tensors[f"{module}.lora_B.weight"] = np.ones((rows, 3), np.float32)
    write_lora(tmp_path, small(), rank=3, alpha=6, tensors=tensors)
    with pytest.raises(CheckpointError, match=f"gives {QUERY} a second pair"):
        load_adapter(tmp_path, CONFIG)
