"""The form of answers: `response_format` and `structured_outputs`, in both endpoints."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest
from tests.json_schemas import fits
from tests.unit.serving.live import NAME, Live

pytest.importorskip("llguidance")

PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bo"]}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NAMED = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}


def client(server: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chat(server: Live, **fields: Any) -> Any:
    options = {"temperature": 1.0, "seed": 1, "max_tokens": 400, **fields}
    return client(server).chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "hello"}], **options
    )


def test_a_schema(server: Live) -> None:
    answer = chat(server, response_format=NAMED, n=3)
    assert all(fits(json.loads(choice.message.content), PERSON) for choice in answer.choices)
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}


def test_a_schema_streamed(server: Live) -> None:
    whole = chat(server, response_format=NAMED).choices[0].message.content
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chat(server, response_format=NAMED, stream=True))
    assert text == whole and fits(json.loads(text), PERSON)


def test_any_object_and_any_text(server: Live) -> None:
    assert chat(server, response_format={"type": "json_object"}).choices[0].message.content.lstrip().startswith("{")
    free = chat(server, max_tokens=20).choices[0].message.content
    assert chat(server, max_tokens=20, response_format={"type": "text"}).choices[0].message.content == free


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        ({"regex": "[0-9]{3}"}, "[0-9]{3}"),
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'start: "a" ("b" | "c")'}, "a[bc]"),
        ({"json": {"enum": [1, 22]}}, "1|22"),
        ({"json": '{"enum": [1, 22]}'}, "1|22"),
    ],
)
def test_the_other_forms_in_both_endpoints(server: Live, wanted: dict[str, Any], pattern: str) -> None:
    body = {"structured_outputs": wanted}
    assert re.fullmatch(pattern, chat(server, extra_body=body).choices[0].message.content)
    own = client(server).completions.create(model=NAME, prompt="hello", max_tokens=50, extra_body=body)
    assert re.fullmatch(pattern, own.choices[0].text) and own.choices[0].finish_reason == "stop"


def test_a_text_completion_with_a_response_format(server: Live) -> None:
    own = client(server).completions.create(
        model=NAME, prompt="hello", max_tokens=300, extra_body={"response_format": NAMED}
    )
    assert fits(json.loads(own.choices[0].text), PERSON)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "text", "json_schema": NAMED["json_schema"]}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "response_format",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a"}, "response_format": NAMED}, "response_format"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
        ({"guided_json": {}}, "guided_json"),
    ],
)
def test_what_is_wrong_is_named(server: Live, fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(server, extra_body=fields)
    assert refused.value.param == param
