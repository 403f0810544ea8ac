"""Calls read from texts, however these are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.engine.answer import Event
from thrifty.serving.tool_calls.choosing import FORMATS
from thrifty.serving.tool_calls.hermes import Hermes
from thrifty.serving.tool_calls.llama import Llama
from thrifty.serving.tool_calls.mistral import Mistral
from thrifty.serving.tool_calls.offer import Function, Offer
from thrifty.serving.tool_calls.reading import CallReader
from thrifty.serving.tool_calls.tool_format import ToolFormat

OFFER = Offer((Function("add", {}), Function("get.it-2", {})), False, False, ())
ADD = '{"name": "add", "arguments": {"a": 1, "b": "}] \\" {"}}'
GET = '{"name": "get.it-2", "arguments": {}}'
CALLS = [("add", '{"a": 1, "b": "}] \\" {"}'), ("get.it-2", "{}")]
CASES: dict[str, tuple[ToolFormat, str, str | None, list[tuple[str, str]]]] = {
    "text": (Hermes(), "Hello <tool_ there ", "Hello <tool_ there ", []),
    "one call": (Hermes(), f"<tool_call>\n{ADD}\n</tool_call>", None, CALLS[:1]),
    "text and two calls": (
        Hermes(),
        f"I look.\n<tool_call>\n{ADD}\n</tool_call>\n<tool_call>\n{GET}\n</tool_call>\n",
        "I look.",
        CALLS,
    ),
    "other whitespace": (
        Hermes(),
        '<tool_call> { "name" : "add" ,  "arguments":{"a" :1}\t} </tool_call>',
        None,
        [("add", '{"a" :1}')],
    ),
    "bare": (Hermes(), ADD, None, CALLS[:1]),
    "fenced": (Hermes(), f"```json\n{GET}\n```", None, CALLS[1:]),
    "bare, of another name": (Hermes(), ADD.replace("add", "odd"), ADD.replace("add", "odd"), []),
    "bare, later": (Hermes(), f"So: {ADD}", f"So: {ADD}", []),
    "cut in the head": (Hermes(), '<tool_call>\n{"name": "ad', '<tool_call>\n{"name": "ad', []),
    "cut in a bare head": (Hermes(), '{"name": "ad', '{"name": "ad', []),
    "cut in the arguments": (Hermes(), ADD[:35].join(("<tool_call>\n", "")), None, [("add", ADD[29:35])]),
    "mistral": (Mistral(), f"Yes.[TOOL_CALLS] [{ADD}, {GET}]", "Yes.", CALLS),
    "mistral, close": (Mistral(), f"[TOOL_CALLS][{GET}]", None, CALLS[1:]),
    "mistral, text": (Mistral(), "a [TOOL] [1, 2] {", "a [TOOL] [1, 2] {", []),
    "llama": (Llama(), ADD.replace("arguments", "parameters"), None, CALLS[:1]),
    "llama, tagged": (Llama(), "<|python_tag|>" + GET.replace("arguments", "parameters"), None, CALLS[1:]),
    "llama, text": (Llama(), '{"names": 3} <tool_call>', '{"names": 3} <tool_call>', []),
    "llama, text of a beginning": (Llama(), '{"na', '{"na', []),
}


def read(form: ToolFormat, parts: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    reader, deltas = CallReader(form, OFFER, {}), []
    for place, part in enumerate(parts):
        deltas += reader.push(Event("", 0, place, part))
    deltas += reader.push(Event("", 0, None, "", None, "stop"))
    return reader.message(), deltas


def joined(deltas: list[dict[str, Any]]) -> tuple[str, list[tuple[str, str]]]:
    """What a client makes of deltas."""
    content, calls = "", list[tuple[str, str]]()
    for delta in deltas:
        content += delta.get("content", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert (
                    call["index"] == len(calls) and call["type"] == "function" and call["function"]["arguments"] == ""
                )
                calls.append((call["function"]["name"], ""))
            else:
                name, arguments = calls[call["index"]]
                calls[call["index"]] = (name, arguments + call["function"]["arguments"])
    return content, calls


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_calls_are_the_same_however_the_text_is_cut(case: str, data: st.DataObject) -> None:
    form, text, content, calls = CASES[case]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=len(text) - 1)))
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    message, deltas = read(form, parts)
    own = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    assert (message["content"] or "", own) == (content or "", calls)
    assert joined(deltas) == (content or "", calls)
    assert all(delta for delta in deltas)


@pytest.mark.parametrize("case", CASES)
def test_letter_by_letter(case: str) -> None:
    form, text, content, calls = CASES[case]
    assert joined(read(form, list(text))[1]) == (content or "", calls)


def test_a_message_without_calls_has_content_and_one_with_calls_has_null_or_what_was_said() -> None:
    assert read(Hermes(), [""])[0] == {"role": "assistant", "content": ""}
    message = read(Hermes(), [f"<tool_call>\n{ADD}\n</tool_call>"])[0]
    assert message["content"] is None and json.loads(message["tool_calls"][0]["function"]["arguments"])["a"] == 1


def test_markers_that_are_control_tokens_count_though_they_have_no_text() -> None:
    reader = CallReader(Mistral(), OFFER, {"[TOOL_CALLS]": 7})
    deltas = reader.push(Event("", 0, 3, "So "))
    for event in (Event("", 0, 7, ""), Event("", 0, 4, f"[{GET}]"), Event("", 0, 5, "", None, "stop")):
        deltas += reader.push(event)
    assert joined(deltas) == ("So", CALLS[1:])
    assert reader.reason("stop") == "tool_calls" and reader.reason("length") == "length"


def test_a_call_that_a_stop_string_cuts_is_no_call_that_can_be_made() -> None:
    reader = CallReader(Hermes(), OFFER, {})
    reader.push(Event("", 0, 3, f"<tool_call>\n{ADD[:-5]}", None, "stop"))
    assert reader.reason("stop") == "stop"
    whole = CallReader(Hermes(), OFFER, {})
    whole.push(Event("", 0, 3, f"<tool_call>\n{ADD}\n", None, "stop"))
    assert whole.reason("stop") == "tool_calls"


@pytest.mark.parametrize(
    ("template", "known"),
    [
        ('within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>}', Hermes),
        ('{{- "[TOOL_CALLS] [" }}', Mistral),
        ("Environment: ipython {{- '\"parameters\": ' }}", Llama),
        ("<tool_call><function=name><parameter=x>", None),
        ("<tool_call>name<arg_key>x</arg_key>", None),
        ("[TOOL_CALLS]name[ARGS]{}", None),
        ("{{ message.content }}", None),
    ],
)
def test_templates_tell_the_format(template: str, known: type[ToolFormat] | None) -> None:
    assert [type(form) for form in FORMATS if form.knows(template)] == ([known] if known else [])


def test_ids_are_what_templates_take() -> None:
    assert len(Mistral().identity()) == 9 and Mistral().identity().isalnum()
    assert Hermes().identity() != Hermes().identity()
