"""The decoder as a machine: batches, layers one by one, gradients, experts, and what a model refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache

from thrifty.errors import CheckpointError, PromptError
from thrifty.formats.linear import GroupLinear
from thrifty.models.config.model_config import ExpertConfig, LayerSpec, ModelConfig, RopeConfig, RopeScaling
from thrifty.models.model import random_model
from thrifty.models.parts import parts
from thrifty.reference.attention import attention, causal
from thrifty.reference.decoder import Decoder
from thrifty.reference.loading import ReferenceModel, build
from thrifty.reference.norm import RMSNorm
from thrifty.reference.slot import Slot

ROPE = RopeConfig(10_000.0, 16)
DYNAMIC = RopeConfig(10_000.0, 16, RopeScaling("dynamic", 4.0, 16))
EXPERTS = ExpertConfig(4, 2, 24, normalise_probabilities=True, shared_intermediate_size=32, shared_gate=True)


def config(rope: RopeConfig = ROPE, experts: ExpertConfig | None = None, tied: bool = False) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocabulary_size=61,
        hidden_size=32,
        intermediate_size=48,
        heads=4,
        kv_heads=2,
        head_dim=16,
        context_length=128,
        layers=(LayerSpec(None, rope, experts is not None), LayerSpec(8, rope)),
        norm_epsilon=1e-5,
        query_scale=0.25,
        attention_bias=True,
        tied_embeddings=tied,
        experts=experts,
        attention_softcap=20.0,
    )


def random(config: ModelConfig, scale: float = 0.2) -> ReferenceModel:
    return build(random_model(config, scale=scale))


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("experts", [None, EXPERTS])
def test_chunks_equal_the_whole(experts: ExpertConfig | None) -> None:
    model = random(config(experts=experts))
    ids, cache = tokens(40), GrowingCache(model.config)
    whole = model.logits(ids)
    assert whole.std() > 0.3
    pieces = [model.decoder(ids[a:b], torch.arange(a, b), cache) for a, b in [(0, 7), (7, 8), (8, 33), (33, 40)]]
    torch.testing.assert_close(torch.cat(pieces).detach(), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rope", [ROPE, DYNAMIC], ids=["plain", "dynamic"])
def test_sequences_in_one_batch_equal_sequences_alone(rope: RopeConfig) -> None:
    """Flat rows of three sequences, each with its own cache, lengths and rope."""
    model = random(config(rope, EXPERTS))
    lengths, caches = [5, 20, 60], [GrowingCache(model.config) for _ in range(3)]

    def attend(layer: int, *parts: torch.Tensor) -> torch.Tensor:
        rows = zip(*(part.split(lengths) for part in parts), strict=True)
        return torch.cat([cache(layer, *row) for cache, row in zip(caches, rows, strict=True)])

    ids = [tokens(length, seed=length) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])
    by_row = torch.tensor(lengths).repeat_interleave(torch.tensor(lengths))
    together = model.decoder(torch.cat(ids), positions, attend, by_row)
    alone = torch.cat([model.logits(part) for part in ids])
    torch.testing.assert_close(together.detach(), alone, atol=1e-5, rtol=0)


def test_layer_by_layer_equals_forward() -> None:
    model = random(config(DYNAMIC))
    ids, positions = tokens(30), torch.arange(30)
    hidden = model.decoder.embed(ids)
    for index in range(2):
        hidden = model.decoder.layer(index, hidden, positions, causal(model.config))
    assert torch.equal(model.decoder.logits(hidden), model.decoder(ids, positions, causal(model.config)))


def test_a_window_hides_what_lies_before_it() -> None:
    query, key, value = torch.randn(3, 12, 2, 8).unbind()
    changed = value.clone()
    changed[0] += 100.0
    before = attention(query, key, value, scale=1.0, window=4)
    after = attention(query, key, changed, scale=1.0, window=4)
    assert torch.equal(before[4:], after[4:])
    assert not torch.allclose(before[3], after[3])


@pytest.mark.parametrize(("window", "softcap"), [(None, None), (70, None), (300, 5.0)])
def test_blocked_attention_equals_one_softmax(window: int | None, softcap: float | None) -> None:
    """600 rows over 700 slots cross the block of 256; the oracle makes the whole score matrix."""
    query, key, value = leaves(600, 700)
    expected = dense(query, key, value, window, softcap)
    found = attention(query, key, value, scale=0.5, window=window, softcap=softcap)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_gradients_of_blocked_attention_are_those_of_one_softmax() -> None:
    inputs = [one.requires_grad_() for one in leaves(300, 320)]
    upstream = torch.randn(300, 4, 8)
    found = torch.autograd.grad((attention(*inputs, scale=0.5, window=80, softcap=5.0) * upstream).sum(), inputs)
    expected = torch.autograd.grad((dense(*inputs, 80, 5.0) * upstream).sum(), inputs)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def leaves(rows: int, slots: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(rows, 4, 8, generator=generator)
    key, value = (torch.randn(slots, 2, 8, generator=generator) for _ in range(2))
    return query, key, value


def dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, softcap: float | None
) -> torch.Tensor:
    """The whole score matrix, at a scale of 0.5."""
    rows, slots = len(query), len(key)
    scores = torch.einsum("nhd,shd->hns", query, key.repeat_interleave(2, dim=1)) * 0.5
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(slots - rows, slots)[:, None] - torch.arange(slots)
    hidden = (distance < 0) | (distance >= (window or 10_000))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hns,shd->nhd", weights, value.repeat_interleave(2, dim=1))


def test_every_parameter_learns() -> None:
    """A few steps on one sequence lower the loss, and no parameter is left without a gradient."""
    model = random(config(experts=ExpertConfig(2, 2, 24, True, 32, True), tied=True))
    ids, optimizer = tokens(48), torch.optim.Adam(model.decoder.parameters(), lr=0.01)
    losses = []
    for _ in range(8):
        logits = model.decoder(ids[:-1], torch.arange(47), causal(model.config))
        loss = torch.nn.functional.cross_entropy(logits, ids[1:])
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.decoder.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_experts_take_each_token_to_its_most_probable() -> None:
    model = random(config(experts=ExpertConfig(4, 2, 24, normalise_probabilities=False)))
    mixture, x = model.decoder.layers[0].mlp, torch.randn(9, 32)
    probabilities = mixture.router(x).softmax(-1)
    expected = torch.zeros(9, 32)
    for row in range(9):
        for expert in probabilities[row].topk(2).indices.tolist():
            expected[row] += probabilities[row, expert] * mixture.experts(x[row : row + 1], expert)[0]
    torch.testing.assert_close(mixture(x), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "The prompt is empty; it needs at least 1 token"),
        ([1] * 129, "The prompt has 129 tokens; this model's context holds 128"),
        ([1, 61], "Token id 61 is outside this model's vocabulary, 0 to 60"),
        ([1, -1], "Token id -1 is outside"),
        ([0.5], "Token ids are float64 of shape [1]; they must be integers"),
        ([[1, 2]], "Token ids are int64 of shape [1, 2]"),
        (["a"], "Token ids must be a flat list of integers"),
        ([1 << 70], "Token ids must be a flat list of integers"),
    ],
)
def test_prompts_that_cannot_be_served(ids: list[object], message: str) -> None:
    with pytest.raises(PromptError) as error:
        random(config()).logits(ids)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_lists_and_tensors_are_the_same() -> None:
    model, ids = random(config()), tokens(5)
    assert torch.equal(model.logits(ids.tolist()), model.logits(ids.to(torch.int32)))
    assert model.logits(ids).shape == (5, 61)


def test_bytes_are_those_of_all_tensors() -> None:
    model = random(config(experts=EXPERTS))
    assert model.model.nbytes == 4 * sum(parameter.numel() for parameter in model.decoder.parameters())


def test_an_empty_decoder_has_no_memory_and_says_what_it_needs() -> None:
    decoder = Decoder(config())
    assert all(parameter.is_meta for parameter in decoder.parameters())
    with pytest.raises(CheckpointError, match=r"\[64, 32\] was used before it was loaded"):
        decoder.layers[0].attention.query(torch.zeros(1, 32))


SHAPES = {
    "biased": config(),
    "tied experts": config(experts=EXPERTS, tied=True),
    "experts alone": config(experts=ExpertConfig(3, 2, 24, normalise_probabilities=False)),
    "norms by head": dataclasses.replace(config(), qk_norm="head", post_norms=True, output_bias=True),
    "norms of all heads": dataclasses.replace(config(), qk_norm="full", mlp_bias=True, attention_bias=False),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_places_of_a_decoder_are_the_parts_of_its_config(name: str) -> None:
    places: list[tuple[str, tuple[int, ...]]] = []
    for path, module in Decoder(SHAPES[name]).named_modules():
        if isinstance(module, Slot):
            places.append((path, (module.out_features, module.in_features)))
            places += [(f"{path}.bias", (module.out_features,))] * module.has_bias
        elif isinstance(module, RMSNorm):
            places.append((path, tuple(module.weight.shape)))
    assert places == list(parts(SHAPES[name]).items())


def test_a_linear_of_the_model_can_be_replaced() -> None:
    model, ids = random_model(config(), scale=0.2), tokens(6)
    before = build(model).logits(ids)
    name = "layers.1.mlp.up"
    model.replace(name, GroupLinear.quantize(model.linears[name].dequantize(), 8, 32))
    assert 0 < (build(model).logits(ids) - before).abs().max() < 0.1


def test_norms_add_the_offset_that_a_family_leaves_out() -> None:
    plain = random_model(config(), scale=0.2)
    lowered = {name: weight - np.float32(1) for name, weight in plain.norms.items()}
    shifted = dataclasses.replace(plain, config=dataclasses.replace(plain.config, norm_offset=1.0), norms=lowered)
    torch.testing.assert_close(build(shifted).logits(tokens(9)), build(plain).logits(tokens(9)), atol=1e-5, rtol=0)
