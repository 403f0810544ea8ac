"""The larger models by name: their files, and one answer of each."""

from __future__ import annotations

import pytest
from tests.conftest import model_path

from thrifty import Thrifty
from thrifty.models.embedded import MODELS
from thrifty.models.store.content_key import file_digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_a_larger_model_arrives_by_its_name_and_writes_code(name: str) -> None:
    path = model_path(name)
    assert file_digest(path) == MODELS[name].sha256 and path.stat().st_size == MODELS[name].nbytes
    with Thrifty(name, context=512) as thrifty:
        answer = thrifty.chat("Write a Python function add(a, b) that returns the sum of a and b.", max_tokens=80)
    assert "def add" in answer.text and "return a + b" in answer.text
