"""Disturbed timings are told from quiet ones."""

from __future__ import annotations

import subprocess
import sys

import pytest

from thrifty.evaluation.measuring.noise import Noise, listening

SPIN = "import time\nend = time.perf_counter() + 0.8\nwhile time.perf_counter() < end: pass"


def test_another_process_is_heard() -> None:
    with listening() as noise:
        subprocess.run([sys.executable, "-c", SPIN], check=True)
    assert noise.others > 0.05
    assert noise.void


def test_own_work_is_not_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own = iter([100.0, 101.5]), iter([10.0, 11.5])
    monkeypatch.setattr("thrifty.evaluation.measuring.noise._busy", lambda: next(busy))
    monkeypatch.setattr("thrifty.evaluation.measuring.noise._own", lambda: next(own))
    with listening() as noise:
        pass
    assert noise.others == 0.0


def test_the_limit() -> None:
    assert not Noise(0.009).void
    assert Noise(0.011).void
