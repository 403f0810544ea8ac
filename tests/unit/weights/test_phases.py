"""How long a compression will take, and how far its trainings and searches are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.checkpoint import write_checkpoint

from thrifty.models.loading import load
from thrifty.recipe import Recipe
from thrifty.weights.calibration import text_calibration
from thrifty.weights.compressing.pace import Pace
from thrifty.weights.compressing.pipeline import compress
from thrifty.weights.results import LAYERS, Phase

TEXT = "A river runs to the sea, and the sea gives it back as rain. " * 60


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_layer_in_one_unit_tells_at_its_end() -> None:
    clock = Clock()
    pace = Pace("awq", 30, clock)
    clock.now += 7
    assert pace.closed("layers.0") == Phase("awq", LAYERS, 1, 30, 7.0 * 29, 1)
    assert pace.closed("layers.1") is None


def test_a_layer_of_several_units_tells_when_the_next_begins() -> None:
    clock = Clock()
    pace, told = Pace("gptq", 15, clock), []
    for unit in ("embedding", *(f"layers.{layer}.mlp.{part}" for layer in range(2) for part in ("gate", "up"))):
        clock.now += 50 if unit == "embedding" else 3
        told.append(pace.closed(unit))
    phase = next(one for one in told if one is not None)
    assert told.index(phase) == 3 and phase.done == 4 and phase.seconds_left == pytest.approx(3 * 11)
    assert told.count(None) == 4, "the embedding's seconds are no layer's, and it is told once"


def test_a_search_before_the_layers_is_not_their_time() -> None:
    clock = Clock()
    pace = Pace("smoothquant-plus", 10, clock)
    clock.now += 300
    pace.restart()
    clock.now += 2
    assert pace.closed("layers.0") == Phase("smoothquant-plus", LAYERS, 1, 10, 18.0, 1)


@pytest.mark.parametrize(
    ("table", "what", "total"),
    [
        ({"technique": "lora-ft", "steps": 3, "rank": 32}, "training", 3),
        ({"technique": "compactifai", "share": 0.9, "healing": 3, "block": 1}, "healing", 3),
        ({"technique": "maskllm", "steps": 3, "prior": "magnitude"}, "training", 3),
        ({"technique": "xtc", "steps": 3, "group": 32}, "training", 3),
        ({"technique": "amp", "share": 0.3, "recovery": 3, "heads": False}, "recovery", 3),
        ({"technique": "nxmiformer", "steps": 3}, "training", 3),
        ({"technique": "smoothquant-plus"}, "its search for a strength", 21),
        ({"technique": "squeezellm"}, "its gradients", 2),
    ],
    ids=lambda value: value["technique"] if isinstance(value, dict) else "",
)
def test_a_long_part_tells_every_step(
    table: dict[str, Any], what: str, total: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    model, told = load(write_checkpoint(tmp_path / "llama")), list[Phase]()
    text = text_calibration(model, TEXT, "river", 2, 32)
    compress(model, Recipe(weights=[table]), tmp_path / "out", calibration=text, tell=told.append)
    own = [phase for phase in told if phase.what == what]
    assert [(phase.technique, phase.done, phase.total) for phase in own] == [
        (table["technique"], step, total) for step in range(1, total + 1)
    ]
    assert own[-1].seconds_left == 0 and all(phase.seconds_left >= 0 for phase in own)
    trained = what in ("training", "healing", "recovery") and table["technique"] != "nxmiformer"
    assert own[-1].kept == (total if trained else 0)
