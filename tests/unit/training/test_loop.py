"""The training loop: batches, losses, schedule, steps, checkpoints, low-rank additions."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import hybrid_config
from tests.unit.weights.conftest import PLAIN, build
from torch import Tensor, nn

from thrifty.errors import RecipeError, StorageError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.model import random_model
from thrifty.reference.attention import causal
from thrifty.reference.linear import Linear
from thrifty.reference.loading import build as build_reference
from thrifty.training.loop.batches import Batches, cut
from thrifty.training.loop.checkpoint import Checkpoint
from thrifty.training.loop.forward import logits_of
from thrifty.training.loop.loop import Plan, Progress, train
from thrifty.training.loop.lora import LoraLinear, LoraOptions, attach, parameters_of
from thrifty.training.loop.losses import divergence, hidden_error, next_tokens


def test_a_batch_follows_from_its_step_and_every_sequence_comes_once_a_time_through() -> None:
    batches = Batches(np.arange(14).reshape(7, 2), size=3, seed=5)
    seen = np.concatenate([batches.at(step)[:, 0] for step in range(7)])
    assert all(sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(0, 14, 2)) for epoch in range(3))
    assert np.array_equal(batches.at(4), Batches(batches.sequences, 3, 5).at(4))
    assert not np.array_equal(seen[:7], seen[7:14])
    with pytest.raises(RecipeError, match=r"training text has shape \[3, 1\]; it must be one or more sequences of 2"):
        Batches(np.zeros((3, 1), np.int64), 1)
    assert cut(range(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(RecipeError, match="a text of 3 tokens holds no sequence of 4"):
        cut([1, 2, 3], 4)


def test_losses_are_those_of_their_formulas() -> None:
    logits, teacher, tokens = torch.randn(2, 4, 5), torch.randn(2, 4, 5), torch.randint(0, 5, (2, 4))
    wanted = 0.0
    for sequence in range(2):
        for place in range(3):
            row = logits[sequence, place].double()
            wanted -= float(row[tokens[sequence, place + 1]] - torch.logsumexp(row, 0)) / 6
    assert float(next_tokens(logits, tokens)) == pytest.approx(wanted, rel=1e-5)
    apart = 0.0
    for sequence in range(2):
        for place in range(4):
            p, q = ((one[sequence, place].double() / 2).softmax(0) for one in (teacher, logits))
            apart += 4 * float((p * (p / q).log()).sum()) / 8
    assert float(divergence(logits, teacher, temperature=2.0)) == pytest.approx(apart, rel=1e-4)
    assert float(divergence(logits, logits)) == pytest.approx(0, abs=1e-6)
    assert float(hidden_error(logits, teacher)) == pytest.approx(float((logits - teacher).square().mean()), rel=1e-5)


@pytest.mark.parametrize("config", [PLAIN, hybrid_config("ra")], ids=["attention", "recurrent"])
def test_sequences_together_are_sequences_alone(config: object) -> None:
    model = random_model(config, seed=1, scale=0.1)  # type: ignore[arg-type]
    decoder, tokens = build_reference(model).decoder, torch.randint(0, 50, (3, 9))
    with torch.no_grad():
        together = logits_of(decoder, tokens)
        for row, logits in zip(tokens, together, strict=True):
            alone = decoder(row, torch.arange(9), causal(model.config))
            torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)


def test_the_rate_rises_and_falls_along_a_cosine() -> None:
    plan = Plan(steps=12, rate=1.0, last_rate=0.1, warm_up=2)
    assert [plan.rate_at(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert plan.rate_at(7) == pytest.approx(0.55) and plan.rate_at(12) == pytest.approx(0.1)
    assert plan.rate_at(4) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 0.2)) / 2)


def bowl(seen: list[float] | None = None) -> tuple[dict[str, nn.Parameter], object]:
    """A parameter, and a loss with its least at 3; what chance each step drew is kept."""
    parameter = nn.Parameter(torch.tensor([0.0, 10.0]))

    def loss(step: int) -> Tensor:
        drawn = torch.rand(1)
        if seen is not None:
            seen.append(float(drawn))
        return (parameter - 3).square().sum() + 0 * drawn.sum()

    return {"x": parameter}, loss


def test_steps_are_torchs_adamw() -> None:
    parameters, loss = bowl()
    plan = Plan(steps=30, rate=0.5, last_rate=0.05, clip=2.0, weight_decay=0.1)
    said: list[Progress] = []
    losses = train(parameters, loss, plan, say=said.append)  # type: ignore[arg-type]
    assert losses[-1] < 0.1 * losses[0] and len(losses) == 30
    other = nn.Parameter(torch.tensor([0.0, 10.0]))
    optimizer = torch.optim.AdamW([other], lr=1.0, betas=plan.betas, weight_decay=0.1)
    for step in range(30):
        optimizer.param_groups[0]["lr"] = plan.rate_at(step)
        optimizer.zero_grad()
        (other - 3).square().sum().backward()
        nn.utils.clip_grad_norm_([other], 2.0)
        optimizer.step()
    assert torch.equal(parameters["x"], other)
    assert [progress.step for progress in said] == list(range(1, 31)) and said[-1].seconds_left == 0.0


def test_chance_is_seeded_by_the_step_and_the_callers_stays() -> None:
    first: list[float] = []
    second: list[float] = []
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    for seen in (first, second):
        parameters, loss = bowl(seen)
        train(parameters, loss, Plan(4, 0.1, seed=3))  # type: ignore[arg-type]
    assert first == second and len(set(first)) == 4
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    plan = Plan(steps=10, rate=0.3, save=4)
    whole, loss = bowl()
    train(whole, loss, plan)  # type: ignore[arg-type]
    checkpoint = Checkpoint.of(tmp_path / "state", "bowl", "a run")
    assert checkpoint is not None
    begun, loss = bowl()

    def kill(progress: Progress) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(begun, loss, plan, checkpoint=checkpoint, say=kill)  # type: ignore[arg-type]
    again, loss = bowl()
    assert len(train(again, loss, plan, checkpoint=checkpoint)) == 6, "4 steps were kept"  # type: ignore[arg-type]
    assert torch.equal(again["x"], whole["x"])
    assert train(again, loss, plan, checkpoint=checkpoint) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plan", "saved"),
    [
        (Plan(5, 0.1, save=2), [0, 2, 2, 4, 5]),
        (Plan(5, 0.1, save=100, save_seconds=0.0), [1, 2, 3, 4, 5]),
        (Plan(5, 0.1, save=100), [0, 0, 0, 0, 5]),
    ],
)
def test_progress_tells_the_steps_that_a_kill_cannot_take(plan: Plan, saved: list[int], tmp_path: Path) -> None:
    """Slow steps are kept by the clock, whatever their number."""
    parameter, told = nn.Parameter(torch.ones(2)), list[Progress]()
    kept = Checkpoint(tmp_path / "state", "run")
    train({"x": parameter}, lambda step: parameter.square().sum(), plan, checkpoint=kept, say=told.append)
    assert [progress.saved for progress in told] == saved
    alone = list[Progress]()
    train({"x": parameter}, lambda step: parameter.square().sum(), plan, say=alone.append)
    assert [progress.saved for progress in alone] == [0] * 5


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    parameters, loss = bowl()
    path = tmp_path / "state.safetensors"
    train(parameters, loss, Plan(1, 0.1), checkpoint=Checkpoint(path, "one"))  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="is the state of another training run: remove it"):
        train(parameters, loss, Plan(1, 0.1), checkpoint=Checkpoint(path, "two"))  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=r"lacks 'y' \[2\]: remove it"):
        train({"y": parameters["x"]}, loss, Plan(1, 0.1), checkpoint=Checkpoint(path, "one"))  # type: ignore[arg-type]
    path.write_bytes(b"no tensors")
    with pytest.raises(StorageError, match=r"cannot read the state of the training .*; remove it"):
        train(parameters, loss, Plan(1, 0.1), checkpoint=Checkpoint(path, "one"))  # type: ignore[arg-type]


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    parameter = nn.Parameter(torch.tensor([math.nan]))
    with pytest.raises(RecipeError, match="the loss of step 1 is nan: the weights hold numbers that are none"):
        train({"x": parameter}, lambda step: parameter.sum(), Plan(3, 0.1))


@pytest.mark.parametrize("coded", [False, True])
def test_a_merged_addition_is_the_layer_with_it(coded: bool) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 32), np.float32)
    bias = np.arange(6, dtype=np.float32)
    stored = GroupLinear.quantize(weight, 8, 32, bias=bias) if coded else DenseLinear.from_weight(weight, bias=bias)
    lora = LoraLinear(Linear(stored), LoraOptions(rank=4, alpha=8.0, dropout=0.5), seed=1).eval()
    x = torch.randn(5, 32)
    torch.testing.assert_close(lora(x), Linear(stored)(x))
    nn.init.normal_(lora.up)
    low = x @ lora.down.T
    wanted = Linear(stored)(x) + 8.0 / 4 * low @ lora.up.T
    torch.testing.assert_close(lora(x), wanted)
    merged = Linear(DenseLinear.from_weight(lora.merged(), bias=bias))
    torch.testing.assert_close(merged(x), wanted, rtol=1e-4, atol=1e-4)
    drawn = lora.down.detach()
    assert float(drawn.abs().max()) <= 32**-0.5 and float(drawn.std()) > 0.3 * 32**-0.5
    assert not torch.equal(lora.train()(x), lora.train()(x)), "dropout while training"


def test_additions_alone_have_gradients() -> None:
    model = build(dataclasses.replace(PLAIN, layers=PLAIN.layers[:1]))
    decoder = build_reference(model).decoder
    names = ["layers.0.attention.query", "layers.0.mlp.down"]
    added = attach(decoder, names, LoraOptions())
    tokens = torch.randint(0, 50, (2, 6))
    next_tokens(logits_of(decoder, tokens), tokens).backward()
    trained = {name for name, parameter in decoder.named_parameters() if parameter.grad is not None}
    assert trained == {f"{name}.{part}" for name in names for part in ("down", "up")} == set(parameters_of(added))
