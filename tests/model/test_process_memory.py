"""The budget: memory beyond imports and tokenizer is what the ledger says (design §3)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
import psutil, torch
from thrifty import Thrifty
from thrifty.recipe import Recipe

def resident():
    return psutil.Process().memory_info().rss

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

thrifty = Thrifty(sys.argv[1], recipe=Recipe.from_document({"cache": json.loads(sys.argv[2])}))
thrifty.model.tokenizer.encode("hello")
baseline = resident()
thrifty.generate("word " * 2500, max_tokens=5)
print(json.dumps([peak() - baseline, thrifty.engine.memory.ledger.peak]))
"""


@pytest.mark.model
@pytest.mark.parametrize("cache", [[], [{"technique": "kivi", "bits": 4}]], ids=["full", "kivi"])
def test_process_memory_follows_the_ledger(smollm2: Path, cache: list[dict[str, object]]) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(smollm2), json.dumps(cache)], capture_output=True, text=True, check=True
    )
    process, ledger = json.loads(finished.stdout.splitlines()[-1])
    assert abs(process - ledger) <= max(0.05 * ledger, 15e6), (
        f"process {process / 1e6:.1f} MB, ledger {ledger / 1e6:.1f} MB"
    )
