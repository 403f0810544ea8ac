"""Plans of mixtures of experts, whole-row query norms and ropes that depend on the length, against the decoder."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.growing_cache import GrowingCache
from tests.unit.kernels.native_pages import QUICK_ISAS, native, using
from tests.unit.kernels.native_plans import (
    BIASED,
    DYNAMIC,
    GEMMA,
    GRANITE,
    LLAMA,
    LONGROPE,
    MIXTRAL,
    MIXTURES,
    OLMO2,
    QWEN3_MOE,
    STABLELM,
    STARCODER2,
    Made,
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
from thrifty.formats.linear import DenseLinear, GroupLinear
from thrifty.models.config.model_config import ModelConfig

FAMILIES = MIXTURES | {
    "full qk norm": dataclasses.replace(LLAMA, qk_norm="full"),
    "starcoder2": STARCODER2,
    "stablelm": STABLELM,
    "olmo2": OLMO2,
    "granite": GRANITE,
    "scaled mixture": dataclasses.replace(MIXTRAL, residual_scale=0.3),
    "dynamic": DYNAMIC,
    "longrope": LONGROPE,
}


SIZES, FEW = [48] + [1] * 32, [48] + [1] * 12  # a prompt and decoded tokens


def pieces(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Where each piece starts and stops."""
    stops = list(itertools.accumulate(sizes))
    return zip([0, *stops], stops, strict=False)


@torch.no_grad()
def reference(made: Made, ids: Tensor, sizes: list[int]) -> Tensor:
    """Logits of all rows as the native kernels would compute them, in torch."""
    with_oracles(made)
    attend = GrowingCache(made.config)
    return torch.cat([made(ids[a:b].long(), torch.arange(a, b), attend, len(ids)) for a, b in pieces(sizes)])


@torch.no_grad()
def reference_layer(made: Made, index: int, hidden: Tensor, sizes: list[int]) -> Tensor:
    """The state after one layer, likewise."""
    attend, length = GrowingCache(made.config), len(hidden)
    parts = [made.layer(index, hidden[a:b], torch.arange(a, b), attend, length) for a, b in pieces(sizes)]
    return torch.cat(parts)


# Products of 8 bits are those of every family: a few of them take them through.
LAYERED = [(name, bits) for name in FAMILIES for bits in (4, 16)] + [(name, 8) for name in list(FAMILIES)[::4]]


@pytest.mark.long
@pytest.mark.parametrize(("name", "bits"), LAYERED)
def test_each_layer_agrees_with_the_decoder(name: str, bits: int) -> None:
    """From the same input. An activation may round to the other side, so a few elements differ by a step of int8."""
    native()
    config, made = FAMILIES[name], decoder(FAMILIES[name], bits)
    plan, store = compile_plan(made, 80), cache(config, 80)
    hidden = plan.embed(tokens(80))
    with_oracles(made)
    for index in range(len(config.layers)):
        wanted = reference_layer(made, index, hidden.clone(), SIZES)
        for a, b in pieces(SIZES):
            plan.layers(hidden[a:b], span(a, b), [store.view], [b - a], index, index + 1, lengths=[80])
        error, size = (hidden - wanted).abs(), float(wanted.abs().mean())
        assert float(error.median()) < 1e-5 * size
        assert float(error.mean()) < 3e-3 * size
        assert float(error.max()) < 0.1 * size


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_stack_agrees_with_the_decoder(name: str, bits: int) -> None:
    """Steps of int8 that differ add up over the layers."""
    native()
    config, ids, made = FAMILIES[name], tokens(60), decoder(FAMILIES[name], bits)
    found = feed(compile_plan(made, 64), config, ids, FEW, "f32")
    wanted = reference(made, ids, FEW)
    error, size = (found - wanted).abs(), float(wanted.abs().mean())
    assert float(error.mean()) < 0.03 * size
    assert float(error.max()) < size
    assert float((found.argmax(1) == wanted.argmax(1)).float().mean()) > 0.9


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("name", FAMILIES)
def test_any_chunking_gives_the_same_bits(isa: str, name: str) -> None:
    config, ids = FAMILIES[name], tokens(150)
    with using(isa):
        plan = compile_plan(decoder(config), 150)
        whole = feed(plan, config, ids, [150])
        for sizes in ([128, 22], [17, 3, 1, 1, 2, 126], [1] * 150):
            assert torch.equal(feed(plan, config, ids, sizes), whole)


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_sequence_alone_equals_a_sequence_in_a_batch(name: str, bits: int) -> None:
    native()
    config = FAMILIES[name]
    plan = compile_plan(decoder(config, bits), 64)
    all_ids = [tokens(40, seed) for seed in range(3)]
    alone = [feed(plan, config, ids, [10, 25, 1, 1, 1, 1, 1]) for ids in all_ids]
    views, starts = [cache(config, 64, "bf16") for _ in all_ids], [0, 0, 0]
    for counts in ([10, 1, 5], [1, 1, 1], [28, 19, 13], [0, 0, 1], [1, 1, 0]):
        parts = [(i, slice(starts[i], starts[i] + count)) for i, count in enumerate(counts) if count]
        ids = torch.cat([all_ids[i][part] for i, part in parts])
        positions = torch.cat([span(part.start, part.stop) for _, part in parts])
        sizes = [part.stop - part.start for _, part in parts]
        views_of = [views[i].view for i, _ in parts]
        logits = plan.step(ids, positions, views_of, sizes, span(0, len(ids)), lengths=[40] * len(parts))
        assert torch.equal(logits, torch.cat([alone[i][part] for i, part in parts]))
        starts = [start + count for start, count in zip(starts, counts, strict=True)]


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    module = native()
    if threads > module.available_threads():
        pytest.skip(f"this process may use {module.available_threads()} processors")
    before, config, ids = module.threads(), MIXTURES["qwen2_moe"], tokens(60)
    plan = compile_plan(decoder(config), 64)
    whole = feed(plan, config, ids, [50, 2, 1, 7])
    module.set_threads(threads)
    try:
        assert torch.equal(feed(plan, config, ids, [50, 2, 1, 7]), whole)
    finally:
        module.set_threads(before)


def test_more_rows_of_experts_than_the_buffers_hold_at_once() -> None:
    """8 active experts of 16 give 8 entries a row; the buffers hold little more than one a row."""
    native()
    ids = tokens(300)
    made = decoder(QWEN3_MOE)
    large, small = compile_plan(made, 300), compile_plan(made, 7)
    assert torch.equal(feed(large, QWEN3_MOE, ids, [300]), feed(small, QWEN3_MOE, ids, [7] * 42 + [6]))


def test_only_the_chosen_experts_are_read() -> None:
    """The weights of all others are poisoned: a single one of them would show."""
    native()
    made, ids = decoder(MIXTRAL), tokens(1)
    wanted = feed(compile_plan(made, 4), MIXTRAL, ids, [1])
    chosen = _chosen(made, ids)
    for name, linear in list(made.model.linears.items()):
        if ".experts." not in name:
            continue
        layer, expert = int(name.split(".")[1]), int(name.split(".")[-1])
        if expert not in chosen[layer]:
            assert isinstance(linear, GroupLinear)
            linear.scales.fill(np.nan)
    assert torch.equal(feed(compile_plan(made, 4), MIXTRAL, ids, [1]), wanted)


def _chosen(made: Made, ids: Tensor) -> list[list[int]]:
    found: list[list[int]] = []
    handles = [
        layer.mlp.register_forward_hook(lambda mlp, inputs, _: found.append(mlp.route(inputs[0])[1].flatten().tolist()))
        for layer in made.layers
    ]
    reference(made, ids, [1])
    for handle in handles:
        handle.remove()
    return found


def test_a_packed_router_runs_too() -> None:
    native()
    made, ids = decoder(MIXTRAL), tokens(20)
    for name, linear in list(made.model.linears.items()):
        if name.endswith(".router"):
            assert isinstance(linear, DenseLinear)
            made.replace(name, GroupLinear.quantize(linear.dequantize(), 8, 32))
    found = feed(compile_plan(made, 32), MIXTRAL, ids, [20], "f32")
    wanted = reference(made, ids, [20])
    assert float((found - wanted).abs().median()) < 2e-3 * float(wanted.abs().mean())


def test_each_sequence_of_a_step_has_its_own_length() -> None:
    native()
    plan, ids = compile_plan(decoder(LONGROPE), 32), tokens(8)

    def run(lengths: list[int]) -> Tensor:
        stores = [cache(LONGROPE, 64) for _ in lengths]
        count = len(lengths)
        views = [store.view for store in stores]
        positions = span(0, 8).repeat(count)
        return plan.step(ids.repeat(count), positions, views, [8] * count, span(0, 8 * count), lengths=lengths).clone()

    short, long = run([50]), run([51])
    assert float((short - long).abs().max()) > 0.01
    assert torch.equal(run([51, 50]), torch.cat([long, short]))


def test_a_rope_that_depends_on_the_length_needs_it() -> None:
    native()
    plan, store = compile_plan(decoder(DYNAMIC), 8), cache(DYNAMIC, 64)
    with pytest.raises(KernelError, match="lengths is None; it must hold one for each of 1 sequences"):
        plan.step(tokens(2), span(0, 2), [store.view], [2], integers(1))
    assert store.view.tokens(0) == 0


def test_a_rounded_linear_that_is_not_packed_is_refused() -> None:
    native()
    made = decoder(MIXTRAL)
    made.replace("layers.1.mlp.experts.up.3", DenseLinear.from_weight(np.zeros((80, 96), np.float32), BFLOAT16))
    with pytest.raises(KernelError, match=r"layers.1.mlp.experts.up.3: no native kernel for DenseLinear bf16"):
        compile_plan(made, 8)


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("config", [LLAMA, GEMMA, BIASED, *MIXTURES.values()], ids=lambda config: config.family)
@pytest.mark.parametrize("head_dim", [None, 18, 80])
def test_plain_linears_and_every_head_size(isa: str, config: ModelConfig, head_dim: int | None) -> None:
    """Everything in fp32 is the decoder to what fp32 gives, in steps of any size to the bit."""
    if head_dim is not None:
        layers = tuple(
            dataclasses.replace(
                layer, rope=dataclasses.replace(layer.rope, dimension=min(layer.rope.dimension, head_dim))
            )
            for layer in config.layers
        )
        config = dataclasses.replace(config, head_dim=head_dim, layers=layers)
    made, ids = decoder(config, bits=32), tokens(70)
    with using(isa):
        plan = compile_plan(made, 64)
        found = feed(plan, config, ids, [40, 1, 1, 20, 8], "f32")
        assert torch.equal(feed(plan, config, ids, [64, 6], "f32"), found)
    with torch.no_grad():
        wanted = made(ids.long(), torch.arange(70), GrowingCache(config), 70)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_workspace_of_experts_is_counted() -> None:
    native()

    def workspace(config: ModelConfig) -> int:
        plan = compile_plan(decoder(config), 64)
        plan.embed(tokens(1))
        return plan.nbytes

    assert workspace(MIXTRAL) - workspace(dataclasses.replace(LLAMA, layers=LLAMA.layers[:2])) > 64 * 4 * 96
