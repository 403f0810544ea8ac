"""`thrifty compress`, and the folder it makes in the place of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint import write_checkpoint

from thrifty.cli.shared import format_list
from thrifty.cli.shared.progress import Steps
from thrifty.formats.packed import formats
from thrifty.models.loading import load


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text('[[weights]]\ntechnique = "rtn"\nbits = 4\nembedding_bits = 8\n')
    return path


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed tiny Llama."""
    from thrifty.recipe import Recipe
    from thrifty.weights.compressing.pipeline import compress

    folder = tmp_path_factory.mktemp("compressed")
    model = load(write_checkpoint(folder / "llama"))
    compress(model, Recipe(weights=[{"technique": "rtn"}]), folder / "out")
    return folder / "out"


def test_a_model_is_compressed_and_told_of(
    thrifty: Callable[..., Any], checkpoint: Path, recipe: Path, tmp_path: Path
) -> None:
    outcome = thrifty("compress", checkpoint, "--recipe", recipe, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "bits per weight (5.000 in the layers, error 0.0" in outcome.out
    labels = {name: linear.label for name, linear in load(tmp_path / "out").linears.items()}
    assert labels.pop("embedding") == "int8-g32" and set(labels.values()) == {"int4-g32"}
    again = thrifty("compress", checkpoint, "--recipe", recipe, "-o", tmp_path / "out", "--json")
    assert again.code == 1 and "--force" in again.json()["error"]
    forced = thrifty("compress", checkpoint, "--recipe", recipe, "-o", tmp_path / "out", "--json", "--force")
    told = forced.json()
    assert told["path"] == str(tmp_path / "out") and told["totals"]["layers_bits_per_weight"] == 5.0


def test_the_size_of_the_calibration_text_is_chosen(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    path, text = tmp_path / "r.toml", tmp_path / "text.txt"
    path.write_text('[[weights]]\ntechnique = "gptq"\nlayers = [0]\n')
    text.write_text("A river runs to the sea, and the sea gives it back as rain. " * 40)
    size = ("--calibration-sequences", "3", "--calibration-tokens", "8")
    for place, given in enumerate([("--calibration", text), ()]):
        outcome = thrifty(
            "compress", checkpoint, "--recipe", path, "-o", tmp_path / str(place), *given, *size, "--json"
        )
        assert outcome.code == 0, outcome.err
        assert outcome.json()["calibration"].startswith("text.txt:3x8:" if given else "thrifty-docs:3x8:")


def test_other_stages_go_into_a_recipe_of_their_own(
    thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "r.toml", tmp_path / "out"
    path.write_text('[[weights]]\ntechnique = "rtn"\n[[cache]]\ntechnique = "kivi"\nbits = 4\n')
    outcome = thrifty("compress", checkpoint, "--recipe", path, "-o", out)
    assert outcome.code == 0 and f"--recipe {out / 'run.toml'}" in outcome.out
    assert "kivi" in (out / "run.toml").read_text() and "kivi" not in (out / "recipe.toml").read_text()
    answer = thrifty("run", out, "hello", "--recipe", out / "run.toml", "--max-tokens", 2, "--json")
    assert answer.code == 0, answer.err
    twice = thrifty("run", out, "hello", "--recipe", path, "--max-tokens", 2)
    assert twice.code == 1 and "compressed with these techniques already" in twice.message


def test_every_command_takes_the_folder(thrifty: Callable[..., Any], compressed: Path) -> None:
    answer = thrifty("run", compressed, "hello", "--max-tokens", 3, "--json", "--no-copy")
    assert answer.code == 0 and answer.json()["generated_tokens"] <= 3
    facts = thrifty("models", compressed, "--json")
    assert facts.code == 0, facts.err
    types = {entry["type"]: entry for entry in facts.json()["tensors"]}
    assert types["int4-g32"]["tensors"] == 14
    shown = thrifty("models", compressed)
    assert shown.code == 0 and "none is needed" in shown.out
    bound = thrifty("roofline", compressed, "--json", "--length", 64)
    assert bound.code == 0, bound.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give MODEL, --recipe FILE and -o DIR"),
        (("--recipe", "RECIPE"), "give MODEL, --recipe FILE and -o DIR"),
        (("MODEL", "--recipe", "RECIPE", "-o", "OUT", "--calibration", "nowhere.txt"), "is no file, and too short"),
        (("MODEL", "--recipe", "RECIPE", "-o", "OUT", "--calibration", "my lost notes.txt"), "is no file, and too"),
        (("MODEL", "--recipe", "RECIPE", "-o", "OUT", "--calibration", "two words"), "leave the calibration text out"),
        (("MODEL", "--recipe", "RECIPE", "-o", "OUT", "--memory", "1MB"), "more than --memory 1 MB"),
        (("MODEL", "--recipe", "missing.toml", "-o", "OUT"), "cannot read recipe"),
    ],
)
def test_what_is_asked_wrongly_is_said(
    thrifty: Callable[..., Any],
    checkpoint: Path,
    recipe: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
) -> None:
    places = {"MODEL": checkpoint, "RECIPE": recipe, "OUT": tmp_path / "out"}
    outcome = thrifty("compress", *(places.get(word, word) for word in words))
    assert outcome.code != 0 and message in outcome.message
    assert not (tmp_path / "out").exists()


def test_ctrl_c_says_that_what_is_done_is_kept(
    thrifty: Callable[..., Any], checkpoint: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    advance, words = Steps.advance, ("compress", checkpoint, "--recipe", recipe, "-o", "new/out")

    def stop(steps: Steps) -> None:
        advance(steps)
        if steps.done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "advance", stop)
        outcome = thrifty(*words)
    assert outcome.code == 130 and "what is done is kept" in outcome.message
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".out.compressing"]
    again = thrifty(*words, "--json")
    assert again.code == 0 and again.json()["run"]["resumed"]
    assert thrifty("compress", checkpoint, "--recipe", recipe, "-o", ".").code == 1


def test_formats_are_listed_with_all_their_bytes(thrifty: Callable[..., Any]) -> None:
    listed = {(row["format"]): row for row in thrifty("compress", "--list-formats", "--json").json()}
    assert listed["int4-g32"]["bits_per_weight"] == 4.5 and listed["int4-g32, minimums"]["bits_per_weight"] == 5.0
    assert listed["int4-g128"]["bits_per_weight"] == 4.125 and listed["bf16"]["bits_per_weight"] == 16.0
    assert listed["q4_k"]["bits_per_weight"] == 4.5 and all(row["native"] for row in listed.values())
    assert "GGUF Q4_0" in listed["int4-g32"]["files"] and "AWQ" in listed["int4-g128"]["files"]
    assert "GPTQ" not in listed["int4-g32, minimums"]["files"]
    assert "int4-g32, minimums" in thrifty("compress", "--list-formats").out


def test_every_format_is_listed_once(thrifty: Callable[..., Any]) -> None:
    listed = thrifty("compress", "--list-formats", "--json").json()
    names = [row["format"] for row in listed]
    assert {row["kind"] for row in listed} == {kind.kind for kind in formats()}
    assert len(names) == len(set(names)) and names.count("bf16") == 1
    made = [linear for kind in formats() for linear in kind.examples(32, 512)]
    assert {format_list.name_of(linear) for linear in made} == set(names)


def test_the_report_is_json(compressed: Path) -> None:
    told = json.loads((compressed / "report.json").read_text())
    assert told["thrifty"] and told["source"]["version"] and told["run"]["peak_process_bytes"] > 0


def test_a_compressed_model_is_exported(thrifty: Callable[..., Any], compressed: Path, tmp_path: Path) -> None:
    outcome = thrifty("export", compressed, "--gguf", "-o", tmp_path / "m.gguf", "--json")
    assert outcome.code == 0, outcome.err
    told = outcome.json()
    assert told["format"] == "gguf" and told["bytes"] == (tmp_path / "m.gguf").stat().st_size
    labels = {linear.label for linear in load(tmp_path / "m.gguf").linears.values()}
    assert labels == {"int4-g32", "bf16"}
    refused = thrifty("export", compressed, "--awq", "-o", tmp_path / "awq")
    assert refused.code == 1 and "with minimums, which AWQ cannot say" in refused.message
    path = tmp_path / "r.toml"
    path.write_text('[[weights]]\ntechnique = "rtn"\nsymmetric = true\n[[cache]]\ntechnique = "kivi"\n')
    words = ("export", compressed.parent / "llama", "--awq", "-o", tmp_path / "awq", "--recipe", path)
    assert "holds no prompt, cache or decoding" in thrifty(*words).message
    path.write_text('[[weights]]\ntechnique = "rtn"\nsymmetric = true\n')
    assert thrifty(*words).code == 0 and load(tmp_path / "awq").linears["layers.0.mlp.up"].label == "int4-g32"
    assert "give one of --gguf, --gptq and --awq" in thrifty("export", compressed, "-o", tmp_path / "x").message


def test_eval_says_what_a_compressed_folder_has_been_through(thrifty: Callable[..., Any], compressed: Path) -> None:
    run = ("--tasks", "kl:scored=8", "--items", 2, "--length", 400, "--threads", 1)
    found = thrifty("eval", compressed, *run)
    assert found.code == 0, found.message
    told = found.json()
    bits = told["baseline"]["bits_per_weight"]
    assert told["baseline"]["techniques"] == [{"technique": "rtn"}]
    assert bits == pytest.approx(json.loads((compressed / "report.json").read_text())["totals"]["bits_per_weight"])
    shown = " ".join(found.out.split())
    assert "uncompressed" not in shown and f"rtn, {bits:.3f} bits per weight, 400 tokens" in shown
    assert told["weights"] == f"of a compressed model: rtn, {bits:.3f} bits per weight"


def test_eval_tells_a_recipe_on_top_of_a_compressed_folder(
    thrifty: Callable[..., Any], compressed: Path, tmp_path: Path
) -> None:
    path = tmp_path / "kivi.toml"
    path.write_text('[[cache]]\ntechnique = "kivi"\nbits = 2\n')
    found = thrifty("eval", compressed, "-r", path, "--tasks", "kl:scored=8", "--items", 2, "--length", 400)
    assert found.code == 0, found.message
    shown = " ".join(found.out.split())
    assert "bits per weight, then kivi(bits=2)" in shown and "uncompressed" not in shown


def test_a_chain_says_both_errors(thrifty: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "chain.toml"
    path.write_text('[[weights]]\ntechnique = "rtn"\nbits = 2\n[[weights]]\ntechnique = "rtn"\nbits = 8\n')
    found = thrifty("compress", checkpoint, "--recipe", path, "-o", tmp_path / "chain")
    totals = json.loads((tmp_path / "chain" / "report.json").read_text())["totals"]
    last, original = totals["layers_error"], totals["layers_error_from_original"]
    shown = " ".join(found.out.split())
    assert f"error {last:.4f} by the last technique, {original:.4f} from the weights given" in shown
