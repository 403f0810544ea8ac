"""Steps of the reference: arrays in and out, and the same bits in any batch and any chunking."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from tests.tiny import text_tokens, tiny_model

from thrifty.arrays import Array, Floats, Integers
from thrifty.decoding.scores import ArrayScores
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.model import Model
from thrifty.reference.attention import attention
from thrifty.reference.loading import build
from thrifty.reference.runner import ReferenceRunner, Watch, blocks


class PlainCache:
    """Keeps the keys and values of a sequence as arrays, and attends to all of them."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.keys: list[list[Floats]] = [[] for _ in config.layers]
        self.values: list[list[Floats]] = [[] for _ in config.layers]
        self.seen: list[int] = []

    def append(self, layer: int, key: Floats, value: Floats) -> None:
        for array in (key, value):
            assert isinstance(array, np.ndarray) and array.dtype == np.float32
        self.keys[layer].append(key.copy())
        self.values[layer].append(value.copy())

    def attend(
        self, layer: int, query: Floats, positions: Integers, ahead: Array | None = None, decodes: bool = False
    ) -> Floats:
        assert ahead is None
        assert isinstance(query, np.ndarray) and query.dtype == np.float32 and positions.dtype == np.int64
        self.seen += positions.tolist() if layer == 0 else []
        arrays: list[Array] = [query, np.concatenate(self.keys[layer]), np.concatenate(self.values[layer])]
        window = self.config.layers[layer].window
        scale = self.config.query_scale
        return attention(*(torch.from_numpy(x) for x in arrays), scale=scale, window=window).numpy()


@dataclass(frozen=True)
class Piece:
    """As the engine's rows."""

    cache: PlainCache
    tokens: tuple[int, ...]
    start: int
    length: int
    watch: Watch | None = None
    extra: None = None


@pytest.fixture(scope="module", params=["plain", "packed", "windowed"])
def model(request: pytest.FixtureRequest) -> Model:
    return tiny_model(request.param != "plain", windows=(40, None) if request.param == "windowed" else ())


def rows_of(model: Model, count: int = 150, seed: int = 0) -> Piece:
    return Piece(PlainCache(model.config), tuple(text_tokens(count, seed)), 0, count)


def part(rows: Piece, start: int, stop: int) -> Piece:
    return Piece(rows.cache, rows.tokens[start:stop], start, rows.length)


def test_a_step_gives_the_logits_of_the_model(model: Model) -> None:
    runner, rows = ReferenceRunner(model, "a test"), rows_of(model)
    assert (runner.name, runner.reason, runner.layers) == ("reference", "a test", len(model.config.layers))
    scores = runner.prefill(part(rows, 0, 148), last=True)
    assert scores is not None
    decoded = runner.decode([part(rows, 148, 150)])
    found = np.stack([scores.logits(0), decoded.logits(0), decoded.logits(1)])
    expected = build(model).logits(rows.tokens)[147:]
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-3, rtol=1e-4)
    assert rows.cache.seen == list(range(150))


def test_any_chunking_gives_the_same_bits(model: Model) -> None:
    runner = ReferenceRunner(model, "")
    found = []
    for sizes in ([150], [64, 64, 22], [128, 22]):
        rows, start, scores = rows_of(model), 0, None
        for size in sizes:
            scores = runner.prefill(part(rows, start, start + size), last=start + size == 150)
            start += size
        assert scores is not None
        found.append(scores.logits(0))
    assert all(np.array_equal(one, found[0]) for one in found)
    assert runner.prefill(rows_of(model, 5), last=False) is None


def test_a_row_is_the_same_in_a_batch_and_alone(model: Model) -> None:
    runner = ReferenceRunner(model, "")

    def prefilled(seed: int) -> Piece:
        rows = rows_of(model, 70, seed)
        runner.prefill(part(rows, 0, 66), last=False)
        return part(rows, 66, 70)

    together = runner.decode([prefilled(1), prefilled(2)])
    batched = np.stack([together.logits(row) for row in range(8)])
    alone = [runner.decode([prefilled(seed)]) for seed in (1, 2)]
    assert np.array_equal(batched, np.stack([scores.logits(row) for scores in alone for row in range(4)]))
    assert together.best(3) == int(batched[3].argmax())


def test_layer_by_layer_gives_the_bits_of_a_prefill_and_tells_the_queries(model: Model) -> None:
    runner, rows, layers = ReferenceRunner(model, ""), rows_of(model), len(model.config.layers)
    scores = runner.prefill(rows, last=True)
    assert scores is not None
    told: list[tuple[int, Floats]] = []
    again = Piece(PlainCache(model.config), rows.tokens, 0, 150, lambda layer, query: told.append((layer, query)))
    hidden = runner.embed(again.tokens)
    assert hidden.shape == (150, model.config.hidden_size) and hidden.dtype == np.float32
    for layer in range(layers):
        hidden = runner.run_layers(layer, layer + 1, hidden, again)
    assert np.array_equal(runner.logits(hidden[-1:]).logits(0), scores.logits(0))
    assert [layer for layer, _ in told] == [layer for layer in range(layers) for _ in range(3)]
    assert [len(query) for _, query in told[:3]] == [64, 64, 22]


def test_blocks_end_where_pages_do() -> None:
    rows = Piece(PlainCache(tiny_model().config), tuple(range(140)), 50, 190)
    assert [(block.start, len(block.tokens), block.tokens[0]) for block in blocks(rows)] == [
        (50, 14, 0), (64, 64, 14), (128, 62, 78),
    ]  # fmt: skip
    assert blocks(rows)[1].cache is rows.cache


@dataclass
class Row:
    values: list[float]
    best: int = field(default=-1)


@pytest.mark.parametrize(
    "row",
    [Row([1, 3, 3, 2], 1), Row([1, np.nan, 9]), Row([np.inf, 1]), Row([-np.inf] * 3), Row([-np.inf, 2], 1)],
)
def test_the_best_is_the_first_largest_or_none(row: Row) -> None:
    assert ArrayScores(np.array([row.values], np.float32)).best(0) == row.best


def test_its_bytes_are_a_blocks(model: Model) -> None:
    runner = ReferenceRunner(model, "")
    assert runner.workspace == 4 * 64 * (4 * 128 + 3 * 256 + 2 * 256)
    runner.keep_logits(3)
