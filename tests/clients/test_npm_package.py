"""The `openai` package of npm, in Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.clients.conftest import ROOT, Served

MODULES = Path(os.environ.get("THRIFTY_NODE_MODULES", str(ROOT / ".venv-clients" / "node_modules")))


def test_the_npm_package(server: Served) -> None:
    node = shutil.which("node")
    if node is None or not (MODULES / "openai").is_dir():
        pytest.skip(f"node, or the npm package openai in {MODULES}, is not installed")
    script = MODULES.parent / "openai_package.mjs"  # modules are looked for beside the script
    shutil.copy(Path(__file__).with_name("openai_package.mjs"), script)
    words = [node, str(script), server.openai, server.model, server.key]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["streamed"] == told["whole"] and told["whole"]
    assert json.loads(told["arguments"])["city"] == "Paris"
    assert told["response"] and told["length"] > 100 and told["status"] == 404
