"""`thrifty models`: what a file is, and the converted copies: listed, checked, removed."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf.constants import GGMLQuantizationType as Type
from tests import gguf_files
from tests.tiny import hybrid_config, tiny_config, tiny_model

from thrifty.arrays import BFLOAT16
from thrifty.cli.shared import model_facts
from thrifty.engine.engine import Engine
from thrifty.evaluation.roofline import sizes
from thrifty.formats.linear import DenseLinear
from thrifty.frontier.candidates import BASE, of_recipe
from thrifty.frontier.predict import as_stored as sizes_as_stored
from thrifty.frontier.predict import predict
from thrifty.kernels import dispatch
from thrifty.models.config.model_config import ExpertConfig, LayerSpec, RopeConfig
from thrifty.models.inspection import inspect
from thrifty.models.loading import load
from thrifty.models.store import cache_directory, cache_entry, copies
from thrifty.recipe import Recipe
from thrifty.storage.budget import parse_size


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tiny Llama with 4-bit queries, half floats and fp32."""
    return gguf_files.tiny(tmp_path / "model.gguf", attn_q=Type.Q4_0, ffn_gate=Type.Q8_0, ffn_up=Type.F16)


def test_a_damaged_copy_is_named_and_removed(thrifty: Callable[..., Any], checkpoint: Path, cache: Path) -> None:
    load(checkpoint)
    (weights,) = cache.glob("converted/*/weights.bin")
    outcome = thrifty("models", "--check", "--json")
    assert [entry["faults"] for entry in outcome.json()] == [[], []]
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    outcome = thrifty("models", "--check", "--json")
    assert [(entry["faults"], entry["removed"]) for entry in outcome.json()] == [
        (["embedding/weight"], True),
        ([], False),
    ]
    assert not weights.exists()
    assert "sound" in thrifty("models", "--check").out
    load(checkpoint)
    assert weights.exists()


def test_check_and_recipe_are_two_questions(thrifty: Callable[..., Any], cache: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rtn"\n')
    outcome = thrifty("models", "--check", "--recipe", recipe)
    assert outcome.code != 0
    assert "--check looks at the cache, --recipe at models: give one of them" in outcome.message
    outcome = thrifty("models", "smollm2-135m", "--copies")
    assert outcome.code == 2 and "MODEL and --copies are different questions; ask one at a time" in outcome.message


def test_a_file_is_shown_without_converting_it(thrifty: Callable[..., Any], file: Path, cache: Path) -> None:
    found = thrifty("models", file, "--json", "--contexts", "16,64").json()
    assert not list(cache.glob("converted/*"))
    assert (found["format"], found["architecture"], found["bytes"]) == ("GGUF", "llama", file.stat().st_size)
    types = {entry["type"]: entry for entry in found["tensors"]}
    assert set(types) == {"Q4_0", "Q8_0", "F16", "F32"}
    assert types["Q4_0"]["exact"] and types["Q8_0"]["exact"]
    assert not types["F32"]["exact"] and 0 < types["F32"]["error"] < 0.01 and types["F32"]["stored"] == ["bf16"]
    assert sum(entry["parameters"] for entry in found["tensors"]) == found["parameters"]
    assert found["tokenizer"]["chat_template"].startswith("{% for m in messages %}")
    assert "<|im_end|>" in found["tokenizer"]["special_tokens"].values()
    assert found["copy"] is None
    assert [one["context"] for one in found["memory"]] == [16, 64]
    assert all(one["together"] == one["weights"] + one["cache"] > one["cache"] > 0 for one in found["memory"])
    assert found["fit"]["smallest"] < found["fit"]["as_shipped"]
    assert found["fit"]["example"].startswith(f"thrifty fit {file} --memory ")
    shown = thrifty("models", file).out
    for words in (
        "architecture llama",
        "Q4_0",
        "kept exactly",
        "rounded:",
        "<|im_start|>",
        "takes no tools",
        "thrifty fit",
    ):
        assert words in shown


def test_what_was_converted_tells_of_all_tensors(thrifty: Callable[..., Any], file: Path, cache: Path) -> None:
    before = thrifty("models", file, "--json").json()
    model = load(file)
    after = thrifty("models", file, "--json").json()
    assert after["copy"]["path"].startswith(str(cache)) and after["copy"]["bytes"] > model.nbytes
    for one, other in zip(before["tensors"], after["tensors"], strict=True):
        assert {**one, "error": 0, "largest_error": 0, "looked_at": 0} == {
            **other, "error": 0, "largest_error": 0, "looked_at": 0
        }  # fmt: skip
        assert other["error"] >= 0 and (one["looked_at"], other["looked_at"]) == ("one tensor", "all tensors")
    largest = max(entry.largest_error for entry in model.report)
    assert max(entry["largest_error"] for entry in after["tensors"]) == largest > 0


def test_sizes_of_a_file_are_its_own_bytes(file: Path, cache: Path) -> None:
    facts, model = inspect(file), load(file)
    found, loaded = sizes.of_file(facts.config, facts.tensors), sizes.of_model(model)
    assert [one.name for one in found.linears] == [one.name for one in loaded.linears] and found.rest == loaded.rest
    held = {tensor.names[0]: tensor for tensor in facts.tensors}
    for one, other in zip(found.linears, loaded.linears, strict=True):
        tensor = held[one.name]
        assert (one.rows, one.columns, one.has_bias) == (other.rows, other.columns, other.has_bias)
        assert one.nbytes == (other.nbytes if tensor.type == "F32" else tensor.nbytes)
        assert one.label == ("bf16" if tensor.type == "F32" else tensor.type.lower())


def test_a_recipe_changes_the_memory(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[weights]]\ntechnique = "rtn"\n[[cache]]\ntechnique = "kivi"\nbits = 2\n')
    (plain,) = thrifty("models", checkpoint, "--json", "--contexts", "2048").json()["memory"]
    (small,) = thrifty("models", checkpoint, "--json", "--contexts", "2048", "--recipe", recipe).json()["memory"]
    assert small["weights"] < plain["weights"] and small["cache"] < plain["cache"]
    refused = thrifty("models", checkpoint, "--contexts", "9999999")
    assert (
        refused.code == 1 and "context 9999999 is beyond what this model was made for; use 1 to 4096" in refused.message
    )


def test_what_a_model_that_drafts_takes_is_said_to_be_unknown(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[decoding]]\ntechnique = "speculative"\ndraft = "smollm2-135m"\n')
    assert thrifty("models", checkpoint, "--json", "--recipe", recipe).json()["drafts"] == ["smollm2-135m"]
    told = thrifty("models", checkpoint, "--recipe", recipe).out
    assert "What smollm2-135m takes, which drafts for it, is not in these figures" in " ".join(told.split())
    assert "drafts for it" not in thrifty("models", checkpoint).out


CONFIGS = {
    "attention": tiny_config(),
    "hybrid": hybrid_config("rawr"),
    "large vocabulary": tiny_config(vocabulary_size=5000),
    "experts": dataclasses.replace(
        tiny_config(2),
        layers=(LayerSpec(None, RopeConfig(theta=10000.0, dimension=64), experts=True),) * 2,
        experts=ExpertConfig(4, 2, 48, True),
    ),
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("context", [64, 2048])
@pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")
def test_what_is_advised_fits(name: str, context: int) -> None:
    """The example's budget holds the workspace too: a recipe fits in the middle between the least and the whole."""
    model = tiny_model(config=CONFIGS[name])
    for part, linear in model.linears.items():
        model.replace(part, DenseLinear.from_weight(linear.dequantize(), BFLOAT16, True))
    fit = model_facts._fit("x", sizes.of_model(model), context)
    budget = parse_size(fit["example"].split()[4])
    engine, smallest = Engine(model, prefix_tree=False), Recipe.from_document(model_facts.SMALLEST)
    try:
        assert engine.probe().workspace <= fit["workspace"] <= 2 * engine.probe().workspace
        rounded = sizes_as_stored(sizes.of_model(model), smallest.techniques("weights"))
        recipes = (smallest, Recipe(weights=smallest.weights))
        peaks = [predict(engine, of_recipe(recipe), context, sizes=rounded).peak for recipe in recipes]
        assert min(peaks) <= budget < predict(engine, BASE, context).peak * 1.3
    finally:
        engine.close()


def test_what_is_no_model_is_refused_with_the_nearest(thrifty: Callable[..., Any], cache: Path, tmp_path: Path) -> None:
    refused = thrifty("models", "smolm2-135m")
    assert refused.code == 1 and "Did you mean 'smollm2-135m'" in refused.message
    other = tmp_path / "notes.txt"
    other.write_text("no model at all, only some words")
    refused = thrifty("models", other, "--json")
    assert refused.code == 1 and "not a GGUF file" in refused.json()["error"]


def test_copies_are_listed_with_their_sizes_and_where_they_are_from(
    thrifty: Callable[..., Any], checkpoint: Path, file: Path, cache: Path
) -> None:
    assert "There are no converted copies" in thrifty("models", "--copies").out
    load(checkpoint)
    load(file)
    found = thrifty("models", "--copies", "--json").json()
    assert {entry["checkpoint"] for entry in found} == {str(checkpoint.resolve()), str(file.resolve())}
    for entry in found:
        assert entry["bytes"] == sum(part.stat().st_size for part in Path(entry["path"]).iterdir()) and entry["usable"]
    shown = thrifty("models", "--copies").out
    assert str(file) in shown and "2 together" in shown
    assert "2 converted copies take" in thrifty("models").message


def test_a_copy_is_removed_by_its_checkpoint_once_that_is_confirmed(
    thrifty: Callable[..., Any], checkpoint: Path, file: Path, cache: Path
) -> None:
    load(checkpoint)
    load(file)
    refused = thrifty("models", "--remove", file)
    assert refused.code == 2 and "nobody can be asked here; --yes removes 1 copies" in refused.message
    assert len(copies.copies()) == 2
    removed = thrifty("models", "--remove", file, "--yes", "--json").json()
    assert [entry["checkpoint"] for entry in removed] == [str(file.resolve())] and file.is_file()
    assert [copy.origin for copy in copies.copies()] == [checkpoint.resolve()]
    assert len(list(cache.glob("descriptions/[!.]*"))) == 1, "what was read of the file beside its weights went too"
    load(file)
    assert "removed 2 converted copies" in thrifty("models", "--remove", "all", "--yes").out
    assert not copies.copies()


def test_removal_asks_on_a_terminal(
    thrifty: Callable[..., Any], checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(checkpoint)
    (copy,) = copies.copies()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    answers = iter([False, True])
    monkeypatch.setattr("typer.confirm", lambda text, err: next(answers))
    kept = thrifty("models", "--remove", copy.path.name[:8])
    assert kept.code == 1 and "nothing was removed" in kept.message and copy.path.is_dir()
    assert thrifty("models", "--remove", copy.path.name[:8]).code == 0 and not copy.path.exists()


def test_a_word_that_names_no_copy_is_refused(thrifty: Callable[..., Any], checkpoint: Path, cache: Path) -> None:
    refused = thrifty("models", "--remove", "smollm2-135m", "--yes")
    assert refused.code == 1 and "names no converted copy. There are no copies." in refused.message
    load(checkpoint)
    assert "names no converted copy" in thrifty("models", "--remove", "smollm2", "--yes").message


def test_a_checkpoint_that_changed_has_no_copy(checkpoint: Path, file: Path, cache: Path) -> None:
    load(file)
    assert copies.copy_of(file) is not None
    made = copies.copies()[0].path / "weights.bin"
    later = made.stat().st_mtime + 10
    os.utime(file, (later, later))
    assert copies.copy_of(file) is None and inspect(file).copy is None


def test_what_a_killed_conversion_left_is_listed_and_removed(
    thrifty: Callable[..., Any], file: Path, cache: Path
) -> None:
    load(file)
    (copy,) = copies.copies()
    left = copy.path.with_name(f".{copy.path.name}.partial")
    copy.path.rename(left)
    (entry,) = thrifty("models", "--copies", "--json").json()
    assert (entry["path"], entry["usable"], entry["checkpoint"]) == (str(left), False, str(file.resolve()))
    assert entry["bytes"] > 0 and "unfinished" in thrifty("models", "--copies").out
    with cache_directory.locked(cache_entry.lock_of(left)):
        assert copies.copies() == [], "somebody is at work on it"
    assert thrifty("models", "--remove", copy.path.name[:6], "--yes").code == 0 and not left.exists()
    assert "There are no such copies." in thrifty("models", "--remove", "all", "--yes").out


def test_a_truncated_copy_is_unusable_and_goes_alone(
    thrifty: Callable[..., Any], checkpoint: Path, file: Path, cache: Path
) -> None:
    load(checkpoint)
    load(file)
    sound, torn = sorted(copies.copies(), key=lambda copy: copy.origin == file.resolve())
    with (torn.path / "weights.bin").open("r+b") as weights:
        weights.truncate(1000)
    listed = {entry["path"]: entry for entry in thrifty("models", "--copies", "--json").json()}
    assert listed[str(sound.path)]["usable"] and listed[str(sound.path)]["fault"] is None
    assert listed[str(torn.path)]["fault"] == "damaged: weights.bin has a wrong size"
    assert copies.copy_of(file) is None
    removed = thrifty("models", "--remove", "unusable", "--yes", "--json").json()
    assert [entry["path"] for entry in removed] == [str(torn.path)] and not torn.path.exists()
    assert [copy.path for copy in copies.copies()] == [sound.path]
    assert thrifty("models", "--remove", "unusable", "--yes", "--json").json() == []


def test_of_two_copies_of_a_checkpoint_the_other_keeps_what_is_beside_it(file: Path, cache: Path) -> None:
    load(file)
    (copy,) = copies.copies()
    older = copy.path.with_name(f"{copy.key}-1")
    shutil.copytree(copy.path, older)
    (first,) = [copy for copy in copies.copies() if copy.path == older]
    assert first.fault == "of another version"
    copies.remove(first)
    assert copies.copies() == [copy] and copy.origin == file.resolve()
    assert list(cache.glob("descriptions/[!.]*"))


def test_a_word_that_is_too_short_is_told_so(thrifty: Callable[..., Any], file: Path, cache: Path) -> None:
    load(file)
    (copy,) = copies.copies()
    refused = thrifty("models", "--remove", copy.key[:5], "--yes")
    assert refused.code == 1 and "is too short: give 6 digits of a copy's name at least" in refused.message
