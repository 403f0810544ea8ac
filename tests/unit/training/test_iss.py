"""Intrinsic sparse structures: the lasso against its formula, removal, the NumPy LSTM against torch, the recipe."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from thrifty.arrays import Floats
from thrifty.errors import CheckpointError, RecipeError, StorageError
from thrifty.training.iss.groups import group_norms, living, random_units, with_units
from thrifty.training.iss.lstm import LSTM
from thrifty.training.iss.network import GroupLasso, Network
from thrifty.training.iss.recipe import RARE, Options, Text
from thrifty.training.iss.training import train_lstm
from thrifty.training.loop.loop import Progress
from training.iss.train import main

CHARACTERS = RARE + "abcd"
TEXT = "abcd" * 100 + "badc" * 30
TINY = Options(strength=1.0, width=3, hidden=(6, 5), length=8, batch=4, steps=6, rate=1e-2)


def network(keep: float = 1.0) -> Network:
    made = Network(CHARACTERS, 3, (6, 5), keep, seed=1)
    with torch.no_grad():
        for weight in made.trained().values():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) / 3)
    return made


def group(model: LSTM, layer: int, unit: int) -> list[tuple[str, int, int]]:
    """Every number of a group, by weight, row and column: written out, as figure 2 of the paper draws it."""
    own = model.layers[layer]
    found = set()
    for gate in range(4):
        row = gate * own.hidden + unit
        found |= {(f"{layer}.incoming", row, column) for column in range(own.incoming.shape[1])}
        found |= {(f"{layer}.recurrent", row, column) for column in range(own.hidden)}
    found |= {(f"{layer}.recurrent", row, unit) for row in range(4 * own.hidden)}
    name, reader = weights(model)[2 * layer + 2]
    return sorted(found | {(name, row, unit) for row in range(reader.shape[0])})


def weights(model: LSTM) -> list[tuple[str, Floats]]:
    layers = [
        (f"{place}.{part}", getattr(layer, part))
        for place, layer in enumerate(model.layers)
        for part in ("incoming", "recurrent")
    ]
    return [*layers, ("head", model.head)]


def test_a_step_of_the_lasso_is_that_of_its_formula_number_by_number() -> None:
    net = network()
    before = net.as_arrays()
    lasso = GroupLasso(net, 2.0, lambda step: 0.05 / (step + 1), threshold=0.02)
    lasso.before()
    lasso.after(1)
    old = dict(weights(before))
    pull = {name: np.zeros_like(weight) for name, weight in old.items()}
    for layer, own in enumerate(before.layers):
        for unit in range(own.hidden):
            places = group(before, layer, unit)
            norm = math.sqrt(sum(float(old[name][row, column]) ** 2 for name, row, column in places) + 1e-8)
            assert norm == pytest.approx(float(group_norms(before)[layer][unit]), rel=1e-5)
            for name, row, column in places:
                pull[name][row, column] += 0.025 * 2.0 / norm
    for name, weight in weights(net.as_arrays()):
        wanted = old[name] * np.maximum(0, 1 - pull[name])
        wanted[np.abs(wanted) < 0.02] = 0
        assert np.allclose(weight, wanted, atol=1e-6), name
        assert (weight != 0).any()
    assert any((weight == 0).any() for _, weight in weights(net.as_arrays()))


def zeroed(model: LSTM, units: dict[int, list[int]]) -> LSTM:
    for layer, chosen in units.items():
        for unit in chosen:
            for name, row, column in group(model, layer, unit):
                dict(weights(model))[name][row, column] = 0
    return model


def test_without_groups_of_zeros_the_outputs_stay() -> None:
    model = zeroed(network().as_arrays(), {0: [1, 4], 1: [0]})
    kept = living(model)
    assert [units.tolist() for units in kept] == [[0, 2, 3, 5], [1, 2, 3, 4]]
    small = with_units(model, kept)
    tokens = np.array([1, 2, 0, 4, 3, 3, 1])
    assert small.hidden == (4, 4) and small.multiply_adds < model.multiply_adds
    assert np.allclose(small.logits(tokens), model.logits(tokens), atol=1e-6)
    others = with_units(model, random_units(model, small.hidden, seed=3))
    assert others.hidden == small.hidden
    assert not np.allclose(others.logits(tokens), model.logits(tokens), atol=1e-3)


def test_a_unit_with_the_smallest_of_numbers_or_with_none_lives() -> None:
    model = zeroed(network().as_arrays(), {1: [0, 1, 2]})
    model.head[2, 0], model.head[2, 1] = 1e-30, np.nan
    assert living(model)[1].tolist() == [0, 1, 3, 4]


def test_units_that_are_not_there_or_none_at_all_are_refused() -> None:
    model = network().as_arrays()
    for units in (np.array([], np.int64), np.array([7])):
        with pytest.raises(RecipeError, match="layer 0 of 6 units cannot keep"):
            with_units(model, [units, np.arange(5)])
    with pytest.raises(CheckpointError, match=r"head has shape \[5, 4\], its neighbours want \[5, 5\]"):
        dataclasses.replace(model, head=model.head[:, :4])


def test_the_arrays_compute_what_torch_does(tmp_path: Path) -> None:
    net = network().eval()
    tokens = torch.tensor([[1, 2, 0, 4, 3, 3, 1]])
    model = net.as_arrays()
    model.save(tmp_path / "model.safetensors")
    read = LSTM.load(tmp_path / "model.safetensors")
    wanted = net(tokens)[0].detach()
    assert read.characters == CHARACTERS and np.allclose(read.logits(tokens[0].numpy()), wanted, atol=1e-5)
    losses = torch.nn.functional.cross_entropy(wanted[:-1], tokens[0, 1:], reduction="none")
    assert np.allclose(read.losses(tokens[0].numpy()), losses, atol=1e-5)
    (tmp_path / "broken.safetensors").write_bytes(b"no model")
    with pytest.raises(StorageError, match="cannot read the model"):
        LSTM.load(tmp_path / "broken.safetensors")


def test_groups_of_zeros_stay_zeros_while_the_rest_trains() -> None:
    text = Text.of(TEXT)
    strong = train_lstm(text, dataclasses.replace(TINY, strength=9.0, steps=60))
    plain = train_lstm(text, dataclasses.replace(TINY, strength=0.0, steps=60))
    assert sum(map(len, living(plain))) == 11 > sum(map(len, living(strong)))


def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    text = Text.of(TEXT)
    options = dataclasses.replace(TINY, steps=30, strength=4.0)

    def kill(progress: Progress) -> None:
        if progress.step == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_lstm(text, options, folder=tmp_path, say=kill)
    went_on: list[int] = []
    resumed = train_lstm(text, options, folder=tmp_path, say=lambda progress: went_on.append(progress.step))
    whole = train_lstm(text, options)
    assert went_on[0] == 21
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(weights(resumed), weights(whole), strict=True))


def test_the_held_out_end_is_no_part_of_what_is_trained_on() -> None:
    text = Text.of("ab" * 70 + "c" * 20)
    assert text.characters == RARE + "ab" and len(text.train) == 140
    assert text.held_out.tolist() == [0] * 20
    with pytest.raises(RecipeError, match="fewer than 2 passages"):
        text.passages(16, 4)


@pytest.mark.parametrize(
    "wrong", [{"hidden": (0,)}, {"keep": 0.0}, {"strength": -1.0}, {"rate": math.nan}, {"steps": -1}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=next(iter(wrong))):
        dataclasses.replace(TINY, **wrong)


def test_the_command_writes_both_models_and_says_what_went_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text(TEXT * 8)
    words = ["--out", str(tmp_path), "--text", str(tmp_path / "text"), "--json", "--hidden", "6", "5", "--steps", "3"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["living"] == list(LSTM.load(tmp_path / "small.safetensors").hidden)
    assert main([*words, "--text", str(tmp_path / "none")]) == 1
    assert "cannot read the text" in json.loads(capsys.readouterr().out)["error"]
