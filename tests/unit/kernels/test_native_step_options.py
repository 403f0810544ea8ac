"""What a native step may do beyond plain rows: hidden states given, adapters, trees, spans ahead, arrivals."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.native_pages import QUICK_ISAS, Pages, native, using
from tests.unit.kernels.native_plans import (
    BIASED,
    GEMMA,
    LLAMA,
    MIXTURES,
    Made,
    TensorPlan,
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

from thrifty.errors import KernelError
from thrifty.models.adapters import Adapter
from thrifty.models.config.model_config import ModelConfig
from thrifty.reference.attention import Attend, causal


@pytest.mark.parametrize("config", [LLAMA, GEMMA])
def test_hidden_states_given_equal_tokens_given(config: ModelConfig) -> None:
    native()
    plan, ids, store = compile_plan(decoder(config), 32), tokens(20), cache(config, 64, "bf16")
    whole = feed(plan, config, ids, [20])
    found = plan.forward(plan.embed(ids), span(0, 20), [store.view], [20], span(0, 20))
    assert torch.equal(found, whole)
    assert store.view.tokens(0) == 20


def test_any_hidden_states_go_through_the_stack() -> None:
    native()
    plan, hidden = compile_plan(decoder(LLAMA), 8), torch.randn(5, 96, generator=torch.Generator().manual_seed(3))
    whole, parts = cache(LLAMA, 64), cache(LLAMA, 64)
    found = plan.forward(hidden.clone(), span(0, 5), [whole.view], [5], integers(4)).clone()
    after = plan.layers(hidden.clone(), span(0, 5), [parts.view], [5], 0, 3)
    assert torch.equal(found, plan.logits(after[4:]))


# Adapters


def adapter(made: Made, names: list[str], rank: int, seed: int) -> Adapter:
    generator, linears = torch.Generator().manual_seed(seed), dict(made.linears())
    weights = {
        name: (
            torch.randn(rank, linears[name].in_features, generator=generator) * linears[name].in_features ** -0.5,
            torch.randn(linears[name].out_features, rank, generator=generator) * rank**-0.5,
        )
        for name in names
    }
    return Adapter(weights, scale=0.5)


def every_linear(made: Made) -> list[str]:
    return [name for name, _ in made.linears() if name not in ("embedding", "head")]


class Adapted(torch.nn.Module):
    """A linear with its low-rank addition, in torch."""

    def __init__(self, linear: Any, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.linear, self.down, self.up, self.scale = linear, down, up, scale
        self.out_features, self.in_features = linear.out_features, linear.in_features

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * (x @ self.down.T) @ self.up.T


@pytest.mark.parametrize("isa", QUICK_ISAS)
@pytest.mark.parametrize("config", [LLAMA, GEMMA, BIASED])
@pytest.mark.parametrize("rows", [1, 2, 23])
def test_adapters_agree_with_the_decoder(isa: str, config: ModelConfig, rows: int) -> None:
    made = decoder(config, 8)
    chosen = adapter(made, every_linear(made), 5, 1)
    with using(isa):
        plan, store = compile_plan(made, 32), cache(config, 64)
        hidden = plan.embed(tokens(rows))
        with_oracles(made)
        linears = dict(made.linears())
        for name, (down, up) in chosen.weights.items():
            path, _, leaf = name.rpartition(".")
            setattr(made.get_submodule(path), leaf, Adapted(linears[name], down, up, chosen.scale))
        for index in range(len(config.layers)):
            with torch.no_grad():
                wanted = made.layer(index, hidden.clone(), torch.arange(rows), causal(config))
            choice: dict[str, Any] = {"adapters": [chosen], "adapter_rows": [0] * rows}
            plan.layers(hidden, span(0, rows), [store.view], [rows], index, index + 1, **choice)
            error, size = (hidden - wanted).abs(), float(wanted.abs().mean())
            assert float(error.median()) < 1e-5 * size
            assert float(error.mean()) < 5e-3 * size


def test_rows_of_one_step_have_different_adapters_or_none() -> None:
    """Each to the bit as alone, and those without as if there were no adapters."""
    native()
    made = decoder(LLAMA)
    plan, ids = compile_plan(made, 64), tokens(12)
    names = every_linear(made)
    adapters = [adapter(made, names, 4, 1), adapter(made, names[:3], 7, 2)]

    def run(choices: list[int], sizes: list[int]) -> Tensor:
        stores = [cache(LLAMA, 64) for _ in choices]
        logits, start = [], 0
        for size in sizes:
            piece = torch.cat([ids[start : start + size]] * len(choices))
            positions, counts = torch.cat([span(start, start + size)] * len(choices)), [size] * len(choices)
            rows = [choice for choice in choices for _ in range(size)]
            views, wanted = [store.view for store in stores], span(0, size * len(choices))
            found = plan.step(piece, positions, views, counts, wanted, adapters=adapters, adapter_rows=rows)
            logits.append(found.unflatten(0, (len(choices), size)).clone())
            start += size
        return torch.cat(logits, 1)

    together = run([1, -1, 0, 1], [9, 1, 1, 1])
    alone = [run([choice], [12])[0] for choice in (1, -1, 0)]
    for found, wanted in zip(together, [*alone, alone[0]], strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(alone[1], feed(plan, LLAMA, ids, [12], "f32"))
    assert float((alone[0] - alone[1]).abs().mean()) > 0.01


def test_the_shared_expert_takes_an_adapter_and_the_others_do_not() -> None:
    native()
    made = decoder(MIXTURES["qwen2_moe"])
    plan, ids, rows = compile_plan(made, 8), tokens(4), span(0, 4)

    def run(name: str, store: Pages) -> Tensor:
        chosen = adapter(made, [name], 3, 1)
        found = plan.step(ids, rows, [store.view], [4], rows, adapters=[chosen], adapter_rows=[0] * 4)
        return found.clone()

    adapted = run("layers.1.mlp.shared.down", cache(made.config, 64))
    assert not torch.equal(adapted, feed(plan, made.config, ids, [4], "f32"))
    empty = cache(made.config, 64)
    for name in ("layers.1.mlp.experts.up.0", "layers.1.mlp.router", "embedding"):
        with pytest.raises(KernelError, match=f"'{name}' takes no adapter; linears of attention and of dense MLPs do"):
            run(name, empty)
    assert empty.view.tokens(0) == 0


def test_wrong_adapters_are_refused() -> None:
    native()
    made = decoder(LLAMA)
    plan, store, one = compile_plan(made, 8), cache(LLAMA, 64), integers(0)
    good = adapter(made, ["layers.0.mlp.gate"], 2, 1)

    def run(adapters: list[Adapter], rows: list[int]) -> None:
        plan.step(tokens(1), one, [store.view], [1], one, adapters=adapters, adapter_rows=rows)

    with pytest.raises(KernelError, match="row 0 wants adapter 1; the call has 1"):
        run([good], [1])
    with pytest.raises(KernelError, match="adapters were chosen for 2 rows; the step has 1"):
        run([good], [0, 0])
    with pytest.raises(KernelError, match=r"up of layers.0.mlp.gate is float32 \(144, 3\), expected"):
        run([Adapter({"layers.0.mlp.gate": (torch.zeros(2, 96), torch.zeros(144, 3))})], [0])
    assert store.view.tokens(0) == 0


@pytest.mark.parametrize("sums", [5, (1, 2, 3), ("a", None), ([0.5], np.zeros((1, 6, 64), np.float32))])
def test_what_is_no_place_for_sums_is_named(sums: Any) -> None:
    """Neither a step nor a decoding tells of casts."""
    module = native()
    plan = compile_plan(decoder(LLAMA), 8).plan.native
    step = module.Step()
    step.tokens, step.views, step.counts = np.zeros(1, np.int32), [cache(LLAMA, 64).view], [1]
    step.sums = [sums]
    with pytest.raises(ValueError, match=r"sums is .+, expected None or \(layers, array\)"):
        plan.run(step)
    with pytest.raises(ValueError, match=r"sums is .+, expected None or \(layers, array\)"):
        plan.decode([], 1, None, np.zeros((0, LLAMA.vocabulary_size), np.float32), [sums])


@pytest.mark.parametrize("table", [None, 5, [1.0], np.zeros((6, 64), np.float32), np.zeros((1, 6, 64))])
def test_what_is_no_table_of_sums_is_named(table: Any) -> None:
    step = native().Step()
    step.tokens, step.views, step.counts = np.zeros(1, np.int32), [cache(LLAMA, 64).view], [1]
    step.sums = [([0], table)]
    with pytest.raises(ValueError, match=r"sums is .+, expected float32 \(1, 6, any\)"):
        compile_plan(decoder(LLAMA), 8).plan.native.run(step)


def test_other_objects_than_those_that_are_asked_for_are_named() -> None:
    module = native()
    plan = module.Plan(max_rows=8, layers=1, heads=1, kv_heads=1, head_dim=64)
    with pytest.raises(ValueError, match="linear is 5, expected a Linear"):
        plan.add_linear(5)
    with pytest.raises(ValueError, match="sampler is 'x', expected a Sampler"):
        module.Continuation("x", [])
    step = module.Step()
    step.tokens = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="buffer 0 does not exist"):
        plan.run(step)
    step.adapters = [(0, 1)]
    built = compile_plan(decoder(LLAMA), 8).plan.native
    with pytest.raises(ValueError, match=r"an adapter is \(0, 1\), expected an AdapterTable"):
        built.run(step)
    with pytest.raises(ValueError, match=r"an entry of an adapter is \(0, 1\), expected \(linear, down, up, scale\)"):
        module.AdapterTable(built, [(0, 1)])


# Trees and spans that see ahead


def masked(config: ModelConfig, visible: Tensor, older: tuple[list[Tensor], list[Tensor]] | None = None) -> Attend:
    """Attention of n rows where row i sees slot j if visible [n, slots]; older keys and values by layer."""

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if older is not None:
            key, value = torch.cat((older[0][layer], key)), torch.cat((older[1][layer], value))
        groups = config.heads // config.kv_heads
        keys, values = (x.repeat_interleave(groups, 1) for x in (key, value))
        scores = torch.einsum("nhd,shd->hns", query, keys) * config.query_scale
        if config.attention_softcap is not None:
            scores = config.attention_softcap * torch.tanh(scores / config.attention_softcap)
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        return torch.einsum("hns,shd->nhd", weights, values)

    return attend


def compare(config: ModelConfig, start: int, positions: Tensor, visible: Tensor, **options: Any) -> None:
    """Rows with `options` behind `start` plain ones, layer by layer; visible: bool [layers, rows, slots]."""
    made, count = decoder(config, 16), len(positions)
    plan, store = compile_plan(made, 160), cache(config, start + count)
    hidden = plan.embed(tokens(start + count))
    with_oracles(made)
    for index in range(len(config.layers)):
        seen: list[tuple[Tensor, Tensor]] = []

        def catch(
            layer: int, query: Tensor, key: Tensor, value: Tensor, seen: list[tuple[Tensor, Tensor]] = seen
        ) -> Tensor:
            seen.append((key, value))
            return query

        before, rows = hidden[:start], hidden[start:]
        keys, values = (
            torch.empty(0, config.kv_heads, config.head_dim),
            torch.empty(0, config.kv_heads, config.head_dim),
        )
        with torch.no_grad():
            if start:
                made.layer(index, before.clone(), torch.arange(start), catch)
                keys, values = seen[0]
                plan.layers(before, span(0, start), [store.view], [start], index, index + 1)
            older = ([keys] * len(config.layers), [values] * len(config.layers))
            wanted = made.layer(index, rows.clone(), positions, masked(config, visible[index], older))
        plan.layers(rows, positions, [store.view], [count], index, index + 1, **options)
        error, size = (rows - wanted).abs(), float(wanted.abs().mean())
        assert float(error.mean()) < 3e-3 * size
        assert float(error.max()) < 0.1 * size


def ancestors(parents: list[int]) -> Tensor:
    """bool [n, n]: which rows each row sees; parents: −1 for a root."""
    seen = torch.eye(len(parents), dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            seen[row] |= seen[parent]
    return seen


def bits(seen: Tensor) -> Tensor:
    """The rows' masks as signed 64-bit integers."""
    values = [sum(1 << j for j in range(len(seen)) if row[j]) for row in seen]
    return torch.tensor([value - (1 << 64) if value >> 63 else value for value in values])


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_row_of_a_tree_sees_its_ancestors_only(data: st.DataObject) -> None:
    native()
    config = data.draw(st.sampled_from([LLAMA, GEMMA]))
    start, count = data.draw(st.integers(0, 90)), data.draw(st.integers(1, 64))
    parents = [data.draw(st.integers(-1, row - 1)) for row in range(count)]
    tree = ancestors(parents)
    positions = (start + tree.sum(1) - 1).int()
    visible = []
    for layer in config.layers:
        older = torch.ones(count, start, dtype=torch.bool)
        if layer.window is not None:
            older &= torch.arange(start) > positions[:, None] - layer.window
        visible.append(torch.cat((older, tree), 1))
    compare(config, start, positions, torch.stack(visible), tree=bits(tree))


@pytest.mark.parametrize("isa", QUICK_ISAS)
def test_a_tree_of_one_path_is_a_line_to_the_bit(isa: str) -> None:
    ids = tokens(100)
    with using(isa):
        for config in (LLAMA, GEMMA):
            plan = compile_plan(decoder(config), 100)
            whole, store = feed(plan, config, ids, [100]), cache(config, 128, "bf16")
            for start in (0, 50):
                path = bits(torch.ones(50, 50, dtype=torch.bool).tril())
                positions, rows = span(start, start + 50), span(0, 50)
                found = plan.step(ids[start : start + 50], positions, [store.view], [50], rows, tree=path)
                assert torch.equal(found, whole[start : start + 50])


def test_a_row_of_a_tree_does_not_notice_other_branches() -> None:
    """To the bit: other tokens on the branches beside it change nothing."""
    native()
    plan, tree = compile_plan(decoder(LLAMA), 64), ancestors([-1, 0, 0, 1, 2, 4, -1])
    path = [0, 2, 4, 5]
    positions = (100 + tree.sum(1) - 1).int()

    def run(seed: int) -> Tensor:
        store, ids = cache(LLAMA, 128), tokens(7, seed)
        ids[path] = tokens(4, 9)
        for start in (0, 50):
            plan.step(tokens(50, 5), span(start, start + 50), [store.view], [50], integers(0))
        return plan.step(ids, positions, [store.view], [7], span(0, 7), tree=bits(tree)).clone()

    first, second = run(1), run(2)
    assert torch.equal(first[path], second[path])
    assert not torch.equal(first[3], second[3])


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_the_rows_of_a_span_see_each_other(data: st.DataObject) -> None:
    native()
    config = data.draw(st.sampled_from([LLAMA, GEMMA]))
    start, count = data.draw(st.integers(0, 70)), data.draw(st.integers(1, 80))
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    ahead = torch.zeros(count, dtype=torch.int32)
    ahead[first : last + 1] = last - torch.arange(first, last + 1, dtype=torch.int32)
    positions = span(start, start + count)
    slots, row = torch.arange(start + count), positions[:, None]
    visible = []
    for layer in config.layers:
        seen = slots <= row + ahead[:, None]
        visible.append(seen if layer.window is None else seen & (slots > row - layer.window))
    compare(config, start, positions, torch.stack(visible), ahead=ahead)


def test_a_wrong_sight_would_show() -> None:
    """The comparison above fails where the plan is told another tree than the reference."""
    native()
    tree, other = ancestors([-1, 0, 0, 1]), ancestors([-1, 0, 1, 1])
    positions = (8 + tree.sum(1) - 1).int()
    visible = torch.cat((torch.ones(4, 8, dtype=torch.bool), tree), 1).expand(3, 4, 12)
    compare(LLAMA, 8, positions, visible, tree=bits(tree))
    with pytest.raises(AssertionError):
        compare(LLAMA, 8, positions, visible, tree=bits(other))


def test_trees_and_spans_belong_to_their_sequence() -> None:
    """Two sequences in a step: each as alone, to the bit."""
    native()
    plan = compile_plan(decoder(LLAMA), 64)
    trees = [bits(ancestors([-1, 0, 0, 1])), bits(ancestors([-1, -1, 1]))]
    aheads = [integers(2, 1, 0, 0), integers(0, 1, 0)]
    ids, spans = [tokens(4, 1), tokens(3, 2)], [span(0, 4), span(0, 3)]

    def run(which: list[int], name: str, values: list[Tensor]) -> Tensor:
        stores: list[Pages] = [cache(LLAMA, 64) for _ in which]
        counts = [len(ids[i]) for i in which]
        options: Any = {name: torch.cat([values[i] for i in which])}
        rows = (torch.cat([ids[i] for i in which]), torch.cat([spans[i] for i in which]))
        return plan.step(*rows, [store.view for store in stores], counts, span(0, sum(counts)), **options).clone()

    for name, values in (("tree", trees), ("ahead", aheads)):
        assert torch.equal(run([0, 1], name, values), torch.cat([run([0], name, values), run([1], name, values)]))


def test_impossible_sight_is_refused_and_appends_nothing() -> None:
    native()
    plan, store = compile_plan(decoder(LLAMA), 128), cache(LLAMA, 128)

    def run(count: int, **options: Any) -> None:
        plan.step(tokens(count), span(0, count), [store.view], [count], integers(0), **options)

    with pytest.raises(KernelError, match="row 1 of a tree must see itself and no later row of its sequence"):
        run(2, tree=torch.tensor([1, 1]))
    with pytest.raises(KernelError, match="row 0 of a tree must see itself and no later row of its sequence"):
        run(2, tree=torch.tensor([3, 3]))
    with pytest.raises(KernelError, match="a tree has at most 64 rows a sequence, not 65"):
        run(65, tree=torch.ones(65, dtype=torch.int64))
    with pytest.raises(KernelError, match="row 1 cannot see 1 rows ahead: its sequence has 0 behind it in this step"):
        run(2, ahead=integers(1, 1))
    with pytest.raises(KernelError, match="a tree or spans that see ahead, not both"):
        run(1, tree=torch.tensor([1]), ahead=integers(0))
    assert store.view.tokens(0) == 0
    windowed, narrow = compile_plan(decoder(GEMMA), 8), cache(GEMMA, 64)
    assert min(layer.window or 99 for layer in GEMMA.layers) == 70
    windowed.step(integers(1), integers(0), [narrow.view], [1], integers(0), tree=torch.tensor([1]))


# Arrivals


def arrivals(layers: int, present: list[int]) -> Any:
    made = native().Arrivals(layers)
    for layer in present:
        made.set(layer)
    return made


def step(plan: TensorPlan, store: Pages, **options: Any) -> Tensor:
    return plan.step(tokens(5), span(0, 5), [store.view], [5], span(0, 5), **options).clone()


def test_a_step_waits_for_what_arrives_while_it_runs() -> None:
    native()
    plan = compile_plan(decoder(LLAMA), 8)
    wanted, flags, order = step(plan, cache(LLAMA, 64)), arrivals(3, [0]), []

    def deliver() -> None:
        for layer in (2, 1):
            time.sleep(0.05)
            order.append(layer)
            flags.set(layer)

    thread = threading.Thread(target=deliver)
    thread.start()
    found = step(plan, cache(LLAMA, 64), arrivals=flags)
    assert order == [2, 1]
    thread.join()
    assert torch.equal(found, wanted)


def test_what_never_arrives_is_an_error_and_leaves_no_trace() -> None:
    native()
    plan, store, flags = compile_plan(decoder(LLAMA), 8), cache(LLAMA, 64), arrivals(3, [0, 1])
    wanted = step(plan, cache(LLAMA, 64))
    flags.clear(1)
    with pytest.raises(KernelError, match="what layer 1 needs did not arrive within 0.0.* set its flag"):
        step(plan, store, arrivals=flags, patience=0.02)
    assert [store.view.tokens(layer) for layer in range(3)] == [0, 0, 0]
    for layer in (1, 2):
        flags.set(layer)
    assert torch.equal(step(plan, store, arrivals=flags), wanted)


def test_a_skipped_layer_is_not_waited_for() -> None:
    native()
    plan = compile_plan(decoder(LLAMA), 8)
    assert step(plan, cache(LLAMA, 64), arrivals=arrivals(3, [0, 2]), patience=0.02, skip=[1]).isfinite().all()


def test_arrivals_of_another_model_are_refused() -> None:
    native()
    with pytest.raises(KernelError, match="arrivals of 2 layers do not fit a plan of 3"):
        step(compile_plan(decoder(LLAMA), 8), cache(LLAMA, 64), arrivals=arrivals(2, []))
    with pytest.raises(ValueError, match=r"layer 2 is outside the arrivals' 2"):
        arrivals(2, [2])
