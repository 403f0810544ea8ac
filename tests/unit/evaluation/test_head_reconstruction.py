"""KVzip's scores of heads: the greatest attention while two texts are repeated, and what they are used for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import ByteTokenizer, text_tokens, tiny_model

from thrifty.engine.engine import Engine
from thrifty.engine.request import Request
from thrifty.errors import PromptError, RecipeError
from thrifty.evaluation.heads import reconstruction
from thrifty.evaluation.heads.probe import ProbeSettings, probe
from thrifty.evaluation.heads.reconstruction import Repeating, head_maxima
from thrifty.models.head_scores import save

WINDOWS = (None, 50, None)
SAMPLE = 150


@pytest.fixture(params=["reference", "native"])
def engine(request: pytest.FixtureRequest, cache: Path) -> Iterator[Engine]:
    native = request.param == "native"
    engine = Engine(tiny_model(packed=True, windows=WINDOWS), native=native, prefix_tree=False, threads=1)
    yield engine
    ledger = engine.memory.ledger
    assert ledger.current == ledger.bytes_of("weights") + ledger.bytes_of("workspace"), ledger.categories()
    engine.close()


def test_scores_are_the_maxima_of_both_texts(engine: Engine) -> None:
    found = head_maxima(engine, SAMPLE)
    assert found.shape == (2, 4)
    best = np.zeros((2, 2), np.float32)

    def listen(scores: object) -> None:
        for layer, heads in enumerate(scores):  # type: ignore[call-overload]
            for head, own in enumerate(heads):
                finite = own[np.isfinite(own)]
                assert len(own) == SAMPLE and len(finite) == SAMPLE - len("user: "), "the template is not scored"
                best[layer, head] = max(best[layer, head], float(finite.max()))

    for text in (reconstruction.prose(), reconstruction.code()):
        tokens = list(b"user: " + text.encode())[:SAMPLE]
        engine.watch_prompt(tokens, Repeating(listen=listen, sinks=len("user: ")), scored=1)
    assert np.allclose(found, np.repeat(best, 2, axis=1), atol=1e-5)
    assert (found[:, 0] == found[:, 1]).all() and (found > 0).all() and (found <= 1).all()


def test_the_code_sample_is_code_and_the_prose_is_no_tasks() -> None:
    assert "def wrap(" in reconstruction.code() and "weir" in reconstruction.prose()


def test_whole_heads_stay_by_measured_scores_without_any_repeating(engine: Engine) -> None:
    table = {"technique": "kvzip", "level": "head", "keep": 0.5}
    request = Request(prompt=text_tokens(300), forced=text_tokens(5, 3), cache=[table], share_prefix=False)
    with pytest.raises(RecipeError, match="run `thrifty heads MODEL --kind kvzip` once"):
        engine.submit(request)
    save(engine.model, probe(engine, "kvzip", ProbeSettings(sample=SAMPLE)))
    scores = head_maxima(engine, SAMPLE)[:, ::2]
    chosen = {tuple(divmod(int(place), 2)) for place in np.argsort(-scores.reshape(-1), kind="stable")[:2]}
    handle, held = engine.submit(request), []
    for _ in handle:
        cache = engine.cache_of(handle)
        if cache is not None and handle.usage.generated_tokens:
            held = [[cache.sealed_counts(layer)[head] for head in range(2)] for layer in (0, 2)]
    assert held
    for rank in range(2):
        for head in range(2):
            assert held[rank][head] == (300 if (rank, head) in chosen else 4)


def test_a_sample_shorter_than_the_template_is_refused(engine: Engine) -> None:
    with pytest.raises(PromptError, match="sample = 3 tokens do not hold the chat template; use more than 6"):
        head_maxima(engine, 3)
    assert ByteTokenizer().apply_chat_template([{"role": "user", "content": ""}]).startswith("user: ")
