"""MaskLLM: its formulas written out, and that training finds the masks that the loss prefers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.weights.conftest import CONFIGS, build

from thrifty import registry
from thrifty.arrays import Floats
from thrifty.errors import RecipeError
from thrifty.formats.linear import DenseLinear, Sparse24Linear
from thrifty.models.model import Model
from thrifty.reference.loading import build as build_reference
from thrifty.weights.calibration import CalibrationSet
from thrifty.weights.results import Results
from thrifty.weights.technique import prepare
from thrifty.weights.techniques.maskllm import MaskLLM, between, likeliest, prior, soft_mask

SIX = ((1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 0, 1, 1))
TEXT = CalibrationSet("numbers", np.tile(np.arange(12), (4, 2)))


def maskllm(**options: Any) -> MaskLLM:
    made: MaskLLM = registry.build("weights", {"technique": "maskllm", "steps": 3, "batch": 2} | options)
    return made


def masks_of(model: Model) -> dict[str, Floats]:
    return {name: one.mask() for name, one in model.linears.items() if isinstance(one, Sparse24Linear)}


def test_a_soft_mask_is_the_mean_of_the_six_by_their_probabilities() -> None:
    random = np.random.default_rng(0)
    logits, noise = random.standard_normal((3, 6)).astype(np.float32), random.gumbel(size=(3, 6)).astype(np.float32)
    kappa, tau = 5.0, 0.7
    found = soft_mask(logits, noise, kappa, tau)
    for group in range(3):
        powers = [math.exp((kappa * float(logits[group, k]) + float(noise[group, k])) / tau) for k in range(6)]
        for column in range(4):
            wanted = sum(powers[k] * SIX[k][column] for k in range(6)) / sum(powers)
            assert found[group, column] == pytest.approx(wanted, rel=1e-4)
    tensors = soft_mask(torch.tensor(logits), torch.tensor(noise), kappa, tau)
    np.testing.assert_allclose(tensors.numpy(), found, rtol=1e-5)
    assert np.allclose(found.sum(axis=1), 2, atol=1e-5), "two of four stay, whatever the softness"


def test_a_prior_adds_by_how_many_weights_are_shared() -> None:
    mask = np.array([[True, False, True, False], [False, False, True, True]])
    wanted = [[0, 1, 0, 0, -1, 0], [-1, 0, 0, 0, 0, 1]]
    np.testing.assert_allclose(prior(mask, 0.01, 3.0), 0.03 * np.array(wanted), atol=1e-7)


def test_schedules_are_lines_and_the_likeliest_mask_is_of_the_largest_logit() -> None:
    assert [between((100.0, 500.0), done) for done in (0.0, 0.5, 1.0)] == [100.0, 300.0, 500.0]
    assert maskllm().reward_at(0.0) == 1e-5 and maskllm().reward_at(0.75) == pytest.approx(2.5e-6)
    logits = np.eye(6, dtype=np.float32)[[4, 0]]
    assert likeliest(logits).astype(int).tolist() == [list(SIX[4]), list(SIX[0])]


def test_without_training_it_keeps_the_prior(plain: Model) -> None:
    """A strong prior and a rate of next to nothing."""
    options = {"strength": 100.0, "rate": 1e-9, "steps": 1}
    by_magnitude = prepare(plain, [maskllm(prior="magnitude", **options)], calibration=TEXT)
    for name, mask in masks_of(prepare(plain, [registry.build("weights", {"technique": "magnitude"})])).items():
        assert np.array_equal(masks_of(by_magnitude)[name], mask), name
    still = registry.build("weights", {"technique": "sparsegpt", "update": False})
    by_output = prepare(plain, [maskllm(prior="sparsegpt", layers=[0], **options)], calibration=TEXT)
    wanted = masks_of(prepare(plain, [still], calibration=TEXT))
    name = "layers.0.attention.query"
    assert np.array_equal(masks_of(by_output)[name], wanted[name])
    assert len(masks_of(by_output)) == 7, "of layer 0 alone"


@pytest.mark.parametrize("name", ["experts", "untied-biased"])
def test_it_stores_what_it_learned_as_other_sparse_techniques_do(name: str) -> None:
    model = build(CONFIGS[name])
    said: list[int] = []
    sparse = prepare(model, [maskllm(values="int8")], calibration=TEXT, before=lambda: said.append(1))
    for place, linear in masks_of(sparse).items():
        assert sparse.linears[place].label == "2:4-int8-g32" and linear.shape[1] % 4 == 0
    assert "+maskllm(" in sparse.version and len(said) >= 2 * len(masks_of(sparse)) + 3
    assert any(entry.error > 0 for entry in sparse.report)


def loss(model: Model) -> float:
    logits = build_reference(model).logits(TEXT.sequences[0])[:-1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(TEXT.sequences[0][1:])))


def test_training_finds_better_masks_than_it_began_with(plain: Model) -> None:
    """Of a model that knows the text, begun from no prior at all."""
    knowing = trained(plain)
    options = {"prior": "none", "layers": [1], "reward": 0.0}
    before = prepare(knowing, [maskllm(steps=1, rate=1e-9, **options)], calibration=TEXT)
    after = prepare(knowing, [maskllm(steps=24, rate=0.03, batch=1, **options)], calibration=TEXT)
    assert loss(after) < 0.5 * loss(before)
    for name, mask in masks_of(after).items():
        found, whole = after.linears[name].dequantize(), knowing.linears[name].dequantize()
        np.testing.assert_allclose(found[mask], whole[mask], rtol=0.01, atol=1e-6)  # bf16


def trained(model: Model) -> Model:
    """The model after some steps on the text."""
    decoder = build_reference(model).decoder
    from thrifty.training.loop.batches import Batches
    from thrifty.training.loop.forward import logits_of
    from thrifty.training.loop.loop import Plan, train
    from thrifty.training.loop.losses import next_tokens

    batches = Batches(TEXT.sequences, 1)
    parameters: Any = {name: own for name, own in decoder.named_parameters() if own.requires_grad}

    def step(number: int) -> torch.Tensor:
        tokens = torch.tensor(batches.at(number))
        return next_tokens(logits_of(decoder, tokens), tokens)

    train(parameters, step, Plan(12, 0.01))
    return model


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_to_the_same_masks(plain: Model, tmp_path: Path) -> None:
    options = [maskllm(steps=24, rate=0.05, layers=[1], prior="none")]
    whole = masks_of(prepare(plain, options, calibration=TEXT))
    results = Results()
    results.folder = tmp_path
    left = 7 + 22

    def stop() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(plain, options, calibration=TEXT, before=stop, results=results)
    resumed = masks_of(prepare(plain, options, calibration=TEXT, results=results))
    assert all(np.array_equal(resumed[name], mask) for name, mask in whole.items()) and len(whole) == 7


def test_what_does_not_fit_is_refused(plain: Model) -> None:
    with pytest.raises(RecipeError, match=r"kappa is \(0\.0, 500\.0\); both ends must be above 0"):
        prepare(plain, [maskllm(kappa=[0, 500])], calibration=TEXT)
    with pytest.raises(RecipeError, match="layers and skip leave no linear to learn masks of"):
        prepare(plain, [maskllm(skip=["layers.*"])], calibration=TEXT)
    weight = plain.linears["layers.0.mlp.up"].dequantize().copy()
    weight[5, 5] = np.nan
    plain.replace("layers.0.mlp.up", DenseLinear.from_weight(weight))
    with pytest.raises(RecipeError, match=r"'layers\.0\.mlp\.up' has 1 NaN"):
        prepare(plain, [maskllm(prior="magnitude")], calibration=TEXT)
