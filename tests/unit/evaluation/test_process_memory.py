"""Memory of the process: the peak of a span is that span's."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from thrifty.evaluation.measuring import memory

MEGABYTE = 1_000_000


def test_the_peak_of_a_span_includes_what_it_freed() -> None:
    with memory.watch() as span:
        block = np.ones(40 * MEGABYTE, np.uint8)
        del block
    assert span.peak - span.before > 35 * MEGABYTE
    assert span.peak >= span.after


def test_the_peak_is_never_below_what_is_held_at_the_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak_resident", lambda: 0)
    with memory.watch() as span:
        pass
    assert span.peak == max(span.before, span.after) > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset the peak")
def test_an_earlier_peak_is_forgotten() -> None:
    block = np.ones(80 * MEGABYTE, np.uint8)
    del block
    with memory.watch() as span:
        pass
    assert span.peak - span.before < 30 * MEGABYTE
