"""Names of models that mean nothing end `thrifty serve` before it listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("fastapi")


@pytest.mark.parametrize(
    "words",
    [
        ["smolm2-135m"],
        ["--model", "chat=smollm2-135m", "--model", "code=smolm2-135m"],
        ["smollm2-135m", "--draft", "smolm2-135m"],
    ],
)
def test_a_model_that_is_not_meant_is_said_before_anybody_is_told_the_address(
    thrifty: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    served: list[Any] = []
    monkeypatch.setattr("thrifty.serving.run.serve", lambda *arguments: served.append(arguments))
    found = thrifty("serve", *words)
    assert found.code == 1 and "'smolm2-135m'" in found.err and "Did you mean 'smollm2-135m'?" in found.err
    assert served == [] and "http://" not in found.out + found.err
