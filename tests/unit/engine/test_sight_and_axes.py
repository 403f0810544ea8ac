"""Rows that see ahead and rows of three positions: against one slow pass, and the same bits however they are cut."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import text_tokens, tiny_config, tiny_model
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.corridor import answer, logits_of, own_rows, rows_of, submit
from torch import Tensor

from thrifty.arrays import Floats, Integers
from thrifty.engine.admission.media_checks import check_media
from thrifty.engine.media import Embeddings, flattened
from thrifty.errors import ConfigError, KernelError, PromptError
from thrifty.models.config.layer_spec import LayerSpec, RecurrentSpec, RopeConfig
from thrifty.models.config.model_config import as_dict, from_dict
from thrifty.models.model import Model
from thrifty.models.rope import rotation
from thrifty.reference import build

PROMPT = text_tokens(300, 3)
SECTIONS = (8, 12, 12)
AXES = RopeConfig(theta=10000.0, dimension=64, sections=SECTIONS)


def everyone(rows: int) -> list[int]:
    """Rows that all see each other."""
    return list(range(rows - 1, -1, -1))


def slow_logits(model: Model, hidden: Floats, positions: Any, reach: Integers) -> Floats:
    """The last row's scores by one pass over all rows with a mask: row i sees rows up to reach[i]; a window counts from
    the row itself.
    """
    config, decoder = model.config, build(model).decoder
    slots, groups = torch.arange(len(hidden)), config.heads // config.kv_heads

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = (part.repeat_interleave(groups, 1) for part in (key, value))
        scores = torch.einsum("nhd,shd->hns", query, keys) * config.query_scale
        seen = slots[None] <= torch.from_numpy(reach)[:, None]
        window = config.layers[layer].window
        if window is not None:
            seen = seen & (slots[None] > slots[:, None] - window)
        return torch.einsum("hns,shd->nhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), values)

    state, places = torch.from_numpy(hidden.copy()), torch.as_tensor(positions)
    with torch.no_grad():
        for layer in range(len(config.layers)):
            state = decoder.layer(layer, state, places, attend, len(hidden))
        return decoder.logits(state[-1:]).numpy()


@pytest.mark.parametrize("windows", [(None, None, None), (100, None, 60)])
@pytest.mark.parametrize("native", [False, True])
def test_rows_that_see_ahead_agree_with_a_mask(make_engine: MakeEngine, windows: Any, native: bool) -> None:
    model = tiny_model(packed=native, windows=windows, seed=2)
    engine = make_engine(model, native=native or None, prefix_tree=False, chunk=256)
    image = Embeddings(rows_of(model, PROMPT[40:200]), "k", ahead=everyone(160))
    found = answer(engine, [*PROMPT[:40], image, *PROMPT[200:]], tokens=1)
    reach = np.arange(300)
    causal = slow_logits(model, rows_of(model, PROMPT), np.arange(300), reach)
    reach[40:200] = 199
    wanted = slow_logits(model, rows_of(model, PROMPT), np.arange(300), reach)
    if native:
        assert np.abs(found - wanted).mean() < 0.3 * np.abs(wanted - causal).mean()
    else:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 * float(np.abs(wanted).max()))
    assert np.abs(wanted - causal).mean() > 0.01


@pytest.mark.parametrize("recipe", [[], [{"technique": "snapkv", "keep": 0.5}]], ids=["full", "layer-major"])
@pytest.mark.parametrize("windows", [(None, None, None), (100, None, 60)])
def test_spans_are_never_cut(make_engine: MakeEngine, windows: Any, recipe: list[dict[str, Any]]) -> None:
    """The same bits with other chunks, in slices, in a batch, and behind a hit in the middle of a span."""
    model = tiny_model(packed=True, windows=windows, seed=2)

    def prompt(engine: Any, key: str = "k") -> list[Any]:
        images = [own_rows(engine, PROMPT[40:150], key, ahead=everyone(110)), *PROMPT[150:170]]
        return [*PROMPT[:40], *images, own_rows(engine, PROMPT[170:290], ahead=everyone(120)), *PROMPT[290:]]

    whole = make_engine(model, chunk=512, cache=recipe)
    wanted = answer(whole, prompt(whole))
    cut = make_engine(model, chunk=128, cache=recipe, prefill_slice_ms=0.01)
    other = submit(cut, PROMPT[:50], tokens=60)
    for _ in range(3):
        cut.step()
    assert np.array_equal(answer(cut, prompt(cut)), wanted)
    other.cancel()
    hit = submit(cut, prompt(cut))
    assert np.array_equal(logits_of(hit), wanted)
    if not recipe:
        assert hit.usage.cached_tokens == 256
    plain = answer(whole, PROMPT)
    assert not np.array_equal(plain, wanted)


def test_how_rows_see_is_part_of_their_key(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed)
    answer(engine, [*PROMPT[:10], own_rows(engine, PROMPT[10:200], ahead=everyone(190)), *PROMPT[200:]])
    for more in ({}, {"positions": np.arange(190) // 2}):
        other = submit(engine, [*PROMPT[:10], own_rows(engine, PROMPT[10:200], **more), *PROMPT[200:]])
        logits_of(other)
        assert other.usage.cached_tokens == 0


def three_axes(native: bool, windows: tuple[int | None, ...] = (None, None)) -> Model:
    layers = tuple(LayerSpec(window, AXES) for window in windows)
    return tiny_model(packed=native, config=dataclasses.replace(tiny_config(), layers=layers))


def grid(time: int, height: int, width: int) -> Integers:
    """int64 [3, rows]: where each patch of some frames lies."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*map(np.arange, (time, height, width)), indexing="ij")])


@pytest.mark.parametrize("native", [False, True])
def test_equal_axes_are_plain_positions(make_engine: MakeEngine, native: bool) -> None:
    with_axes = three_axes(native)
    layers = tuple(
        dataclasses.replace(layer, rope=dataclasses.replace(AXES, sections=())) for layer in with_axes.config.layers
    )
    plain = dataclasses.replace(with_axes, config=dataclasses.replace(with_axes.config, layers=layers))
    wanted = answer(make_engine(plain, native=native or None), PROMPT)
    engine = make_engine(with_axes, native=native or None, prefix_tree=False)
    equal = own_rows(engine, PROMPT[20:200], positions=np.tile(np.arange(180), (3, 1)))
    assert np.array_equal(answer(engine, [*PROMPT[:20], equal, *PROMPT[200:]]), wanted)
    assert np.array_equal(answer(engine, PROMPT), wanted)


@pytest.mark.parametrize("native", [False, True])
def test_three_axes_agree_with_a_slow_pass(make_engine: MakeEngine, native: bool) -> None:
    """And the same bits in any chunk; rows behind the image go on behind its greatest position."""
    model = three_axes(native)
    image = Embeddings(rows_of(model, PROMPT[30:174]), "k", positions=grid(1, 9, 16))
    mixed = [*PROMPT[:30], image, *PROMPT[174:]]
    after = np.arange(46, 46 + 126)
    positions = np.concatenate([np.tile(np.arange(30), (3, 1)), 30 + grid(1, 9, 16), np.tile(after, (3, 1))], axis=1)
    wanted = slow_logits(model, rows_of(model, PROMPT), positions, np.arange(300))
    answers = [
        answer(make_engine(model, native=native or None, chunk=chunk, prefix_tree=False), mixed) for chunk in (128, 512)
    ]
    assert np.array_equal(*answers)
    flat = slow_logits(model, rows_of(model, PROMPT), np.arange(300), np.arange(300))
    if native:
        assert np.abs(answers[0][:1] - wanted).mean() < 0.3 * np.abs(wanted - flat).mean()
    else:
        np.testing.assert_allclose(answers[0][:1], wanted, rtol=0, atol=1e-3 * float(np.abs(wanted).max()))


def test_each_frequency_turns_with_its_axis() -> None:
    """Against the plain tables of each axis, section by section (M-RoPE, arXiv 2409.12191, §2.1)."""
    positions = np.array([[3, 9, 100], [5, 9, 0], [7, 9, 2]])
    tables = rotation(AXES, positions)
    plain = dataclasses.replace(AXES, sections=())
    borders = np.cumsum([0, *SECTIONS])
    for axis in range(3):
        part = slice(borders[axis], borders[axis + 1])
        for found, wanted in zip(tables, rotation(plain, positions[axis]), strict=True):
            assert np.array_equal(found[:, part], wanted[:, part])
    with pytest.raises(KernelError, match="this model's rope has one axis"):
        rotation(plain, positions)


def test_sections_are_checked_and_stored() -> None:
    config = three_axes(False).config
    assert from_dict(as_dict(config)) == config
    with pytest.raises(ConfigError, match=r"rope.sections is \[8, 8, 8\]; it must be 3 numbers that sum to 32"):
        dataclasses.replace(AXES, sections=(8, 8, 8))


def test_layers_without_a_rope_ask_for_no_axes() -> None:
    """A recurrent layer turns nothing; the layers of attention beside it must have sections."""
    config, image = three_axes(False).config, Embeddings(np.zeros((4, 128), np.float32), "k", positions=grid(1, 2, 2))
    recurrent = LayerSpec(None, RopeConfig(1e4, 0), mixer="recurrent", recurrent=RecurrentSpec(2, 16, 16))
    _, media = flattened([1, image])
    check_media(media, dataclasses.replace(config, layers=(*config.layers, recurrent)), (), 128)
    plain = LayerSpec(None, dataclasses.replace(AXES, sections=()))
    with pytest.raises(PromptError, match="this model's ropes take one"):
        check_media(media, dataclasses.replace(config, layers=(*config.layers, plain)), (), 128)
