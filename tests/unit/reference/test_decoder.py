"""The decoder as a machine: batches, layers one by one, gradients, experts, and what a model refuses."""

from __future__ import annotations

import pytest
import torch
from tests.growing_cache import GrowingCache

from thrifty.errors import CheckpointError, PromptError
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.assembly import Assembly, parts
from thrifty.models.config import ExpertConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling
from thrifty.models.model import random_model, reference_linears
from thrifty.reference.attention import attention, causal
from thrifty.reference.decoder import Decoder

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
        layers=(LayerConfig(None, rope, experts is not None), LayerConfig(8, rope)),
        norm_epsilon=1e-5,
        query_scale=0.25,
        attention_bias=True,
        tied_embeddings=tied,
        experts=experts,
        attention_softcap=20.0,
    )


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("experts", [None, EXPERTS])
def test_chunks_equal_the_whole(experts: ExpertConfig | None) -> None:
    model = random_model(config(experts=experts), scale=0.2)
    ids, cache = tokens(40), GrowingCache(model.config)
    whole = model.logits(ids)
    assert whole.std() > 0.3
    pieces = [model.decoder(ids[a:b], torch.arange(a, b), cache) for a, b in [(0, 7), (7, 8), (8, 33), (33, 40)]]
    torch.testing.assert_close(torch.cat(pieces).detach(), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rope", [ROPE, DYNAMIC], ids=["plain", "dynamic"])
def test_sequences_in_one_batch_equal_sequences_alone(rope: RopeConfig) -> None:
    """Flat rows of three sequences, each with its own cache, lengths and rope."""
    model = random_model(config(rope, EXPERTS), scale=0.2)
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
    model = random_model(config(DYNAMIC), scale=0.2)
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
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(600, 4, 8, generator=generator)
    key, value = torch.randn(2, 700, 2, 8, generator=generator).unbind()
    scores = torch.einsum("nhd,shd->hns", query, key.repeat_interleave(2, dim=1)) * 0.5
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(100, 700)[:, None] - torch.arange(700)
    hidden = (distance < 0) | (distance >= (window or 10_000))
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    expected = torch.einsum("hns,shd->nhd", weights, value.repeat_interleave(2, dim=1))
    found = attention(query, key, value, scale=0.5, window=window, softcap=softcap)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_every_parameter_learns() -> None:
    """A few steps on one sequence lower the loss, and no parameter is left without a gradient."""
    model = random_model(config(experts=ExpertConfig(2, 2, 24, True, 32, True), tied=True), scale=0.2)
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
    model = random_model(config(experts=ExpertConfig(4, 2, 24, normalise_probabilities=False)), scale=0.2)
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
        ([0.5], "Token ids are float32 of shape [1]; they must be integers"),
        ([[1, 2]], "Token ids are int64 of shape [1, 2]"),
        (["a"], "Token ids must be a flat list of integers"),
        ([1 << 70], "Token ids must be a flat list of integers"),
    ],
)
def test_prompts_that_cannot_be_served(ids: list[object], message: str) -> None:
    with pytest.raises(PromptError) as error:
        random_model(config()).logits(ids)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_lists_and_tensors_are_the_same() -> None:
    model, ids = random_model(config()), tokens(5)
    assert torch.equal(model.logits(ids.tolist()), model.logits(ids.to(torch.int32)))
    assert model.logits(ids).shape == (5, 61)


def test_bytes_are_those_of_all_tensors() -> None:
    model = random_model(config(experts=EXPERTS))
    assert model.nbytes == 4 * sum(parameter.numel() for parameter in model.decoder.parameters())


def test_an_empty_decoder_has_no_memory_and_says_what_it_needs() -> None:
    decoder = Decoder(config())
    assert all(parameter.is_meta for parameter in decoder.parameters())
    needed = parts(decoder)
    assert needed["layers.1.mlp.down"] == (32, 48)
    assert needed["layers.0.attention.key.bias"] == (32,)
    with pytest.raises(CheckpointError, match=r"\[64, 32\] was used before it was loaded"):
        decoder.layers[0].attention.query(torch.zeros(1, 32))


def test_assembly_refuses_what_does_not_fit() -> None:
    assembly = Assembly(config())
    with pytest.raises(CheckpointError, match="'layers.7.mlp.up' has no place in this llama model"):
        assembly.put("layers.7.mlp.up", torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"'layers.0.mlp.up' has shape \[3, 4\]; expected \[48, 32\]"):
        assembly.put("layers.0.mlp.up", DenseLinear.from_weight(torch.zeros(3, 4)))
    assembly.put("final_norm", torch.ones(32))
    with pytest.raises(CheckpointError, match="'final_norm' comes twice"):
        assembly.put("final_norm", torch.ones(32))
    with pytest.raises(CheckpointError, match=r"lacks 'embedding' \[61, 32\].* and \d+ more"):
        assembly.finish()


def test_a_linear_can_be_replaced_in_place() -> None:
    model, ids = random_model(config(), scale=0.2), tokens(6)
    before = model.logits(ids)
    name = "layers.1.mlp.up"
    old = dict(model.decoder.linears())[name]
    model.decoder.replace(name, GroupLinear.quantize(old.weight.detach(), 8, 32))  # type: ignore[union-attr]
    assert 0 < (model.logits(ids) - before).abs().max() < 0.1
    with pytest.raises(CheckpointError, match=r"'final_norm' is not a linear"):
        model.decoder.replace("final_norm", old)
    with pytest.raises(CheckpointError, match=r"has shape \[48, 32\]; this decoder expects \[32, 48\]"):
        model.decoder.replace("layers.1.mlp.down", old)


def test_the_reference_path_is_undone_after_an_error() -> None:
    model = random_model(config())
    linears = [linear for _, linear in model.decoder.linears()]
    linears[0].native = False
    with pytest.raises(KeyError), reference_linears(model.decoder):
        assert not any(linear.native for linear in linears)
        raise KeyError
    assert [linear.native for linear in linears] == [False] + [True] * (len(linears) - 1)
