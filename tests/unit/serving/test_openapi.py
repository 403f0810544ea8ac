"""The server against its own OpenAPI document."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from tests.unit.serving.live import NAME, Live, get, live
from tests.unit.serving.tool_models import tool_engine


@pytest.mark.slow
def test_every_endpoint_answers_as_the_document_says() -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed: pip install schemathesis")
    with live(lambda: tool_engine("hermes")) as server:
        check_all(server, schemathesis)


def check_all(server: Live, schemathesis: Any) -> None:
    """All operations of its document, on a model that knows tools."""
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    # A schema cannot say which token ids a model has, nor how long its context is.
    excluded = [schemathesis.checks.positive_data_acceptance]

    def check(operation: Any) -> None:
        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
        )
        def answers(case: Any) -> None:
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = NAME  # another one is a 404 whatever else is in the body
            case.call_and_validate(excluded_checks=excluded)

        answers()

    for operation in document.get_all_operations():
        check(operation.ok())
    assert server.running() == 0 and server.held() == 0


def test_errors_are_in_the_document(server: Live) -> None:
    document = get(server, "/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            assert "4XX" in operation["responses"], path
