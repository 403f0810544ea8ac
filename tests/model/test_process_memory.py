"""The budget: memory beyond imports and tokenizer is what the ledger says (design §3)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys
from thrifty import Thrifty
from thrifty.engine.admission.process_memory import baseline
from thrifty.recipe import Recipe
from thrifty.storage.process import peak_resident

thrifty = Thrifty(sys.argv[1], recipe=Recipe.from_document({"cache": json.loads(sys.argv[2])}))
beside = baseline(thrifty.model)  # weights that are in memory already left out
thrifty.generate("word " * 2500, max_tokens=5)
print(json.dumps([peak_resident() - beside, thrifty.engine.memory.ledger.peak]))
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
