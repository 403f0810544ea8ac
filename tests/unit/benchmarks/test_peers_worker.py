"""The worker's side: the protocol, the divergence, and Thrifty's own engine on a tiny model."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.peer_engines.protocol import PeerEngine, Specification, Timing, divergence
from benchmarks.peer_engines.worker import Worker, peak_resident, random_prompts


def test_divergence_against_the_definition() -> None:
    random = np.random.default_rng(0)
    left, right = random.normal(size=(2, 5, 11)).astype(np.float32)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (left.astype(np.float64), right.astype(np.float64)))
    assert divergence(left, right) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-9)
    assert divergence(left, left + 100) == pytest.approx(0.0, abs=1e-6)


def test_divergence_refuses_what_is_no_number_or_misses_rows() -> None:
    rows = np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="not a number"):
        divergence(rows, np.full((3, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="shorter"):
        divergence(rows, rows[:2])


def test_prompts_repeat_by_seed_only() -> None:
    first = random_prompts(1000, 64, 2, seed=1)
    assert [len(prompt) for prompt in first] == [64, 64]
    assert first == random_prompts(1000, 64, 2, seed=1)
    assert first[0][:8] != first[1][:8] != random_prompts(1000, 64, 2, seed=2)[0][:8]
    assert all(300 <= token < 1000 for prompt in first for token in prompt)
    assert all(0 <= token < 272 for token in random_prompts(272, 64, 1, seed=1)[0])


class Echo(PeerEngine):
    """Answers without a model."""

    vocabulary = 4

    def __init__(self, specification: Specification) -> None:
        self.threads = specification.threads

    def first_token(self, prompt: list[int]) -> int:
        return len(prompt)

    def measure(self, prompts: list[list[int]], steps: int, reuse: bool) -> Timing:
        return Timing(sum(map(len, prompts)), steps * len(prompts), 2.0, None if reuse else 1.0)

    def logits(self, tokens: list[int], scored: int) -> np.ndarray:
        return np.tile(np.array(tokens[-scored:], np.float32)[:, None], (1, 4)) * np.arange(4, dtype=np.float32)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr("benchmarks.peer_engines.worker.ENGINES", {"echo": (Echo.__module__, "Echo")})
    monkeypatch.setattr("importlib.import_module", lambda name: type("module", (), {"Echo": Echo}))
    return Worker()


def test_a_worker_loads_measures_and_compares(worker: Worker, tmp_path: object) -> None:
    loaded = worker.answer({"op": "load", "engine": "echo", "specification": {"path": "x", "threads": 1}})
    assert loaded == {"token": 16}
    found = worker.answer({"op": "measure", "context": 8, "batch": 2, "steps": 3, "seed": 1, "reuse": False})
    assert (found["prefill_tokens"], found["decode_tokens"], found["prefill_s"]) == (16, 6, 1.0)
    assert 0 < found["peak_rss"] <= peak_resident()
    target = f"{tmp_path}/reference.npz"
    tokens = [1, 2, 3]
    np.savez(target, tokens=np.array(tokens), logits=Echo(Specification("x", 1)).logits(tokens, 2))
    assert worker.answer({"op": "kl", "reference": target}) == {"kl": 0.0}


def test_a_worker_names_what_it_does_not_know(worker: Worker) -> None:
    with pytest.raises(ValueError, match="unknown operation; known are load"):
        worker.answer({"op": "sing"})
    with pytest.raises(ValueError, match="send 'load' first"):
        worker.answer({"op": "measure", "context": 8, "batch": 1, "steps": 3, "seed": 1, "reuse": False})
