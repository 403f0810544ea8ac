"""The native plan of a step against the decoder, and the independence of a row from batch and chunking."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.kernels.native_pages import QUICK_ISAS, native, using
from tests.unit.kernels.native_plans import (
    BIASED,
    GEMMA,
    LLAMA,
    cache,
    compile_plan,
    decoder,
    feed,
    integers,
    span,
    tokens,
    with_oracles,
)
from torch import Tensor

from thrifty.arrays import BFLOAT16
from thrifty.errors import KernelError
from thrifty.formats.linear import DenseLinear
from thrifty.models.config.model_config import LayerSpec, ModelConfig, RopeConfig
from thrifty.reference.attention import causal

CASES = [(LLAMA, 4), (LLAMA, 16), (GEMMA, 8), (BIASED, 4)]


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("config, bits", CASES)
def test_each_layer_agrees_with_the_decoder(isa: str, config: ModelConfig, bits: int) -> None:
    """From the same input. An activation may round to the other side, so a few elements differ by a step of int8."""
    made = decoder(config, bits)
    ids, count = tokens(150), 150
    store = cache(config, count)
    with using(isa):
        plan = compile_plan(made, 160)
        hidden = plan.embed(ids)
        torch.testing.assert_close(hidden, made.embed(ids.long()))
        with_oracles(made)
        for index in range(len(config.layers)):
            with torch.no_grad():
                wanted = made.layer(index, hidden.clone(), torch.arange(count), causal(config))
            plan.layers(hidden, span(0, count), [store.view], [count], index, index + 1)
            error, size = (hidden - wanted).abs(), float(wanted.abs().mean())
            assert float(error.median()) < 1e-5 * size
            assert float(error.mean()) < 3e-3 * size
            assert float(error.max()) < 0.1 * size
        with torch.no_grad():
            wanted = made.logits(hidden)
        found = plan.logits(hidden)
    assert float((found - wanted).abs().median()) < 1e-5
    assert float((plan.argmax == wanted.argmax(1)).float().mean()) > 0.98
    assert torch.equal(plan.argmax.long(), found.argmax(1))


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("config, bits", CASES)
def test_any_chunking_gives_the_same_bits(isa: str, config: ModelConfig, bits: int) -> None:
    ids = tokens(300)
    with using(isa):
        plan = compile_plan(decoder(config, bits), 300)
        whole = feed(plan, config, ids, [300])
        for sizes in ([128, 128, 44], [17, 3, 1, 1, 2, 276], [1] * 300):
            assert torch.equal(feed(plan, config, ids, sizes), whole)


@pytest.mark.parametrize("config, bits", CASES)
def test_a_sequence_alone_equals_a_sequence_in_a_batch(config: ModelConfig, bits: int) -> None:
    native()
    plan = compile_plan(decoder(config, bits), 64)
    all_ids = [tokens(40, seed) for seed in range(3)]
    alone = [feed(plan, config, ids, [10, 25, 1, 1, 1, 1, 1]) for ids in all_ids]
    stores = [cache(config, 64, "bf16") for _ in all_ids]
    views, starts = [store.view for store in stores], [0, 0, 0]
    for counts in ([10, 1, 5], [1, 20, 3], [29, 19, 14], [0, 0, 1]):
        parts = [(i, slice(starts[i], starts[i] + count)) for i, count in enumerate(counts) if count]
        ids = torch.cat([all_ids[i][part] for i, part in parts])
        positions = torch.cat([span(part.start, part.stop) for _, part in parts])
        sizes = [part.stop - part.start for _, part in parts]
        logits = plan.step(ids, positions, [views[i] for i, _ in parts], sizes, span(0, len(ids)))
        assert torch.equal(logits, torch.cat([alone[i][part] for i, part in parts]))
        starts = [start + count for start, count in zip(starts, counts, strict=True)]


def test_layer_by_layer_with_queries_equals_a_step() -> None:
    native()
    made = with_oracles(decoder(GEMMA, 8))
    plan, ids = compile_plan(made, 64), tokens(50)
    whole = feed(plan, GEMMA, ids, [50])
    store, hidden = cache(GEMMA, 64, "bf16"), plan.embed(ids)
    for index in range(2):
        before, queries = hidden.clone(), torch.empty(50, 2, 128)
        plan.layers(hidden, span(0, 50), [store.view], [50], index, index + 1, queries)
        seen: list[Tensor] = []

        def catch(layer: int, query: Tensor, key: Tensor, value: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(query)
            return query

        with torch.no_grad():
            made.layer(index, before, torch.arange(50), catch)
        torch.testing.assert_close(queries, seen[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(plan.logits(hidden), whole)


def test_tap_and_skip() -> None:
    native()
    plan, ids = compile_plan(decoder(LLAMA), 32), tokens(20)
    tapped, store = torch.empty(20, 96), cache(LLAMA, 64)
    plan.step(ids, span(0, 20), [store.view], [20], integers(19), taps={1: tapped})
    hidden, other = plan.embed(ids), cache(LLAMA, 64)
    plan.layers(hidden, span(0, 20), [other.view], [20], 0, 2)
    assert torch.equal(tapped, hidden)
    skipping = cache(LLAMA, 64)
    found = plan.step(ids, span(0, 20), [skipping.view], [20], integers(19), skip=[2]).clone()
    assert torch.equal(found, plan.logits(tapped[19:]))
    assert [skipping.view.tokens(layer) for layer in range(3)] == [20, 20, 0]


def test_positions_are_a_vector() -> None:
    """Rows at other positions than their slots: only the rotation notices."""
    native()
    plan, ids = compile_plan(decoder(LLAMA), 32), tokens(8)
    plain, shifted, odd = (cache(LLAMA, 64) for _ in range(3))
    first = plan.step(ids, span(0, 8), [plain.view], [8], integers(7)).clone()
    second = plan.step(ids, span(100, 108), [shifted.view], [8], integers(7)).clone()
    torch.testing.assert_close(first, second, rtol=0, atol=0.1)
    third = plan.step(ids, integers(0, 9, 3, 1, 50, 2, 7, 4), [odd.view], [8], integers(7))
    assert float((third - first).abs().max()) > 0.05


def test_logit_rows_in_any_order_and_more_than_the_plan_has() -> None:
    native()
    plan, ids = compile_plan(decoder(LLAMA), 8), tokens(8)
    every = feed(plan, LLAMA, ids, [8])
    rows, store = integers(*[7, 0, 3] * 5), cache(LLAMA, 64, "bf16")
    assert torch.equal(plan.step(ids, span(0, 8), [store.view], [8], rows), every[rows.long()])
    assert torch.equal(plan.argmax.long(), every[rows.long()].argmax(1))


def test_workspace_is_counted() -> None:
    native()
    small, large = (compile_plan(decoder(LLAMA), rows) for rows in (8, 256))
    for plan in (small, large):
        plan.embed(tokens(2))
    assert large.nbytes - small.nbytes > 248 * 4 * (96 + 384 + 2 * 128 + 384 + 144)


def test_an_unsupported_head_says_why() -> None:
    native()
    config = dataclasses.replace(LLAMA, head_dim=8, layers=(LayerSpec(None, RopeConfig(1e4, 8)),))
    with pytest.raises(KernelError, match="a plan needs a head dimension that is an even number from 16 .*, not 8"):
        compile_plan(decoder(config), 8)


def test_an_unsupported_linear_is_named() -> None:
    native()
    made = decoder(LLAMA)
    made.replace("layers.1.mlp.down", DenseLinear.from_weight(np.zeros((96, 144), np.float32), BFLOAT16))
    with pytest.raises(KernelError, match=r"layers.1.mlp.down: no native kernel for DenseLinear bf16"):
        compile_plan(made, 8)


def test_wrong_steps_are_refused_and_append_nothing() -> None:
    native()
    plan, store, row = compile_plan(decoder(LLAMA), 8), cache(LLAMA, 64), integers(0)
    view = store.view
    with pytest.raises(KernelError, match="takes 1 to 8 rows, not 9"):
        plan.step(tokens(9), span(0, 9), [view], [9], row)
    with pytest.raises(KernelError, match="token id 133 is outside the vocabulary of 133"):
        plan.step(integers(133), integers(0), [view], [1], row)
    with pytest.raises(KernelError, match="row counts sum to 1, not to 2"):
        plan.step(tokens(2), span(0, 2), [view], [1], row)
    with pytest.raises(KernelError, match="a view may appear only once"):
        plan.step(tokens(2), span(0, 2), [view, view], [1, 1], row)
    with pytest.raises(KernelError, match="logit row 1 is outside the step's 1 rows"):
        plan.step(tokens(1), span(0, 1), [view], [1], integers(1))
    with pytest.raises(KernelError, match=r"token_ids is int32 \(2,\), expected int32 \(1,\)"):
        plan.step(tokens(2), span(0, 1), [view], [2], row)
    with pytest.raises(KernelError, match="layers, KV heads and head dimension must equal the plan's"):
        plan.step(tokens(1), span(0, 1), [cache(GEMMA, 64).view], [1], row)
    with pytest.raises(KernelError, match=r"layers 2..4 are outside the plan's 3"):
        plan.layers(torch.zeros(1, 96), integers(0), [view], [1], 2, 4)
    assert view.tokens(0) == 0
    for start in range(0, 64, 8):
        plan.step(tokens(8), span(start, start + 8), [view], [8], row)
    with pytest.raises(KernelError, match="layer 0 of view 0 has room for 0 more tokens, not 1"):
        plan.step(tokens(1), integers(64), [view], [1], row)


def test_vectors_are_added_behind_layers_by_sequence() -> None:
    """And taps of chosen rows see them: as a run that is stopped, added to by hand, and gone on with."""
    native()
    plan, ids = compile_plan(decoder(LLAMA), 32), tokens(20)
    vector = torch.randn(96, generator=torch.Generator().manual_seed(1))
    stores, parts = [cache(LLAMA, 64) for _ in range(2)], [cache(LLAMA, 64) for _ in range(2)]
    tapped = {1: torch.empty(2, 96), 2: torch.empty(2, 96)}
    positions, counts, rows = torch.cat([span(0, 9), span(0, 11)]), [9, 11], integers(19, 3)
    logits = plan.step(
        ids, positions, [store.view for store in stores], counts, span(0, 20), taps=tapped, tap_rows=rows,
        residual={1: [None, vector]},
    ).clone()  # fmt: skip
    hidden, views = plan.embed(ids), [part.view for part in parts]
    plan.layers(hidden, positions, views, counts, 0, 2)
    hidden[9:] += vector
    assert torch.equal(tapped[1], hidden[[19, 3]])
    plan.layers(hidden, positions, views, counts, 2, 3)
    assert torch.equal(tapped[2], hidden[[19, 3]])
    assert torch.equal(plan.logits(hidden), logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": {3: torch.empty(4, 96)}}, "a tap of layer 3 is outside the plan's layers"),
        ({"taps": {0: torch.empty(3, 96)}}, r"a tap is float32 \(3, 96\), expected float32 \(4, 96\)"),
        ({"taps": {0: torch.empty(1, 96)}, "tap_rows": integers(4)}, "tapped row 4 is outside the step's 4 rows"),
        ({"residual": {-1: [None]}}, "a residual add of layer -1 is outside"),
        ({"residual": {0: [None, None]}}, "residual adds of 2 sequences; the step has 1"),
        ({"residual": {0: [torch.zeros(95)]}}, r"a residual add is float32 \(95,\), expected float32 \(96,\)"),
    ],
)
def test_what_does_not_fit_behind_a_layer_is_refused(options: dict[str, Any], message: str) -> None:
    native()
    plan, store = compile_plan(decoder(LLAMA), 8), cache(LLAMA, 64)
    with pytest.raises(KernelError, match=message):
        plan.step(tokens(4), span(0, 4), [store.view], [4], integers(3), **options)
    assert store.view.tokens(0) == 0
