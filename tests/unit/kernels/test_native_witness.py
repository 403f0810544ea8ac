"""Native scores of what rows attend to, against softmax attention written out, and whatever cuts the rows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.native_pages import ISAS, Pages, native, normal, pages, using
from tests.unit.kernels.test_native_attention import MIXED

from thrifty.arrays import Floats
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policies.kvzip import Kvzip
from thrifty.errors import KernelError
from thrifty.formats import kv
from thrifty.kernels import dispatch

Judged = tuple[int, int, int]
CODES_4 = {"int4", "int2", "int4g16", "int2g16"}


def expected(
    made: Pages, query: Floats, judged: Sequence[Judged], *, forced: int, scale: float, softcap: float, mean: bool
) -> list[Floats]:
    """By KV head what `Kvzip.score_rows` gives the judged slots, from the keys as they are stored."""
    heads, group, dim = query.shape[1], query.shape[1] // len(judged), query.shape[2]
    model = ModelInfo(heads=heads, kv_heads=len(judged), head_dim=dim, windows=(None,), scale=scale, softcap=softcap)
    policy = Kvzip(group="mean" if mean else "max")
    found = []
    for head, (sinks, low, high) in enumerate(judged):
        keys = np.concatenate([span.keys for span in made.spans[head]])
        before = len(keys) - forced
        seen = np.concatenate((keys[:sinks], keys[low:high], keys[before:]))
        own = query[:, head * group : (head + 1) * group].swapaxes(0, 1)
        found.append(policy.score_rows(model, own, seen, slice(sinks, sinks + high - low)))
    return found


def limits(made: Pages) -> dict[str, Any]:
    """Tolerances of probabilities, as those of attention's outputs."""
    if native().isa() != "avx512" or made.formats == {"f32"}:
        return {"rtol": 1e-4, "atol": 5e-6}
    return {"rtol": 4e-2, "atol": 8e-2} if made.formats & CODES_4 else {"rtol": 2e-2, "atol": 2e-2}


def compare(made: Pages, query: Floats, judged: Sequence[Judged], **options: Any) -> Floats:
    table = dispatch.witness(made.view, 0, query, judged, **options)
    wanted = expected(made, query, judged, **options)
    for head, one in enumerate(wanted):
        np.testing.assert_allclose(table[head, : len(one)], one, **limits(made))
        assert not table[head, len(one) :].any()
    return table


def ragged(head_dim: int, tokens: Sequence[int], format: str, seed: int) -> Pages:
    """One layer whose heads hold different numbers of slots, in spans of odd sizes."""
    made = pages(len(tokens), head_dim, [(format, 37, 64)], seed=seed)
    for head, count in enumerate(tokens):
        more = pages(1, head_dim, [(format, count, -(-count // 64) * 64), ("bf16", 70, 128)], seed=seed + head + 1)
        for slab, (name, held) in zip(more.memory, [(format, count), ("bf16", 70)], strict=True):
            capacity = -(-held // 64) * 64
            made.view.push(0, head, slab, held, capacity, kv.FORMATS.index(name), sealed=True)
        made.spans[head] += more.spans[0]
        made.memory += more.memory
    made.formats.add("bf16")
    return made


@settings(max_examples=40, deadline=None)
@given(
    isa=st.sampled_from([isa for isa in ISAS if dispatch.native() is not None and native().isa_available(isa)]),
    format=st.sampled_from(kv.FORMATS),
    group=st.integers(1, 8),
    tokens=st.lists(st.integers(1, 200), min_size=1, max_size=3),
    forced=st.integers(1, 70),
    rows=st.integers(1, 70),
    cuts=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    softcap=st.sampled_from([0.0, 5.0]),
    mean=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_is_the_formula_of_the_policy(
    isa: str, format: str, group: int, tokens: list[int], forced: int, rows: int,
    cuts: tuple[float, float, float], softcap: float, mean: bool, seed: int,
) -> None:  # fmt: skip
    made, rows = ragged(64, tokens, format, seed), min(rows, forced)
    judged = []
    for head in range(len(tokens)):
        before = made.view.tokens(0, head) - forced
        sinks, low, high = sorted(int(cut * before) for cut in cuts)
        judged.append((sinks, low, high))
    query = 2 * normal(rows, group * len(tokens), 64, seed=seed)
    with using(isa):
        compare(made, query, judged, forced=forced, scale=0.125, softcap=softcap, mean=mean)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("head_dim, group, kv_heads", [(128, 1, 2), (256, 4, 1), (192, 2, 1), (64, 100, 1)])
def test_spans_of_every_format(isa: str, head_dim: int, group: int, kv_heads: int) -> None:
    made = pages(kv_heads, head_dim, MIXED)
    query = normal(70, kv_heads * group, head_dim)
    with using(isa):
        judged = [(4, 4, 700)] * kv_heads
        compare(made, query, judged, forced=110, scale=head_dim**-0.5, softcap=0.0, mean=False)


@pytest.mark.long
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("mean", [False, True])
def test_the_greatest_of_any_chunks_is_the_same(isa: str, mean: bool) -> None:
    """Rows that come in pieces, those of later pieces not yet appended, give what they give together, to the bit."""
    judged = [(4, 30, 500), (0, 0, 333)]
    query = normal(130, 6, 64)
    made = pages(2, 64, MIXED)
    with using(isa):
        together = dispatch.witness(made.view, 0, query, judged, forced=130, scale=0.3, mean=mean)
        for step in (1, 7, 64, 100):
            best, done = np.zeros_like(together), 0
            while done < 130:
                more = min(step, 130 - done)
                seen = pages(2, 64, MIXED)
                seen.view.truncate(0, 130 - done - more)
                part = query[done : done + more]
                one = dispatch.witness(seen.view, 0, part, judged, forced=done + more, scale=0.3, mean=mean)
                best, done = np.maximum(best, one), done + more
            assert np.array_equal(best, together)


def test_threads_do_not_change_a_bit() -> None:
    module = native()
    if module.available_threads() < 2:
        pytest.skip("one processor only")
    made, before, query = pages(2, 64, MIXED), module.threads(), normal(100, 4, 64)
    score = functools.partial(dispatch.witness, made.view, 0, query, [(4, 4, 600), (2, 100, 300)], scale=0.2)
    found = []
    try:
        for threads in (1, 2):
            module.set_threads(threads)
            found += [score(forced=200, mean=mean) for mean in (False, True)]
    finally:
        module.set_threads(before)
    assert np.array_equal(found[0], found[2]) and np.array_equal(found[1], found[3])


def test_what_has_no_judged_slots_is_zero() -> None:
    made = pages(2, 64, [("bf16", 100, 128)])
    found = dispatch.witness(made.view, 0, normal(3, 4, 64), [(4, 4, 4), (0, 9, 50)], forced=5, scale=0.2)
    assert found.shape == (2, 41) and not found[0].any() and bool((found[1] > 0).all())


def test_wrong_calls_are_refused() -> None:
    made = pages(2, 64, [("bf16", 100, 128)])
    query = normal(3, 4, 64)
    right = [(4, 4, 90), (4, 4, 90)]
    for place, one in itertools.product(range(2), [(-1, 4, 9), (5, 4, 9), (0, 9, 8), (4, 4, 96)]):
        wrong = [one if head == place else right[head] for head in range(2)]
        with pytest.raises(KernelError, match=f"KV head {place} do not lie in this order in the 95 before"):
            dispatch.witness(made.view, 0, query, wrong, forced=5, scale=0.2)
    with pytest.raises(KernelError, match="3 rows are more than the 2 forced ones"):
        dispatch.witness(made.view, 0, query, right, forced=2, scale=0.2)
    with pytest.raises(KernelError, match="judged slots of 1 KV heads; the view has 2"):
        dispatch.witness(made.view, 0, query, right[:1], forced=5, scale=0.2)
    with pytest.raises(KernelError, match=r"query has shape \(3, 4, 32\), expected \[rows, heads, 64\]"):
        dispatch.witness(made.view, 0, query[..., :32], right, forced=5, scale=0.2)
