"""Rows of an embedding that are read from its file: the same bits, and no page of the mapping in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.process_memory import mapped_resident
from tests.tiny import tiny_config, tiny_model
from tests.unit.formats.test_file_formats import layer, rows_of

from thrifty.arrays import Floats
from thrifty.engine.engine import Engine
from thrifty.formats.gguf import FORMATS
from thrifty.formats.linear import PackedLinear
from thrifty.kernels import dispatch
from thrifty.storage.mapped_file import MappedFile

pytestmark = pytest.mark.skipif(dispatch.native() is None, reason="native code is off")
ROWS, COLUMNS = 37, 512


def on_disk(linear: PackedLinear, path: Path) -> tuple[PackedLinear, MappedFile]:
    """The same linear as views of a file, and that file."""
    meta, arrays = linear.meta(), linear.state()
    places, content = {}, bytearray(b"\0" * 64)
    for name, array in arrays.items():
        places[name] = len(content)
        content += array.tobytes() + b"\0" * (-array.nbytes % 64)
    path.write_bytes(content)
    file = MappedFile(path)
    views = {
        name: file.content[start : start + arrays[name].nbytes].view(arrays[name].dtype).reshape(arrays[name].shape)
        for name, start in places.items()
    }
    return PackedLinear.from_state(meta, views), file


def embedded(linear: PackedLinear, tokens: list[int], *file: Any) -> Floats:
    module = dispatch.require()
    plan = module.Plan(max_rows=len(tokens), layers=1, heads=1, kv_heads=1, head_dim=16)
    plan.add_buffer(COLUMNS)
    plan.add_embed(plan.add_linear(dispatch.packed(linear)), 1.5, 0, *file)
    step = module.Step()
    step.tokens, step.hidden = np.array(tokens, np.int32), np.empty((len(tokens), COLUMNS), np.float32)
    plan.run(step)
    return step.hidden


@pytest.mark.parametrize("kind", FORMATS)
def test_the_bits_are_those_of_the_mapping(kind: str, tmp_path: Path) -> None:
    linear, file = on_disk(layer(kind, rows_of(kind, ROWS, COLUMNS)), tmp_path / "weights.bin")
    tokens = [0, 36, 15, 16, 17, 3, 36]
    expected = embedded(linear, tokens)
    np.testing.assert_array_equal(expected, 1.5 * linear.dequantize()[tokens])
    file.content.setflags(write=True)
    file.content[:] = 0  # private: the file keeps its own
    assert not embedded(linear, tokens).any()
    np.testing.assert_array_equal(embedded(linear, tokens, file.descriptor, file.content), expected)


def test_what_lies_elsewhere_is_not_looked_for_in_the_file(tmp_path: Path) -> None:
    linear = layer("Q4_K", rows_of("Q4_K", ROWS, COLUMNS))
    _, file = on_disk(layer("Q4_K", rows_of("Q4_K", ROWS, COLUMNS)[::-1].copy()), tmp_path / "weights.bin")
    expected = embedded(linear, [1, 2])
    np.testing.assert_array_equal(embedded(linear, [1, 2], file.descriptor, file.content), expected)


def test_no_page_comes_into_memory(tmp_path: Path) -> None:
    rows = 40_000
    linear, file = on_disk(layer("Q8_0", rows_of("Q8_0", rows, COLUMNS)), tmp_path / "weights.bin")
    before = mapped_resident(tmp_path / "weights.bin")
    embedded(linear, list(range(0, rows, 1000)), file.descriptor, file.content)
    assert mapped_resident(tmp_path / "weights.bin") <= before + 4096
    embedded(linear, list(range(0, rows, 1000)))
    assert mapped_resident(tmp_path / "weights.bin") > before + 4096


@pytest.mark.parametrize("tied", [False, True])
def test_the_ledger_counts_what_is_held(tied: bool, tmp_path: Path) -> None:
    """An embedding that is read from its file is not in memory; one that makes logits too, or was replaced, is."""
    model = tiny_model(packed=True, config=tiny_config(2, tied_embeddings=tied))
    embedding, own = model.linears["embedding"].nbytes, model.nbytes
    view, file = on_disk(model.linears["embedding"], tmp_path / "weights.bin")
    for held, linear, place in ((own - embedding * (not tied), view, file), (own, model.linears["embedding"], file)):
        model.linears["embedding"], model.file = linear, place
        for native, wanted in ((None, held), (False, own)):
            engine = Engine(model, native=native)
            assert engine.probe().weights == engine.usage().categories["weights"].current == wanted
            engine.close()
