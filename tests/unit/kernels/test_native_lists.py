"""What native code and Python both list is the same list, in the same order."""

from __future__ import annotations

import numpy as np
import pytest

from thrifty.formats import kv
from thrifty.formats.gguf import FORMATS
from thrifty.formats.packed import PackedLinear
from thrifty.kernels import dispatch

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="the native kernels are not built")


def test_formats_of_the_cache_have_one_order() -> None:
    assert dispatch.require().KV_FORMATS == kv.FORMATS


def test_every_type_of_a_file_names_a_layout_that_native_code_has() -> None:
    layouts = dispatch.require().LINEAR_LAYOUTS
    assert len(set(layouts)) == len(layouts)
    named = set()
    for format in FORMATS.values():
        arrays = {name: np.zeros(*shape) for name, shape in format.shapes(16, 256).items()}
        stored = PackedLinear.from_state(format.meta(16, 256), arrays).native()
        assert stored is not None and dispatch.packed(PackedLinear.from_state(format.meta(16, 256), arrays)) is not None
        named.add(stored[0])
    assert named <= set(layouts)
    own = {"f32", "table4", "table8", "int2", "int3", "ternary", "binary", "paired_first", "paired_second"}
    own |= {f"planes{bits}" for bits in range(1, 9)} | {"row_table3", "row_table4", "vectors4", "vectors8"}
    own |= {"int8_2_4", "int4_2_4", "bf16_2_4", "int4_token", "int8_token"}
    assert set(layouts) - named == own, "no GGUF type is stored as one of these"


def test_a_layer_has_heads_of_its_own() -> None:
    view = dispatch.require().View([2, 1, 4], [64, 128, 64])
    assert [view.kv_heads(layer) for layer in range(3)] == [2, 1, 4]
    assert [view.head_dim(layer) for layer in range(3)] == [64, 128, 64]
    with pytest.raises(ValueError, match="KV head 1 is outside 0..0"):
        view.tokens(1, 1)
    for heads, sizes in (([], []), ([2], [64, 64]), ([0], [64]), ([1], [7])):
        with pytest.raises(ValueError, match="a view needs|needs a head dimension"):
            dispatch.require().View(heads, sizes)


def test_a_plan_takes_widths_by_layer() -> None:
    module = dispatch.require()
    for widths in ([], [(3, 2, 64)], [(4, 2, 7)]):
        with pytest.raises(ValueError, match="a plan needs"):
            module.Plan(max_rows=4, widths=widths)
    module.Plan(max_rows=4, widths=[(4, 2, 64), (6, 3, 32)])
