"""`thrifty roofline`: from a folder's config alone, in people's and in programs' form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import quantised_files
from tests.checkpoint import write_checkpoint


@pytest.fixture
def config_only(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "llama")
    (folder / "model.safetensors").unlink()
    return folder


def test_the_document_adds_up(thrifty: Callable[..., Any], config_only: Path) -> None:
    found = thrifty("roofline", config_only, "--machine", "rtx-4090", "--length", 1000, "--batch", 3, "--json")
    assert found.code == 0, found.err
    document = found.json()
    assert document["fits"] and document["machine"]["name"] == "rtx-4090"
    for name, tokens in (("decode", 3), ("prefill", 3000)):
        step = document[name]
        ones = [one for group in step["classes"] for one in group["operations"]]
        assert step["seconds"] == pytest.approx(sum(one["seconds"] for one in ones))
        assert step["tok_s"] == pytest.approx(tokens / step["seconds"], rel=1e-3)
        for key in ("operations", "weight_bytes", "cache_bytes"):
            assert step[key] == sum(one[key] for one in ones)
    assert [len(group["layers"]) for group in document["decode"]["classes"]] == [2, 0]


def test_a_recipe_changes_what_is_read(thrifty: Callable[..., Any], config_only: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rtn"\nbits = 4\n[[cache]]\ntechnique = "kivi"\nbits = 2\n')
    words = ("roofline", config_only, "--machine", "l4", "--json")
    plain = thrifty(*words).json()["decode"]
    small = thrifty(*words, "--recipe", recipe).json()["decode"]
    assert small["weight_bytes"] < plain["weight_bytes"] * 0.6
    assert small["cache_bytes"] < plain["cache_bytes"] * 0.3
    assert small["seconds"] < plain["seconds"]


def test_the_tables_fold_equal_layers(thrifty: Callable[..., Any], config_only: Path) -> None:
    out = thrifty("roofline", config_only, "--machine", "raspberry-pi-5").out
    assert "2 × layer" in out and "gate and up" in out and "compute" in out and "memory" in out
    assert "tokens a second" in out and "fits" in out


def test_what_does_not_fit_says_by_how_much(thrifty: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "large", context=1 << 20)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126}
    config |= {"num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128}
    (folder / "config.json").write_text(json.dumps(config))
    out = thrifty("roofline", folder, "--machine", "rtx-4090").out
    assert "does not fit" in out and "are missing" in out


def test_the_list_of_machines(thrifty: Callable[..., Any]) -> None:
    found = thrifty("roofline", "--list", "--json").json()
    assert len(found) >= 15 and all(one["source"] for one in found)
    assert "rtx-4090" in thrifty("roofline", "--list").out


def test_this_machine_is_the_default(
    thrifty: Callable[..., Any], config_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.evaluation.roofline import roofline

    monkeypatch.setattr(roofline, "read_bandwidth", lambda threads, megabytes: (10.0, "native"))
    monkeypatch.setattr(roofline, "gemm_rate", lambda: (100.0, "native"))
    document = thrifty("roofline", config_only, "--json").json()
    assert document["machine"]["bandwidth_gb_s"] == 10.0
    assert document["decode"]["seconds"] >= document["decode"]["weight_bytes"] / 10e9


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--machine", "rtx-409"), 1, "no machine is called 'rtx-409'. Did you mean 'rtx-4090'?"),
        (("--machine", "l4", "--length", "5000"), 1, "length 5000 is beyond what"),
        (("--machine", "l4", "--batch", "0"), 2, "Invalid value for '--batch'"),
    ],
)
def test_mistakes(
    thrifty: Callable[..., Any], config_only: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    found = thrifty("roofline", config_only, *words)
    assert found.code == code and message in found.message


def test_a_model_is_needed(thrifty: Callable[..., Any]) -> None:
    found = thrifty("roofline")
    assert found.code == 2 and "name a model, or use --list" in found.message


def test_a_quantised_folder_counts_its_own_bits(thrifty: Callable[..., Any], tmp_path: Path) -> None:
    folder = quantised_files.write(tmp_path / "gptq", quantised_files.LAYOUTS["gptq4-g128"])
    config = json.loads((folder / "config.json").read_text())
    words = ("roofline", folder, "--machine", "l4", "--json")
    head = 2 * config["vocab_size"] * config["hidden_size"]  # the embedding, which is not quantised
    codes = thrifty(*words).json()["decode"]["weight_bytes"] - head
    (folder / "model.safetensors").unlink()
    plain = thrifty(*words).json()["decode"]["weight_bytes"] - head
    assert 4 / 16 < codes / plain < 4.5 / 16


def test_a_recipes_decoding_counts(thrifty: Callable[..., Any], config_only: Path, tmp_path: Path) -> None:
    """A step of five rows reads weights and cache once and computes five times; a model that drafts comes on top."""
    recipe, words = tmp_path / "recipe.toml", ("roofline", config_only, "--machine", "l4", "--length", 512)
    plain = thrifty(*words, "--json").json()
    recipe.write_text('[[decoding]]\ntechnique = "prompt-lookup"\nlength = 4\n')
    looked = thrifty(*words, "--json", "--recipe", recipe).json()
    assert looked["rows"] == 5 and looked["draft"] is None and plain["rows"] == 1
    assert looked["decode"]["weight_bytes"] == plain["decode"]["weight_bytes"]
    assert looked["decode"]["cache_bytes"] == plain["decode"]["cache_bytes"]
    assert looked["decode"]["operations"] == 5 * plain["decode"]["operations"]
    assert looked["decode"]["tok_s"] == pytest.approx(5 / looked["decode"]["seconds"], rel=1e-3)
    recipe.write_text(f'[[decoding]]\ntechnique = "speculative"\ndraft = "{config_only}"\nlength = 4\n')
    drafted = thrifty(*words, "--json", "--recipe", recipe).json()
    own, draft = looked["decode"]["seconds"], drafted["draft"]
    assert draft["decode_seconds"] == pytest.approx(4 * plain["decode"]["seconds"])
    assert drafted["decode"]["seconds"] == pytest.approx(own + draft["decode_seconds"])
    assert drafted["prefill"]["seconds"] == pytest.approx(2 * plain["prefill"]["seconds"])
    assert draft["weights_bytes"] == plain["weights_bytes"]
    out = thrifty(*words, "--recipe", recipe).out
    assert "one token and 4 drafted ones" in out and "of 5 rows, were all drafts taken" in out
    assert "the model that drafts takes" in out
