"""Sequences that decode together for a served rate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.tiny import tiny_model

from thrifty.engine.engine import Engine
from thrifty.errors import PromptError
from thrifty.evaluation.studies.harness.serving import MOST, served_rate


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(tiny_model(packed=True), prefix_tree=False, threads=1, prefill_slice_ms=0.0)
    yield engine
    engine.close()


@pytest.mark.parametrize("technique", ["full", "kivi", "snapkv", "kvzip"])
def test_all_sequences_decode_together_and_leave_nothing_behind(engine: Engine, technique: str) -> None:
    cache = [] if technique == "full" else [{"technique": technique}]
    alone, together = (served_rate(engine, cache, batch, 300, steps=8) for batch in (1, 3))
    assert alone.rate > 0 and together.rate > 0 and together.batch == 3
    assert together.cache_bytes > 2.5 * alone.cache_bytes
    usage = engine.usage()
    assert not engine.busy and usage.active == usage.waiting == 0 and usage.bytes_of("cache") == 0


def test_a_context_that_does_not_hold_it_is_refused_with_what_would_do(engine: Engine) -> None:
    with pytest.raises(PromptError, match=r"this context holds 4096: use at most --length \d+, or smaller") as error:
        served_rate(engine, [], 8, 4000)
    fitting = int(str(error.value).rpartition("--length ")[2].partition(",")[0])
    assert served_rate(engine, [], 8, fitting, steps=2).batch == 8
    with pytest.raises(PromptError, match=f"at most {MOST}"):
        served_rate(engine, [], MOST + 1, 64)
