"""The file of head scores: where it lies, what it holds, and what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import tiny_model

from thrifty.arrays import Floats
from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import CheckpointError, RecipeError
from thrifty.models.embedded import carried
from thrifty.models.head_scores import HeadScores, SavedScores, find, places, read, save
from thrifty.models.model import Model

HEADKV = [{"technique": "headkv", "capacity": 60, "window": 8}]


@pytest.fixture
def model(tmp_path: Path, cache: Path) -> Model:
    made = tiny_model(windows=(None, 100, None))
    made.path = tmp_path / "model.gguf"
    return made


def scores(model: Model, kind: str = "r") -> HeadScores:
    values = tuple(tuple(0.1 * (row + 1) * (head + 1) for head in range(4)) for row in range(2))
    return HeadScores(
        kind=kind,
        version=model.version,
        layers=(0, 2),
        scores=values,
        asked=4,
        used=3,
        settings={"lengths": [256]},
        date="2026-01-01",
    )


def test_scores_lie_beside_the_checkpoint_and_come_back(model: Model, tmp_path: Path) -> None:
    path = save(model, scores(model))
    assert path.parent == tmp_path and path == find(model, "r") and path.suffix not in (".json", ".safetensors")
    assert read(model, "r") == scores(model)
    assert read(model, "r2") is None and list(SavedScores(model)) == ["r"]


def test_a_checkpoint_inside_a_package_has_its_scores_in_the_cache(model: Model, cache: Path, tmp_path: Path) -> None:
    package = tmp_path / "package"
    for folder in (package / "model", package):
        folder.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        model.path = folder if folder != package else package / "model.gguf"
        before = sorted(package.rglob("*"))
        assert save(model, scores(model)).parent == cache / "heads" and find(model, "r") is not None
        assert sorted(package.rglob("*")) == before
    assert carried("recall") not in [place.parent for place in places(replace(model, path=carried("recall")), "r")]


def test_a_folder_that_cannot_be_written_is_passed_over(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        path = save(model, scores(model))
    assert path.parent == cache / "heads" and read(model, "r") == scores(model)


def test_a_checkpoint_in_a_folder_keeps_its_key(model: Model, tmp_path: Path) -> None:
    model.path = tmp_path / "checkpoint"
    model.path.mkdir()
    assert save(model, scores(model)).parent == model.path
    assert list(model.path.glob("*.json")) == []


def test_techniques_on_weights_share_the_checkpoints_scores(model: Model) -> None:
    save(model, scores(model))
    version = model.version
    model.version = f"{version}+rtn(bits=4)"
    assert np.array_equal(SavedScores(model)["r"], _array())
    model.version = "other"
    assert "r" not in SavedScores(model)


def _array() -> Floats:
    return np.array([[0.1 * (row + 1) * (head + 1) for head in range(4)] for row in range(2)], np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "r2"}, "field 'kind' must be 'r'"),
        ({"version": "x"}, "field 'version'"),
        ({"layers": [0, 1, 2]}, "field 'layers' must be the model's 2 global layers"),
        ({"scores": [[1.0] * 4]}, "field 'scores' must be 2 rows of 4 numbers"),
        ({"scores": [[1.0] * 4, [1.0, 2.0, 3.0, "4"]]}, "field 'scores'"),
        ({"scores": [[1.0] * 4, [1.0, 2.0, 3.0, -1.0]]}, "field 'scores'"),
        ({"scores": [[1.0] * 4, [1.0, 2.0, 3.0, float("nan")]]}, "field 'scores'"),
        ({"scores": [[0.0] * 4] * 2}, "not all of them 0"),
        ({"more": 1}, "its fields must be"),
    ],
)
def test_a_file_that_was_tampered_with_is_refused_by_field(model: Model, change: dict[str, Any], message: str) -> None:
    path = save(model, scores(model))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message) as refused:
        read(model, "r")
    assert str(path) in str(refused.value)


def test_a_file_that_is_no_json_is_refused(model: Model) -> None:
    path = save(model, scores(model))
    path.write_bytes(b"\xff\x00{")
    with pytest.raises(CheckpointError, match="cannot be read as scores of heads"):
        SavedScores(model).get("r")


def test_a_text_that_is_no_utf_8_is_refused_by_field(model: Model) -> None:
    path = save(model, scores(model))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"date": "\ud800"}))
    with pytest.raises(CheckpointError, match=r"'date' is not valid UTF-8: it holds half of a surrogate pair"):
        read(model, "r")


def test_an_engine_refuses_headkv_until_there_are_scores(model: Model) -> None:
    with pytest.raises(RecipeError, match="run `thrifty heads MODEL --kind r` once"):
        Engine(model, cache=HEADKV, native=False)
    engine = Engine(model, native=False, prefix_tree=False)
    request = Request(prompt=list(range(1, 200)), cache=HEADKV, forced=[1, 2, 3])
    with pytest.raises(RecipeError, match="run `thrifty heads MODEL --kind r` once"):
        engine.submit(request)
    save(model, scores(model))
    handle = engine.submit(request)
    for _ in handle:
        held = engine.cache_of(handle)
        if held is not None:
            counts = [held.slots(layer, head) for layer in (0, 2) for head in range(2)]
            assert 4 * 60 <= sum(counts) <= 4 * 63 and len(set(counts)) > 1
    assert handle.usage.generated_tokens == 3
    engine.close()
