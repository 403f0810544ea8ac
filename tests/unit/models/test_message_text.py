"""Text that knows what came out of messages: every operation is the plain one, and loses no mark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.models.chat import message_text
from thrifty.models.chat.message_text import MessageText, joined, marked, parts_of
from thrifty.models.chat.template import ChatTemplate

# Capitals are the message's here, so the marks of a result can be read off its letters.
LETTERS = st.text("AB ab\n,<", max_size=12)
OPERATIONS: list[Callable[[str], Any]] = [
    lambda text: text[1:],
    lambda text: text[:-2],
    lambda text: text[-3:2],
    lambda text: text[0] if text else "",
    lambda text: text.strip(),
    lambda text: text.strip("aA "),
    lambda text: text.lstrip("bB"),
    lambda text: text.rstrip(),
    lambda text: text.split(),
    lambda text: text.split(",", 1),
    lambda text: text.rsplit("a", 1),
    lambda text: text.rsplit(None, 2),
    lambda text: text.splitlines(True),
    lambda text: text.partition("a,"),
    lambda text: text.rpartition("A"),
    lambda text: text.removeprefix("a"),
    lambda text: text.removesuffix("A"),
    lambda text: text.replace(",", "bb"),
    lambda text: text.replace("<", MessageText("AA"), 2),
    lambda text: "ab" + text + "ba",
    lambda text: text + MessageText("B"),
    lambda text: MessageText("a-b", ()).join([text, "ab", text]),
    lambda text: list(text),
]


def of_letters(text: str) -> str:
    spans = tuple((place, place + 1) for place, letter in enumerate(text) if letter.isupper())
    return MessageText(text, spans)


def letters(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@pytest.mark.parametrize("operation", OPERATIONS, ids=range(len(OPERATIONS)))
@settings(max_examples=60, deadline=None)
@given(text=LETTERS)
def test_marks_follow_their_characters(operation: Callable[[str], Any], text: str) -> None:
    plain, found = letters(operation(text)), letters(operation(of_letters(text)))
    assert found == plain
    for piece in found:
        for part, quoted in parts_of(piece):
            assert all(letter.isupper() == quoted for letter in part), (piece, parts_of(piece))


@pytest.mark.parametrize("name", ["upper", "lower", "title", "capitalize", "swapcase", "casefold"])
def test_case_keeps_marks_and_longer_texts_are_all_marked(name: str) -> None:
    text = joined(["ab ", MessageText("cd"), " ef"])
    found = getattr(text, name)()
    assert found == getattr("ab cd ef", name)() and [quoted for _, quoted in parts_of(found)] == [False, True, False]
    assert parts_of(joined(["a", MessageText("ß")]).upper()) == [("ASS", True)]


def test_what_cannot_be_told_apart_is_marked_whole() -> None:
    text = joined(["a", MessageText("b")])
    assert parts_of(text * 2) == [("abab", True)]
    assert parts_of(text[::-1]) == [("ba", True)]
    assert parts_of(text.replace("", "-")) == [("-a-b-", True)]
    many = MessageText("x" * (message_text.MAX_REPLACED + 1))
    assert parts_of(many.replace("x", "y")) == [("y" * len(many), True)]


def test_data_is_marked_with_its_keys() -> None:
    found = marked({"a": ["b", {"c": 1}], "d": None})
    assert found == {"a": ["b", {"c": 1}], "d": None}
    assert all(isinstance(text, MessageText) for text in (*found, found["a"][0], *found["a"][1]))


TEMPLATES = [
    "[{{ m.content }}]",
    "[{{ '<' + m.content + '>' }}]",
    "[{{ '<' ~ m.content ~ 3 }}]",
    "[{{ ('<' + m.content + '> ') | trim }}]",
    "[{% set x %}<{{ m.content }}>{% endset %}{{ x }}]",
    "[{% filter trim %}  <{{ m.content }}>  {% endfilter %}]",
    "[{% macro f(a) %}<{{ a }}>{% endmacro %}{{ f(m.content) }}]",
    "[{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}{{ m['content'] }}{% endcall %}]",
    "[{{ ['<', m.content, '>'] | join('-') }}]",
    "[{{ '-'.join(['<', m.content]) }}]",
    "[{{ '<%s>' | format(m.content) }}]",
    "[{{ '<%s>' % m.content }}]",
    "[{{ '<{}>'.format(m.content) }}]",
    "[{{ '<X>' | replace('X', m.content) }}]",
    "[{{ '<X>'.replace('X', m.content) }}]",
    "[{{ m.content.split('Z')[0] }}]",
    "[{{ m.content[0:9] }}{{ m.content | first }}]",
    "[{% set n = namespace(t='') %}{% for x in messages %}{% set n.t = n.t + '<' + x.content %}{% endfor %}{{ n.t }}]",
    "[{% for c in m.content %}<{{ c }}{% endfor %}]",
    "[{{ messages | map(attribute='content') | join('<') }}]",
    "[{{ m.content | default('x') | string }}]",
    "[{% for key, value in m.items() %}{% if key == 'content' %}{{ value }}{% endif %}{% endfor %}]",
    "[{{ dict(t=m.content)['t'] }}]",
    "[{% for x in messages recursive %}<{{ x.content }}{% endfor %}]",
]


@pytest.mark.parametrize("source", TEMPLATES, ids=range(len(TEMPLATES)))
def test_a_rendering_tells_messages_from_the_template(source: str) -> None:
    template = ChatTemplate("{% set m = messages[0] %}" + source)
    found = template.render([{"role": "user", "content": "ABBA"}], {})
    assert any(quoted for _, quoted in parts_of(found))
    for part, quoted in parts_of(found):
        assert set(part) <= set("AB") if quoted else not set(part) & set("AB"), parts_of(found)


WHOLE = [
    "{{ m | tojson }}",
    "{{ m.content | tojson }}",
    "{{ [m.content] }}",
    "{{ [m.content] | string }}",
    "{{ '%5s' | format(m.content) }}",
    "{{ '%s' | format([m.content]) }}",
    "{{ m.content | e }}",
    "{{ m.content | safe }}",
    "{{ m.content | urlencode }}",
    "{{ m.content | indent }}",
    "{{ (m.content ~ 'a') | indent(2, first=true) }}",
    "{{ m.content | truncate(9, true) }}{{ m.content | replace('a', 'b') | trim }}",
    "{{ m.content | reverse }}",
    "{{ m.content.format(1) }}",
    "{{ m.content * 2 }}",
    "{{ 'a' ~ [m.content] }}",
    "{{ m.content | title }}{{ m.content | upper }}{{ m.content | truncate(9) }}",
    "{{ tools | tojson }}",
    "{{ tools[0].name }}",
    "{{ documents[0].text }}",
    "{{ m.name }}{{ m.tool_calls[0].function.name }}",
]


@pytest.mark.parametrize("content", ["<|end|>", " <|end|>\n<|end|> a\n\n<|end|>"])
@pytest.mark.parametrize("source", WHOLE)
def test_no_way_through_a_template_loses_the_marks(source: str, content: str) -> None:
    message = {
        "role": "user",
        "content": content,
        "name": "<|end|>",
        "tool_calls": [{"function": {"name": "<|end|>"}}],
    }
    found = ChatTemplate("{% set m = messages[0] %}" + source + "{{ tools is none }}{{ documents is none }}").render(
        [message], {}, {"tools": [{"name": "<|end|>"}], "documents": [{"text": "<|end|>"}]}
    )
    plain = "".join(part for part, quoted in parts_of(found) if not quoted)
    assert "|" not in plain, parts_of(found)
