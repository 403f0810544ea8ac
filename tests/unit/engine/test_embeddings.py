"""Prompts that mix ids and embeddings: a model's own rows are its tokens to the bit, whatever computes them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.tiny import text_tokens, tiny_model
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.corridor import answer, logits_of, own_rows, submit

from thrifty.engine.media import Embeddings, flattened
from thrifty.errors import PromptError, RecipeError
from thrifty.models.model import Model

PROMPT = text_tokens(300, 3)
RECIPES = {
    "full": [],
    "layer-major": [{"technique": "snapkv", "keep": 0.5}],
    "quantised": [{"technique": "kivi", "bits": 4}],
    "streaming": [{"technique": "streaming", "sinks": 4, "window": 128}],
    "by token": [{"technique": "fastgen"}],
}


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "by token"])
@pytest.mark.parametrize("chunk", [128, 256])
def test_own_rows_equal_ids_in_every_prefill(make_engine: MakeEngine, model: Model, recipe: str, chunk: int) -> None:
    engine = make_engine(model, cache=RECIPES[recipe], chunk=chunk, prefix_tree=False)
    wanted = answer(engine, PROMPT)
    mixed = [*PROMPT[:50], own_rows(engine, PROMPT[50:190]), *PROMPT[190:]]
    assert np.array_equal(answer(engine, mixed), wanted)
    assert np.array_equal(answer(engine, [own_rows(engine, PROMPT)]), wanted)


def test_slices_beside_a_decoding_sequence_change_nothing(make_engine: MakeEngine, model: Model) -> None:
    """With a slice a layer, and another request that decodes meanwhile."""
    engine = make_engine(model, chunk=256, prefill_slice_ms=0.01, prefix_tree=False)
    wanted, beside = answer(engine, PROMPT), answer(engine, PROMPT[:40], tokens=40)
    other = submit(engine, PROMPT[:40], tokens=40)
    for _ in range(3):
        engine.step()
    mixed = submit(engine, [*PROMPT[:50], own_rows(engine, PROMPT[50:190]), *PROMPT[190:]])
    assert np.array_equal(logits_of(mixed), wanted)
    assert np.array_equal(logits_of(other), beside)


def test_pieces_of_one_key_share_their_prefix_and_others_do_not(make_engine: MakeEngine, model: Model) -> None:
    engine = make_engine(model)
    image = own_rows(engine, PROMPT[10:200], key="cat")
    first = submit(engine, [*PROMPT[:10], image, *PROMPT[200:]])
    wanted = logits_of(first)
    assert first.usage.cached_tokens == 0
    again = submit(engine, [*PROMPT[:10], image, *PROMPT[200:]])
    assert np.array_equal(logits_of(again), wanted)
    assert again.usage.cached_tokens == 256
    tail = submit(engine, [*PROMPT[:10], image, *PROMPT[:40]])
    logits_of(tail)
    windowed = any(layer.window for layer in model.config.layers)  # its window at 192 was let go of, as behind tokens
    recurrent = any(layer.mixer == "recurrent" for layer in model.config.layers)  # hits are at snapshots
    assert tail.usage.cached_tokens == (0 if windowed else 128 if recurrent else 192)
    for other in (own_rows(engine, PROMPT[10:200], key="dog"), PROMPT[10:200]):
        mixed = [other] if isinstance(other, Embeddings) else other
        crossed = submit(engine, [*PROMPT[:10], *mixed, *PROMPT[200:]])
        assert np.array_equal(logits_of(crossed), wanted)
        assert crossed.usage.cached_tokens == 0


def test_pieces_without_a_key_are_known_by_their_values(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed)
    for tokens, hits in ((PROMPT[10:200], 0), (PROMPT[10:200], 256), (PROMPT[11:201], 0)):
        handle = submit(engine, [*PROMPT[:10], own_rows(engine, tokens, key=None), *PROMPT[200:]])
        logits_of(handle)
        assert handle.usage.cached_tokens == hits


def test_a_hit_inside_a_piece_goes_on_with_its_rows(make_engine: MakeEngine, model: Model) -> None:
    engine = make_engine(model, prefix_tree=True)
    image = own_rows(engine, PROMPT[20:290], key=7)
    wanted = answer(engine, [*PROMPT[:20], image, *PROMPT[290:]], share_prefix=False)
    answer(engine, [*PROMPT[:20], image])
    hit = submit(engine, [*PROMPT[:20], image, *PROMPT[290:]])
    assert np.array_equal(logits_of(hit), wanted)
    assert hit.usage.cached_tokens == 256


def test_the_next_turn_begins_behind_an_answer(make_engine: MakeEngine, packed: Model) -> None:
    engine = make_engine(packed)
    image = own_rows(engine, PROMPT[10:100], key="cat")
    first = submit(engine, [*PROMPT[:10], image], tokens=60)
    logits_of(first)
    turn = [*PROMPT[:10], image, *first.samples[0].token_ids, *PROMPT[:20]]
    second = submit(engine, turn)
    found = logits_of(second)
    assert second.usage.cached_tokens == 128
    assert np.array_equal(found, answer(engine, turn, share_prefix=False))


def test_samples_and_forks_of_a_mixed_prompt(make_engine: MakeEngine, model: Model) -> None:
    engine = make_engine(model, prefix_tree=False)
    positions = np.arange(40) // 2
    mixed = [*PROMPT[:10], own_rows(engine, PROMPT[10:50], positions=positions), *PROMPT[50:90]]
    wanted = submit(engine, mixed, tokens=12).result().token_ids
    handle = submit(engine, mixed, tokens=12, samples=2)
    while len(handle.samples[0].token_ids) < 4:
        engine.step()
    fork = handle.fork()
    assert handle.result().samples[1].token_ids == wanted
    assert fork.result().token_ids == wanted[len(wanted) - len(fork.result().token_ids) :]


def test_policies_read_no_token_where_there_is_none(make_engine: MakeEngine, model: Model) -> None:
    """Classes of tokens are asked for; embedded rows are of none of them."""
    engine = make_engine(model, cache=RECIPES["by token"], prefix_tree=False)
    commas = [ord(",")] * 40
    text = answer(engine, [*PROMPT[:150], *commas, *PROMPT[150:]])
    mixed = answer(engine, [*PROMPT[:150], own_rows(engine, commas), *PROMPT[150:]])
    assert text.shape == mixed.shape


def test_positions_are_given_as_vectors(make_engine: MakeEngine, model: Model) -> None:
    """Consecutive ones are the plain ones; the answer goes on behind the greatest."""
    engine = make_engine(model, prefix_tree=False, chunk=128)
    wanted = answer(engine, PROMPT)
    plain = own_rows(engine, PROMPT[20:200], positions=np.arange(180))
    assert np.array_equal(answer(engine, [*PROMPT[:20], plain, *PROMPT[200:]]), wanted)
    halved = own_rows(engine, PROMPT[20:200], positions=np.arange(180) // 2)
    found = answer(engine, [*PROMPT[:20], halved, *PROMPT[200:]])
    assert not np.array_equal(found, wanted)
    bigger = make_engine(model, prefix_tree=False, chunk=512, prefill_slice_ms=0)
    assert np.array_equal(answer(bigger, [*PROMPT[:20], halved, *PROMPT[200:]]), found)


def test_positions_go_on_behind_the_greatest() -> None:
    values = np.zeros((4, 8), np.float32)
    grid = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 0, 1]])
    tokens, media = flattened([5, 6, Embeddings(values, "a", grid), 7, Embeddings(values, "b"), 8])
    assert tokens == (5, 6, -1, -1, -1, -1, 7, -1, -1, -1, -1, 8)
    assert media.positions is not None
    assert media.positions[0].tolist() == [0, 1, 2, 2, 2, 2, 4, 5, 6, 7, 8, 9]
    assert media.positions[2].tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 6, 7, 8, 9]
    assert media.shift == 10 - 12


def test_decoding_natively_and_with_logits_is_the_same_behind_other_positions(
    make_engine: MakeEngine, packed: Model
) -> None:
    engine = make_engine(packed, prefix_tree=False)
    mixed = [*PROMPT[:20], own_rows(engine, PROMPT[20:200], positions=np.arange(180) // 3), *PROMPT[200:]]
    seen = submit(engine, mixed, tokens=100)
    wanted = seen.result().token_ids
    fast = engine.submit(type(seen.request)(prompt=mixed, sampling=seen.request.sampling))
    assert fast.result().token_ids == wanted


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ({"values": np.zeros((2, 128))}, r"embeddings are float64 \[2, 128\]; use a float32 array"),
        ({"values": np.full((2, 128), np.nan, np.float32)}, "not finite"),
        ({"key": []}, "cannot be hashed"),
        ({"positions": [0, 1, 2]}, r"positions are int32 \[3\]; use integers of at least 0, \[2\] or \[3, 2\]"),
        ({"positions": [0.5, 1]}, "positions is .*; use integers of 32 bits"),
        ({"ahead": [2, 0]}, r"ahead is int32 \[2\]; use integers \[2\] that stay inside the piece"),
    ],
)
def test_wrong_pieces_are_refused(piece: dict[str, object], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Embeddings(**({"values": np.zeros((2, 128), np.float32), "key": "k"} | piece))  # type: ignore[arg-type]


def test_what_cannot_be_served_is_refused_with_what_can(make_engine: MakeEngine, plain: Model) -> None:
    engine = make_engine(plain, chunk=128)
    zeros = np.zeros((200, 128), np.float32)

    def refused(piece: Embeddings, error: type[Exception], message: str, **options: object) -> None:
        with pytest.raises(error, match=message):
            submit(engine, [1, piece, 2], **options)  # type: ignore[arg-type]

    refused(Embeddings(zeros[:, :64].copy(), "k"), PromptError, "width 64; this model's hidden size is 128")
    refused(Embeddings(zeros, "k", np.zeros((3, 200), int)), PromptError, "three positions a row")
    refused(Embeddings(zeros, "k", ahead=range(199, -1, -1)), PromptError, "use an engine with chunk = 256")
    kvzip = [{"technique": "kvzip", "keep": 0.5}]
    refused(Embeddings(zeros, "k"), RecipeError, "kvzip reads the prompt's tokens again", cache=kvzip)
    moved = Embeddings(zeros, "k", np.zeros(200, int))
    refused(moved, RecipeError, "streaming renumbers rows", cache=[{"technique": "streaming"}])
    with pytest.raises(PromptError, match="widths"):
        submit(engine, [Embeddings(zeros, "k"), Embeddings(zeros[:, :64].copy(), "l")])
    with pytest.raises(PromptError, match="the prompt names token -1"):
        submit(engine, [-1, 2])
    with pytest.raises(PromptError, match="token ids below 0; rows without a token are Embeddings"):
        submit(engine, [-1, Embeddings(zeros, "k")])
    request = submit(engine, [1, Embeddings(zeros[:20], "k")]).request
    with pytest.raises(PromptError, match="do not fit its embedded pieces"):
        dataclasses.replace(request, prompt=[1, 2, 3])
    assert dataclasses.replace(request, prompt=[1, 2, 3], media=None).prompt == (1, 2, 3)
    engine.close()
    assert not engine.busy


def test_embeddings_of_a_model_that_scales_its_own(make_engine: MakeEngine) -> None:
    model = tiny_model(packed=True, embedding_scale=3.0)
    engine = make_engine(model, prefix_tree=False)
    mixed = [*PROMPT[:20], own_rows(engine, PROMPT[20:80]), *PROMPT[80:]]
    assert np.array_equal(answer(engine, mixed), answer(engine, PROMPT))
