"""The benchmark of divergences by type: what is asked of the engines, what fails, and the table."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import pytest
from benchmarks import format_divergence
from benchmarks.comparison.processes import WorkerError
from benchmarks.comparison.variants import LLAMA, THRIFTY
from benchmarks.format_divergence import Row, line, measure, shares, table
from benchmarks.peer_engines.requantise import FILE_TYPES
from gguf.constants import GGMLQuantizationType as Type
from tests import gguf_files


class FakeWorker:
    """Answers by engine; remembers what was asked."""

    asked: ClassVar[list[dict[str, Any]]] = []
    refuses: ClassVar[str | None] = None

    def __init__(self, threads: int) -> None:
        self._engine = ""

    def ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        self.asked.append(request)
        if request["op"] == "reference":
            Path(request["target"]).write_bytes(b"logits")
        self._engine = request.get("engine", self._engine)
        if request["op"] == self.refuses:
            raise WorkerError("no memory (and more)", said="no memory")
        if request["op"] == "load" and self._engine == self.refuses:
            raise WorkerError("it refused (and more)", said="it refused")
        return {"kl": 0.002 if self._engine == THRIFTY else 0.004}

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(FakeWorker, "asked", [])
    monkeypatch.setattr(FakeWorker, "refuses", None)
    return FakeWorker


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return gguf_files.tiny(tmp_path / "m.gguf", default=Type.Q4_0, token_embd=Type.Q8_0)


OPTIONS = argparse.Namespace(threads=1, prefix=3, scored=5)


def test_both_engines_are_compared_with_the_exact_reference_of_the_same_file(
    worker: type[FakeWorker], file: Path, tmp_path: Path
) -> None:
    row = measure(file, "Q4_0", tmp_path, OPTIONS, worker)
    assert row.kl == {THRIFTY: 0.002, LLAMA: 0.004} and row.ratio == 0.5 and row.errors == {}
    reference, *others = worker.asked
    assert (reference["op"], reference["model"], reference["exact"]) == ("reference", str(file), True)
    assert (reference["prefix"], reference["scored"]) == (3, 5)
    assert [one.get("engine") for one in others if one["op"] == "load"] == [THRIFTY, LLAMA]
    assert {one["specification"]["path"] for one in others if one["op"] == "load"} == {str(file)}
    assert {one["reference"] for one in others if one["op"] == "kl"} == {reference["target"]}
    assert not Path(reference["target"]).exists()


def test_an_engine_that_does_not_load_the_file_is_said(worker: type[FakeWorker], file: Path, tmp_path: Path) -> None:
    worker.refuses = LLAMA
    row = measure(file, "Q4_0", tmp_path, OPTIONS, worker)
    assert row.kl == {THRIFTY: 0.002, LLAMA: None} and row.ratio is None
    assert line(row).endswith("; llama.cpp failed: it refused")


def test_a_reference_that_fails_is_said_and_the_others_go_on(
    worker: type[FakeWorker], file: Path, tmp_path: Path
) -> None:
    worker.refuses = "reference"
    row = measure(file, "Q4_0", tmp_path, OPTIONS, worker)
    assert row.kl == {THRIFTY: None, LLAMA: None} and len(worker.asked) == 1
    assert "the reference failed: no memory" in line(row)


def test_shares_are_of_the_matrices_bytes(file: Path) -> None:
    found = shares(file)
    assert list(found) == ["Q8_0", "Q4_0"] and sum(found.values()) == pytest.approx(1, abs=1e-3)
    assert found["Q8_0"] == round(262 * 34 / (262 * 34 + 9216 // 32 * 18), 3)


def test_the_table_names_types_and_ratios() -> None:
    rows = [Row("Q4_K_M", {"Q4_K": 0.75, "Q6_K": 0.25}, {THRIFTY: 0.003, LLAMA: 0.004}, {})]
    title, _, first = table(rows, "a-model").splitlines()
    assert title.startswith("a-model: mean KL divergence from exact arithmetic")
    assert first.split() == ["Q4_K_M", "0.00300", "0.00400", "0.75", "Q4_K", "75%,", "Q6_K", "25%"]


def test_unknown_kinds_are_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        format_divergence.parse(["--kinds", "Q4_K_M,Q9_K"])
    assert "unknown Q9_K; known are shipped, F16, Q4_0" in capsys.readouterr().err
    assert {"Q4_K_M", "Q2_K", "IQ4_XS", "IQ4_NL", "Q5_1"} <= FILE_TYPES.keys()
