"""What a chat template can take: one allowance for a rendering, wherever the template hides what it holds."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from thrifty.errors import TemplateError
from thrifty.models.chat.template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}]


def many(statement: str, count: int = 60) -> str:
    """Statements in which PLACE is their number."""
    return "".join(statement.replace("PLACE", str(place)) for place in range(count))


def sets(value: str, count: int = 60) -> str:
    """A namespace that holds many values."""
    return "{% set n = namespace() %}" + many(f"{{% set n.vPLACE = {value} %}}", count)


def chain(value: str, before: str = "") -> str:
    """Values of which each holds the one before it, until nothing more may be held."""
    link = f"{{% set n.last = namespace(before=n.last, value={value}) %}}"
    return f"{{% set n = namespace() %}}{{% for i in range(3000) %}}{before}{link}{{% endfor %}}"


HOARDS = {
    "namespace": sets("'a' * (8000000 + PLACE)"),
    "set blocks": many("{% set xPLACE %}{{ 'a' * (8000000 + PLACE) }}{% endset %}"),
    "with": many("{% with vPLACE = 'a' * (8000000 + PLACE) %}") + "{% endwith %}" * 60,
    "arguments": "{% macro f() %}{% endmacro %}{{ f(" + ",".join(f"a{i}='a' * 8000000" for i in range(60)) + ") }}",
    "defaults": "{% macro f(n, x='a' * 8000000) %}{{ f(n + 1) }}{{ x }}{% endmacro %}{{ f(0) }}",
    "recursion": "{% macro f(n) %}{% set x = 'a' * 8000000 %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "recursive loop": "{% set t = [[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]] %}"
    "{% for x in t recursive %}{% set y = 'a' * 8000000 %}{{ loop(x) }}{{ y | length }}{% endfor %}",
    "call blocks": "{% macro f() %}{{ caller() }}{% endmacro %}"
    + "{% call f() %}" * 60
    + "{{ 'é' * 8000000 }}"
    + "{% endcall %}" * 60,
    "slices": "{% set s = 'a' * 8000000 %}" + sets("s[PLACE + 1:]"),
    "additions": "{% set s = 'a' * 8000000 %}" + sets("s + 'b'"),
    "tildes": "{% set s = 'a' * 8000000 %}" + sets("s ~ PLACE"),
    "formats": "{% set s = 'a' * 8000000 %}" + sets("'%s' | format(s)") + sets("'{}'.format(s)"),
    "joins": sets("(['a' * 1000000] * 7) | map('upper') | join('-')"),
    "splits": sets("('a ' * 200000).split(' ')", 100),
    "characters of a message": "{% set m = messages[0].content * 130000 %}" + sets("m | list", 100),
    "pieces of a message": "{% set m = messages[0].content * 130000 %}" + sets("m.split('h')", 100),
    "dictionaries": sets("dict([['k', 'a' * 8000000]])"),
    "JSON": "{% set s = 'a' * 8000000 %}" + sets("s | tojson"),
    "parts of a block": "{% set x %}{% for i in range(99999) %}{% for j in range(99999) %}a{% endfor %}{% endfor %}"
    "{% endset %}",
    "the only piece of a list": chain("('a' * (8000000 + i)).split('x')[0]"),
    "views": chain("{'a': 'a' * (1000000 + i)}.values()"),
    "lists": chain("[['a' * (1000000 + i)]]"),
    "blocks": chain("text", "{% set text %}{{ 'a' * (1000000 + i) }}{% endset %}"),
    "results of macros": "{% macro f(i) %}{{ 'a' * (1000000 + i) }}{% endmacro %}" + chain("f(i)"),
    "results of filters": chain("('a' * (1000000 + i)) | upper"),
    "texts of messages": chain("messages[0].content * (500000 + i)"),
    "namespaces of many names": "{% set d = dict(["
    + ",".join(f"['k{name}', 0]" for name in range(2000))
    + "]) %}"
    + chain("namespace(**d)"),
    "constants": "{{ [" + ",".join(["'aaaa' | replace('a', 'b' * 2000000)"] * 60) + "] | length }}",
}
GIANTS = [
    "{{ ('a ' * 4000000).split() | length }}",
    "{{ ('a\n' * 4000000).splitlines() | length }}",
    "{{ ('é😀' * 4000000) | list | length }}",
    "{{ ('a b ' * 2000000) | title | length }}",
    "{% macro f() %}{{ varargs | length }}{% endmacro %}{{ f(*('é' * 8000000)) }}",
    "{% set l = ['a' * 8000000] * 200000 %}{{ l | upper }}",
    "{% set l = ['a' * 8000000] * 200000 %}{{ {'a': l}.items() }}",
    "{% set l = [2 ** 4000] * 200000 %}{{ l | join }}",
    "{{ range(2 ** 4000, 2 ** 4000 + 200000) | list | length }}",
    "{% autoescape true %}{{ '\"' * 8000000 }}{% endautoescape %}",
]


LENGTHY = ("characters of a message", "pieces of a message", "parts of a block", "splits")  # seconds each


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LENGTHY else []) for name in HOARDS]
)
def test_what_a_rendering_holds_is_counted_together(name: str) -> None:
    with pytest.raises(TemplateError, match=r"holds more than 128 MB of values|characters or items"):
        ChatTemplate(HOARDS[name]).render(MESSAGES, {})


def test_blocks_inside_each_other_hold_one_text_at_a_time() -> None:
    source = "{% filter upper %}" * 30 + "{{ 'a' * 8000000 }}" + "{% endfilter %}" * 30
    assert ChatTemplate(source).render(MESSAGES, {}) == "A" * 8_000_000


@pytest.mark.parametrize("source", GIANTS, ids=range(len(GIANTS)))
def test_one_step_makes_no_giant(source: str) -> None:
    with pytest.raises(TemplateError, match=r"allowed|beyond 64 bits|more than 4096 bits"):
        ChatTemplate(source).render(MESSAGES, {})


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_no_template_takes_300_megabytes() -> None:
    code = (
        "import gc, json, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
        "from thrifty.models.chat.template import ChatTemplate, TemplateError\n"
        "for source in json.load(sys.stdin):\n"
        "    gc.collect()\n"
        "    try:\n"
        "        ChatTemplate(source).render([{'role': 'user', 'content': 'hi'}], {})\n"
        "    except TemplateError:\n"
        "        status = open('/proc/self/status').read()\n"
        "        print(int(status.split('VmHWM:')[1].split()[0]) // 1024)\n"
    )
    names = ["namespace", "arguments", "recursion", "recursive loop", "slices", "formats", "joins", "call blocks"]
    names += ["results of filters", "lists"]  # what is given back leaves holes between what is held
    sources = json.dumps([HOARDS[name] for name in names])
    done = subprocess.run([sys.executable, "-c", code], input=sources, capture_output=True, text=True, check=True)
    peaks = [int(line) for line in done.stdout.split()]
    assert len(peaks) == len(names) and max(peaks) <= 300, peaks


@pytest.mark.parametrize(
    ("turns", "text"), [(40, "word " * 3000), (1000, "word " * 120), (400, "漢字 " * 500), (2, "x" * 4_000_000)]
)
def test_long_conversations_fit(turns: int, text: str) -> None:
    source = (
        "{% macro turn(m) %}{{ '<s>' + m.role + '\n' + (m.content | trim) + '</s>' }}{% endmacro %}"
        "{% for m in messages %}{% set c = m.content.split('</think>')[-1].lstrip('\n') %}{{ turn(m) }}{% endfor %}"
    )
    messages: list[dict[str, Any]] = [{"role": "user", "content": text}] * turns
    assert len(ChatTemplate(source).render(messages, {})) == turns * (len("<s>user\n</s>") + len(text.strip()))


GROWING = {
    "operator": "{% for m in messages %}{% set ns.text = ns.text + m.role + ': ' + m.content + '\n' %}{% endfor %}",
    "tilde": "{% for m in messages %}{% set ns.text = ns.text ~ m.role ~ ': ' ~ m.content ~ '\n' %}{% endfor %}",
    "block": "{% for m in messages %}{% set x %}{{ ns.text }}{{ m.role }}: {{ m.content }}\n{{ '' }}{% endset %}"
    "{% set ns.text = x %}{% endfor %}",
    "macro": "{% macro add(text, m) %}{{ text }}{{ m.role }}: {{ m.content }}\n{{ '' }}{% endmacro %}"
    "{% for m in messages %}{% set ns.text = add(ns.text, m) %}{% endfor %}",
    "filter": "{% for m in messages %}{% set ns.text = [ns.text, m.role, ': ', m.content, '\n'] | join %}{% endfor %}",
    "method": "{% for m in messages %}{% set ns.text = ''.join([ns.text, m.role, ': ', m.content, '\n']) %}"
    "{% endfor %}",
    "format": "{% for m in messages %}{% set ns.text = '%s%s: %s\n' % (ns.text, m.role, m.content) %}{% endfor %}",
    "list": "{% for m in messages %}{% set ns.list = ns.list + [m.role + ': ' + m.content + '\n'] %}{% endfor %}"
    "{% set ns.text = ns.list | join %}",
}


@pytest.mark.long
@pytest.mark.parametrize("way", GROWING)
def test_a_text_that_a_template_makes_longer_and_longer_replaces_itself(way: str) -> None:
    """500 messages of 2 kB (1,000 in one case), of which all copies together have 250 MB (a gigabyte)."""
    template = ChatTemplate("{% set ns = namespace(text='', list=[]) %}" + GROWING[way] + "{{ ns.text }}")
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": f"{place:04d}" * 500} for place in range(1000 if way == "tilde" else 500)
    ]
    text = template.render(messages, {})
    assert text == "".join(f"user: {message['content']}\n" for message in messages)
    assert template.render(messages, {}) == text, "every rendering has the allowance for itself"
