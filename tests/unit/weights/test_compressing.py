"""Compressing into a folder: what lies there, what is gone on with after a kill, and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import killing
from tests.checkpoint import write_checkpoint
from tests.tiny import tiny_model

from thrifty.api import Thrifty
from thrifty.errors import BudgetError, CheckpointError, KernelError, RecipeError, StorageError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.compressed import saving
from thrifty.models.compressed.layout import is_compressed
from thrifty.models.compressed.source import CompressedSource
from thrifty.models.loading import load, load_plain
from thrifty.models.model import Model
from thrifty.recipe import Recipe
from thrifty.weights.calibration import Activations, CalibrationSet
from thrifty.weights.compressing import pipeline, stage_file, workplace
from thrifty.weights.compressing.pipeline import compress
from thrifty.weights.cutting import Structure
from thrifty.weights.group_technique import GroupTechnique
from thrifty.weights.groups import LinearGroup, Replacement, rescaled
from thrifty.weights.sizes import Predictor
from thrifty.weights.structure import LinearInfo
from thrifty.weights.structure_technique import StructureTechnique
from thrifty.weights.technique import Technique, WeightTechnique, prepare

RECIPE = Recipe(weights=[{"technique": "rtn", "bits": 4}])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "llama")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeing(WeightTechnique):
    """Rounds what is scaled by what was seen, so that results depend on those of the layers before."""

    needs_calibration = True
    name = "seeing"

    def compress(self, linear: LinearInfo, calibration: Activations | None) -> GroupLinear:
        assert calibration is not None
        scale = 1 + np.abs(calibration.inputs).mean(0)
        return GroupLinear.quantize(linear.linear.dequantize() * scale, 4, 32, bias=linear.linear.bias)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Halving(GroupTechnique):
    name = "halving"

    def transform(self, group: LinearGroup, calibration: Activations | None) -> Iterable[Replacement]:
        yield from rescaled(group, np.full(group.width, 2, np.float32))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastLayer(StructureTechnique):
    name = "last-layer"

    def choose(self, model: Model, calibration: object) -> Structure:
        return Structure(layers=[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole(Technique):
    """Changes the model in no units."""

    name = "whole"

    def apply(self, model: Model, preparation: Any) -> None:
        for name, linear in list(model.linears.items()):
            model.replace(name, DenseLinear.from_weight(linear.dequantize() + 1, bias=linear.bias))
        model.norms = {name: norm * 2 for name, norm in model.norms.items()}

    def check(self, model: Model) -> None:
        pass


class Several(Recipe):
    """A recipe of techniques that no registry has."""

    made: tuple[Technique, ...] = ()

    def techniques(self, stage: str) -> list[Any]:
        return list(self.made) if stage == "weights" else []


def several(*techniques: Technique) -> Recipe:
    recipe = Several(weights=[{"technique": "rtn"}])
    object.__setattr__(recipe, "made", techniques)
    return recipe


def content(folder: Path) -> dict[str, Any]:
    """Every file of a folder; of the report what is the same in every run."""
    files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files["report.json"] = {name: part for name, part in json.loads(files["report.json"]).items() if name != "run"}
    return files


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]


def same(left: Model, right: Model) -> None:
    assert list(left.linears) == list(right.linears) and left.config == right.config
    for name, linear in left.linears.items():
        other = right.linears[name]
        assert linear.meta() == other.meta() and linear.state().keys() == other.state().keys()
        for key, array in linear.state().items():
            np.testing.assert_array_equal(array.view(np.uint8), other.state()[key].view(np.uint8), err_msg=name)
    assert all(np.array_equal(norm, right.norms[name]) for name, norm in left.norms.items())


def test_the_folder_loads_to_what_the_techniques_make(checkpoint: Path, tmp_path: Path) -> None:
    expected = prepare(load(checkpoint), RECIPE.techniques("weights"))
    told = compress(load(checkpoint), RECIPE, tmp_path / "out", source="llama")
    model = load(tmp_path / "out")
    same(model, expected)
    assert model.report == [entry for entry in model.report if entry.name in {r.name: r for r in expected.report}]
    errors = {entry.name: entry.error for entry in expected.report}
    assert all(entry.error == errors[entry.name] for entry in model.report)
    assert model.tokenizer.encode("hello") == expected.tokenizer.encode("hello")
    assert model.tokenizer.settings == expected.tokenizer.settings
    assert told["source"]["name"] == "llama" and hidden(tmp_path / "out") == []
    assert Recipe.load(tmp_path / "out" / "recipe.toml") == RECIPE and not (tmp_path / "out" / "run.toml").exists()


def test_it_is_mapped_as_it_lies_there(checkpoint: Path, tmp_path: Path) -> None:
    compress(load(checkpoint), RECIPE, tmp_path / "out")
    before = {path.name for path in (tmp_path / "cache" / "converted").iterdir()}
    model = load(tmp_path / "out")
    assert {path.name for path in (tmp_path / "cache" / "converted").iterdir()} == before
    assert model.file is not None
    for linear in model.linears.values():
        for array in linear.state().values():
            assert np.may_share_memory(array, model.file.content) and array.ctypes.data % 64 == 0


def test_the_report_counts_every_byte(checkpoint: Path, tmp_path: Path) -> None:
    told = compress(load(checkpoint), RECIPE, tmp_path / "out")
    model = load(tmp_path / "out")
    assert told == json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["totals"]["bytes"] == model.nbytes == sum(entry["bytes"] for entry in told["tensors"])
    query = next(entry for entry in told["tensors"] if entry["name"] == "layers.0.attention.query")
    assert query["format"] == "int4-g32" and query["bits_per_weight"] == 5.0 and query["error"] > 0
    assert told["totals"]["layers_bits_per_weight"] == 5.0


def test_safetensors_itself_reads_the_file(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    compress(load(checkpoint), RECIPE, tmp_path / "out")
    arrays = load_file(tmp_path / "out" / "model.safetensors")
    codes = load(tmp_path / "out").linears["layers.1.mlp.down"].state()["codes"]
    np.testing.assert_array_equal(arrays["layers.1.mlp.down/codes"], codes)


def test_plain_values_are_those_of_the_stored_form(checkpoint: Path, tmp_path: Path) -> None:
    compress(load(checkpoint), RECIPE, tmp_path / "out")
    packed, plain = load(tmp_path / "out"), load_plain(tmp_path / "out", np.dtype(np.float32))
    for name, linear in packed.linears.items():
        np.testing.assert_array_equal(linear.dequantize(), plain.linears[name].dequantize())


ALL = [
    (Halving(), Seeing()),
    (LastLayer(), Seeing(skip=("*.down",))),
    (Whole(), Halving()),
    (Halving(), Whole(), LastLayer()),
]


@pytest.mark.parametrize("techniques", ALL, ids=lambda made: "-".join(part.name for part in made))
def test_a_stop_after_any_step_changes_nothing(
    checkpoint: Path, tmp_path: Path, techniques: tuple[Technique, ...]
) -> None:
    expected = prepare(load(checkpoint), techniques, calibration=seen_text(load(checkpoint), techniques))
    steps: list[tuple[int, int]] = []

    def run(target: Path, watch: Callable[[int, int], None] | None = None) -> None:
        model = load(checkpoint)
        text = seen_text(model, techniques)
        compress(model, several(*techniques), target, calibration=text, watch=watch)

    run(tmp_path / "whole", lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == list(range(len(steps))) and steps[-1][0] == steps[-1][1]
    same(load(tmp_path / "whole"), expected)
    for place in sorted({1, len(steps) // 2, len(steps) - 1}):

        def stop(done: int, total: int, place: int = place) -> None:
            if done == place:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", stop)
        assert not (tmp_path / "out").exists() and hidden(tmp_path / "out")
        left: list[int] = []
        run(tmp_path / "out", lambda done, total, left=left: left.append(total))
        assert left[0] < steps[0][1], "some of it was done"
        assert content(tmp_path / "out") == content(tmp_path / "whole") and hidden(tmp_path / "out") == []
        assert json.loads((tmp_path / "out" / "report.json").read_text())["run"]["resumed"]
        shutil.rmtree(tmp_path / "out")


def test_a_kill_leaves_no_folder_and_the_same_command_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe(weights=[{"technique": "rtn", "bits": 8}, {"technique": "rtn", "bits": 4, "layers": [1]}])
    compress(load(checkpoint), recipe, tmp_path / "whole")
    for place in (1, 9, 17, 23):

        def stop(done: int, total: int, place: int = place) -> None:
            if done == place:
                os.kill(os.getpid(), signal.SIGKILL)

        started = killing.start(lambda stop=stop: compress(load(checkpoint), recipe, tmp_path / "out", watch=stop))
        assert killing.finish(started) == -signal.SIGKILL
        assert not (tmp_path / "out").exists() and hidden(tmp_path / "out")
        assert compress(load(checkpoint), recipe, tmp_path / "out")["run"]["resumed"]
        assert content(tmp_path / "out") == content(tmp_path / "whole") and hidden(tmp_path / "out") == []
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("moment", ["moved aside", "replaced"])
def test_a_kill_while_a_folder_is_replaced_loses_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between the old folder's move and the new one's, and between that and the old one's end."""
    target, better = tmp_path / "out", Recipe(weights=[{"technique": "rtn", "bits": 8}])
    compress(load(checkpoint), RECIPE, target)
    old, replaced = content(target), Path.replace

    def killed(path: Path, final: Path) -> Path:
        if final != target:
            return replaced(path, final)
        if moment == "replaced":
            replaced(path, final)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        started = killing.start(lambda: compress(load(checkpoint), better, target, force=True))
        assert killing.finish(started) == -signal.SIGKILL
    aside = tmp_path / ".out.old"
    assert content(aside) == old and target.exists() == (moment == "replaced")
    with pytest.raises(StorageError, match="out is there and not empty"):
        compress(load(checkpoint), better, target)
    assert not aside.exists() and (content(target) == old) == (moment == "moved aside")
    told = compress(load(checkpoint), better, target, force=True)
    assert told["run"]["resumed"] and hidden(target) == []
    assert load(target).applied == ({"technique": "rtn", "bits": 8},)


def seen_text(model: Model, techniques: Iterable[Technique]) -> CalibrationSet | None:
    if not any(technique.needs_calibration for technique in techniques):
        return None
    return CalibrationSet("own", np.arange(40).reshape(2, 20) * 5)


def test_work_on_another_question_is_not_gone_on_with(checkpoint: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(load(checkpoint), RECIPE, tmp_path / "out", watch=stop)
    other = Recipe(weights=[{"technique": "rtn", "bits": 8}])
    told = compress(load(checkpoint), other, tmp_path / "out")
    assert not told["run"]["resumed"]
    assert all(linear.label != "int4-g32" for linear in load(tmp_path / "out").linears.values())


@pytest.mark.parametrize("damage", ["torn line", "flipped bit"])
def test_damaged_work_is_done_again(checkpoint: Path, tmp_path: Path, damage: str) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(load(checkpoint), RECIPE, tmp_path / "out", watch=stop)
    state = tmp_path / ".out.compressing"
    if damage == "torn line":
        journal = state / "stage-0.jsonl"
        journal.write_bytes(journal.read_bytes()[:-10])
    else:
        with (state / "stage-0.bin").open("r+b") as file:
            file.seek(40)
            file.write(b"\xff\x00\xff")
    left: list[int] = []
    compress(load(checkpoint), RECIPE, tmp_path / "out", watch=lambda done, total: left.append(total))
    assert left[0] == 15 - (4 if damage == "torn line" else 0)
    same(load(tmp_path / "out"), prepare(load(checkpoint), RECIPE.techniques("weights")))


def test_a_full_disk_leaves_no_folder_and_keeps_what_is_done(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, pwrite = [0], os.pwrite

    def full(file: int, data: Any, offset: int) -> int:
        written[0] += 1
        if written[0] > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(file, data, offset)

    monkeypatch.setattr(stage_file.os, "pwrite", full)
    model = load(checkpoint, copy=False)
    with pytest.raises(StorageError, match=r"the disk is full \(\d+ MB free\).*kept in \.out\.compressing"):
        compress(model, RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    assert compress(load(checkpoint), RECIPE, tmp_path / "out")["run"]["resumed"]


def test_a_disk_without_room_is_refused_before(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, model = shutil.disk_usage(tmp_path), load(checkpoint)
    monkeypatch.setattr(workplace.shutil, "disk_usage", lambda _: usage._replace(free=3_000_000))
    with pytest.raises(StorageError, match=r"out takes about \d MB while it is made, and 3 MB are free"):
        compress(model, RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists() and hidden(tmp_path / "out") == []


def test_a_disk_that_is_full_at_the_end_is_said(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_safetensors", full)
        with pytest.raises(StorageError, match="the disk is full.*give the same command again"):
            compress(load(checkpoint), RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    left: list[int] = []
    compress(load(checkpoint), RECIPE, tmp_path / "out", watch=lambda done, total: left.append(total))
    assert left == [0], "all was done"


@pytest.mark.long
def test_killed_at_any_moment_the_next_run_ends_with_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    recipe = Recipe(weights=[{"technique": "rtn", "bits": 8}, {"technique": "rtn", "bits": 4}])
    compress(load(checkpoint), recipe, tmp_path / "whole")
    expected = content(tmp_path / "whole")

    def run() -> None:
        compress(load(checkpoint), recipe, tmp_path / "out")

    def clean() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.rmtree(tmp_path / ".out.compressing", ignore_errors=True)

    for _ in killing.random_kills(run, clean, seed=0, kills=10):
        if (tmp_path / "out").exists():
            assert content(tmp_path / "out") == expected
        else:
            run()
            assert content(tmp_path / "out") == expected and hidden(tmp_path / "out") == []


def test_what_is_there_is_not_replaced_unless_asked(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="out is there and not empty.*--force"):
        compress(load(checkpoint), RECIPE, tmp_path / "out")
    with pytest.raises(StorageError, match="holds something else than a model.*--force replaces nothing else"):
        compress(load(checkpoint), RECIPE, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine" and hidden(tmp_path / "out") == []
    (tmp_path / "out" / "notes.txt").unlink()
    compress(load(checkpoint), RECIPE, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("of this model")
    compress(load(checkpoint), RECIPE, tmp_path / "out", force=True)
    assert is_compressed(tmp_path / "out") and not (tmp_path / "out" / "notes.txt").exists()
    with pytest.raises(StorageError, match="is a file"):
        compress(load(checkpoint), RECIPE, tmp_path / "out" / "config.json")
    with pytest.raises(StorageError, match="holds the model that is being compressed"):
        compress(load(checkpoint), RECIPE, checkpoint, force=True)


def test_two_at_once_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    place = workplace.Workplace(tmp_path / "out")
    with place.opened({}), pytest.raises(StorageError, match="another process is writing"):
        compress(load(checkpoint), RECIPE, tmp_path / "out")


def test_recipes_that_do_not_do_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no \[\[weights\]\]"):
        compress(load(checkpoint), Recipe(cache=[{"technique": "kivi"}]), tmp_path / "out")
    with pytest.raises(RecipeError, match="no technique of this recipe is calibrated"):
        compress(load(checkpoint), RECIPE, tmp_path / "out", calibration=CalibrationSet("x", np.ones((1, 4), int)))
    with pytest.raises(RecipeError, match="skip 'nothing' matches no linear"):
        compress(load(checkpoint), Recipe(weights=[{"technique": "rtn", "skip": ["nothing"]}]), tmp_path / "out")
    for name in ("rtn", "gptq", "awq"):
        with pytest.raises(RecipeError, match=rf"technique '{name}': skip \['\*'\] matches every linear layer"):
            compress(load(checkpoint), Recipe(weights=[{"technique": name, "skip": ["*"]}]), tmp_path / "out")
    assert not (tmp_path / "out").exists() and hidden(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["magnitude", "sparsegpt"])
def test_bytes_of_a_width_that_a_format_does_not_take_are_refused(name: str) -> None:
    predictor = Predictor(Recipe(weights=[{"technique": name}]).techniques("weights"))
    with pytest.raises(RecipeError, match=f"technique '{name}': 'layers.0.mlp.up' has 33 columns, which are not whole"):
        predictor.stored("layers.0.mlp.up", 48, 33)


def test_a_bound_on_memory_stops_with_what_is_done_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = iter([10, 10, 99, *[10] * 99])
    monkeypatch.setattr(pipeline, "resident", lambda: next(held) * 1_000_000)
    with pytest.raises(BudgetError, match="holds 99 MB before the next part of the work, more than --memory 50 MB"):
        compress(load(checkpoint), RECIPE, tmp_path / "out", memory=50_000_000)
    assert compress(load(checkpoint), RECIPE, tmp_path / "out", memory=50_000_000)["run"]["resumed"]


def test_a_layer_with_nan_is_named(checkpoint: Path, tmp_path: Path) -> None:
    model = load(checkpoint, copy=False)
    weight = model.linears["layers.1.mlp.up"].dequantize()
    weight[3, 5] = np.nan
    model.replace("layers.1.mlp.up", DenseLinear.from_weight(weight))
    with pytest.raises(
        KernelError, match="technique 'rtn', 'layers.1.mlp.up': weight rows 0..255.*(not finite|NaN|nan)"
    ):
        compress(model, RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_compressed_again_tells_all_that_it_went_through(checkpoint: Path, tmp_path: Path) -> None:
    first, second = {"technique": "magnitude"}, {"technique": "rtn", "bits": 8, "skip": ["embedding"]}
    compress(load(checkpoint), Recipe(weights=[first]), tmp_path / "first")
    compress(load(tmp_path / "first"), Recipe(weights=[second]), tmp_path / "second")
    compress(load(checkpoint), Recipe(weights=[first, second]), tmp_path / "both")
    for folder in (tmp_path / "second", tmp_path / "both"):
        assert Recipe.load(folder / "recipe.toml").weights == [first, second]
        assert json.loads((folder / "report.json").read_text())["recipe"] == [first, second]
        assert load(folder).applied == (first, second)
    for again in ([first], [second], [first, second]):
        with pytest.raises(RecipeError, match="compressed with these techniques already"):
            compress(load(tmp_path / "second"), Recipe(weights=again), tmp_path / "out")


def test_a_second_time_with_the_same_techniques_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    from thrifty.api import open_model

    compress(load(checkpoint), RECIPE, tmp_path / "out")
    with pytest.raises(RecipeError, match="compressed with these techniques already"):
        compress(load(tmp_path / "out"), RECIPE, tmp_path / "again")
    with pytest.raises(RecipeError, match="compressed with these techniques already"):
        open_model(tmp_path / "out", RECIPE)
    spelled = Recipe(weights=[{"technique": "rtn", "bits": 4, "group": 32}])  # the same, with a default written down
    with pytest.raises(RecipeError, match="compressed with these techniques already"):
        compress(load(tmp_path / "out"), spelled, tmp_path / "again")
    other = Recipe(weights=[{"technique": "rtn", "bits": 8, "embedding_bits": 8}])
    assert open_model(tmp_path / "out", other).linears["embedding"].label == "int8-g32"


def damaged_files(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda raw: raw[:-9] + b"\x01" + raw[-8:], "is damaged: it is not the file"),
        ("model.safetensors", lambda raw: raw[:-64], "is damaged: it is not the file"),
        ("config.json", lambda raw: raw.replace(b'"layout": 1', b'"layout": 9'), "layout is 9; this version"),
        ("config.json", lambda raw: raw.replace(b'"hidden_size": 128', b'"hidden_size": 64'), "shape"),
        ("config.json", lambda raw: raw.replace(b'"heads": 4', b'"heads": "four"'), "heads"),
        ("tokenizer.json", lambda raw: raw[:40], "tokenizer.json|JSON|EOF"),
    ],
)
def test_damage_is_named(
    checkpoint: Path, tmp_path: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    compress(load(checkpoint), RECIPE, tmp_path / "out")
    damaged_files(tmp_path / "out", name, change)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "out").tokenizer.encode("a")


def test_a_missing_array_is_named(checkpoint: Path, tmp_path: Path) -> None:
    import hashlib

    compress(load(checkpoint), RECIPE, tmp_path / "out")
    name = b"layers.0.mlp.up/scales"
    damaged_files(tmp_path / "out", "model.safetensors", lambda raw: raw.replace(name, b"layers.0.mlp.up/scalex", 1))
    digest = hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["weights_sha256"] = digest
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="array 'layers.0.mlp.up/scales' is missing"):
        CompressedSource(tmp_path / "out")


def test_models_of_every_shape_come_back(model: Model, tmp_path: Path) -> None:
    """Tied and untied, with biases, norms of heads, experts; widths of a few numbers too many."""
    expected = prepare(model, RECIPE.techniques("weights"))
    told = compress(dataclasses.replace(model, linears=dict(model.linears)), RECIPE, tmp_path / "out")
    read = load(tmp_path / "out")
    same(read, expected)
    assert read.config == model.config and read.tokenizer is None
    assert told["totals"]["bytes"] == read.nbytes == expected.nbytes


def test_an_odd_width_is_stored_with_its_padding(tmp_path: Path) -> None:
    from tests.unit.weights.conftest import PLAIN, build

    model = build(dataclasses.replace(PLAIN, intermediate_size=161))
    told = compress(model, RECIPE, tmp_path / "out")
    down = next(entry for entry in told["tensors"] if entry["name"] == "layers.0.mlp.down")
    linear = load(tmp_path / "out").linears["layers.0.mlp.down"]
    assert linear.in_features == 161 and down["bits_per_weight"] == round(8 * linear.nbytes / (161 * 96), 4) > 5


def test_what_is_made_is_held_by_the_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of all kinds of techniques are views of files by the time the next technique begins."""
    write, owned = pipeline.write_model, []

    def look(folder: Path, model: Model, *rest: Any) -> None:
        arrays = [array for linear in model.linears.values() for array in linear.state().values()]
        owned.extend(array for array in arrays if _owner(array) is None)
        write(folder, model, *rest)

    monkeypatch.setattr(pipeline, "write_model", look)
    compress(load(checkpoint), several(Whole(), Halving()), tmp_path / "out")
    assert owned == []


def _owner(array: np.ndarray) -> Any:
    """What lies below the views of an array; None where the array holds its own memory."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_answers_as_the_model_in_memory_does(tmp_path: Path, tied: bool) -> None:
    """Also where rows of the embedding are read from the file."""
    recipe = Recipe(weights=[{"technique": "rtn", "bits": 8, "embedding_bits": 8}])
    model = dataclasses.replace(tiny_model(tied_embeddings=tied), tokenizer=None)
    expected = prepare(model, recipe.techniques("weights"))
    compress(model, recipe, tmp_path / "out")
    read = load(tmp_path / "out")
    assert (read.read_from_file > 0) == (not tied)
    tokens = []
    for each in (expected, read):
        with Thrifty(each) as thrifty:
            tokens.append(thrifty.generate([5, 9, 30, 7], max_tokens=12).token_ids)
    assert tokens[0] == tokens[1]


def distance(before: Model, after: Model, names: Iterable[str]) -> float:
    """Root-mean-square of the relative errors, each by its weights, over whole matrices."""
    total = weights = 0.0
    for name in names:
        reference = before.linears[name].dequantize().astype(np.float64)
        error = np.linalg.norm(after.linears[name].dequantize() - reference) / np.linalg.norm(reference)
        total, weights = total + reference.size * error**2, weights + reference.size
    return float((total / weights) ** 0.5)


def test_a_chain_tells_its_error_from_the_original_too(checkpoint: Path, tmp_path: Path) -> None:
    chain = Recipe(weights=[{"technique": "rtn", "bits": 2}, {"technique": "rtn", "bits": 8}])
    told = compress(load(checkpoint), chain, tmp_path / "out")["totals"]
    single = prepare(load(checkpoint), chain.techniques("weights")[:1])
    made, names = load(tmp_path / "out"), [name for name in single.linears if name.startswith("layers.")]
    assert told["layers_error"] == pytest.approx(distance(single, made, names), rel=1e-6)
    assert told["layers_error_from_original"] == pytest.approx(distance(load(checkpoint), made, names), rel=1e-6)
    assert told["layers_error_from_original"] > 20 * told["layers_error"] > 0
    outside = json.loads((tmp_path / "out" / "report.json").read_text())["tensors"]
    assert [entry["error_from_original"] for entry in outside if entry["name"] == "embedding"] == [0.0]


def test_a_factor_that_moved_is_no_error_from_the_original(checkpoint: Path, tmp_path: Path) -> None:
    """Halving every channel on one side and doubling it on the other changes nothing; rounding it behind does."""
    rtn = RECIPE.techniques("weights")
    moved = compress(load(checkpoint), several(Halving()), tmp_path / "moved")["totals"]
    assert moved["layers_error_from_original"] < 1e-6
    chain = compress(load(checkpoint), several(Halving(), *rtn), tmp_path / "chain")["totals"]
    plain = compress(load(checkpoint), several(*rtn), tmp_path / "plain")["totals"]
    assert chain["layers_error_from_original"] == pytest.approx(plain["layers_error"], rel=0.02)


def test_what_is_left_of_a_cut_model_has_no_original(checkpoint: Path, tmp_path: Path) -> None:
    told = compress(load(checkpoint), several(LastLayer(), *RECIPE.techniques("weights")), tmp_path / "out")["totals"]
    assert told["layers_error"] > 0 and told["layers_error_from_original"] is None
