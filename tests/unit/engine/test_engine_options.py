"""Options of an engine: every wrong type is named with its value and what would do, before a model is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import tiny_model

from thrifty.api import Thrifty
from thrifty.errors import ThriftyError

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"memory": True}, "memory = True is not a size; write bytes or a form such as '150MB'"),
    ({"memory": 1.5e8}, "memory = 150000000.0 is not a size; write bytes"),
    ({"memory": ["150MB"]}, "memory = ['150MB'] is not a size"),
    ({"memory": np.bool_(True)}, "is not a size; write bytes"),
    ({"threads": "2"}, "threads = '2' (str) is not a whole number; use a number of threads"),
    ({"threads": True}, "threads = True (bool) is not a whole number"),
    ({"threads": 1.0}, "threads = 1.0 (float) is not a whole number"),
    ({"context": 1.5}, "context = 1.5 (float) is not a whole number; use a number of tokens, or None"),
    ({"context": "4k"}, "context = '4k' (str) is not a whole number"),
    ({"recipe": [{"technique": "kivi"}]}, "(list) is no recipe; use a Recipe, its tables as {stage: [tables]}"),
    ({"recipe": 4}, "recipe = 4 (int) is no recipe"),
    ({"native": "yes"}, "native = 'yes' (str) is out of range; use True or False, or None to take native code"),
    ({"native": 1}, "native = 1 (int) is out of range; use True or False"),
    ({"batch": "8"}, "batch = '8' (str) is not a whole number; use 1 or more"),
    ({"batch": 0}, "batch = 0 is out of range; use 1 or more"),
    ({"queue": 2.5}, "queue = 2.5 (float) is not a whole number; use 1 or more"),
    ({"queue": None}, "queue = None is not a whole number"),
    ({"chunk": "256"}, "chunk = '256' (str) is not a whole number; use a multiple of 128"),
    ({"chunk": np.int64(200)}, "chunk = 200 is out of range; use a multiple of 128"),
    ({"prefill_slice_ms": "25"}, "prefill_slice_ms = '25' (str) is not a number; use 0 (whole chunks) or more"),
    ({"prefill_slice_ms": float("nan")}, "prefill_slice_ms = nan is out of range; use 0"),
    ({"prefix_tree": "no"}, "prefix_tree = 'no' (str) is out of range; use True or False"),
    ({"drafts": "small"}, "drafts = 'small' (str) is no list of models; use their names or paths, as texts"),
    ({"drafts": [5]}, "(list) is no list of models"),
    ({"drafts": None}, "drafts = None is no list of models"),
    ({"disk": 5}, "disk = 5 (int) is no folder; use a path, or None"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[f"{options}" for options, _ in WRONG])
def test_wrong_types_are_named_with_value_and_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ThriftyError) as error:
        Thrifty(tiny_model(), **options)
    assert message in str(error.value)


@pytest.mark.parametrize("model", [5, None, ["smollm2-135m"], b"smollm2-135m"])
def test_what_is_no_model_is_named(model: Any) -> None:
    with pytest.raises(ThriftyError, match="is no model; use a name, a path, or a loaded Model"):
        Thrifty(model)


def test_options_are_checked_before_anything_is_read() -> None:
    with pytest.raises(ThriftyError, match="threads = '2'"):
        Thrifty("no such model", threads="2")  # type: ignore[arg-type]


def test_numbers_of_other_libraries_are_numbers() -> None:
    options: dict[str, Any] = {
        "memory": np.int64(50_000_000),
        "threads": np.int32(1),
        "context": torch.tensor(200),
        "batch": np.uint8(4),
        "queue": np.int16(3),
        "chunk": np.int64(128),
        "prefill_slice_ms": np.float32(10),
        "native": np.bool_(False),
    }
    with Thrifty(tiny_model(), **options) as thrifty:
        assert thrifty.engine.memory.ledger.budget == 50_000_000 and type(thrifty.engine.memory.ledger.budget) is int
        assert thrifty.engine.intake.context == 200 and type(thrifty.engine.intake.context) is int
        assert len(thrifty.generate([1, 2], max_tokens=3, ignore_eos=True).token_ids) == 3
