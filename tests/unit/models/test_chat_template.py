"""Chat templates: what real ones use, what hostile ones try, and messages of a wrong form."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Any

import pytest

from thrifty.errors import TemplateError
from thrifty.models.chat import allowance as chat_allowance
from thrifty.models.chat.template import ChatTemplate

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <b>é</b>"}]


def render(source: str, messages: Any = MESSAGES, **variables: Any) -> str:
    return ChatTemplate(source).render(messages, variables)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{% for m in messages %}[{{ m['role'] }}] {{ m.content | trim }};{% endfor %}",
            "[system] Be brief.;[user] Hi <b>é</b>;",
        ),
        ("{{ messages[1] | tojson }}", '{"role": "user", "content": "Hi <b>é</b>"}'),
        ("{{ {'a': [1]} | tojson(indent=1) }}", '{\n "a": [\n  1\n ]\n}'),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.index }}{% break %}{%endfor%}",
            "2",
        ),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "Be brief."),
        ("{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% endif %}{{ rest | length }}", "1"),
        (
            "{% macro turn(m) %}<{{ m.role }}>{% endmacro %}{{ turn(messages[0]) ~ turn(messages[1]) }}",
            "<system><user>",
        ),
        ("{{ 'a,b'.split(',')[-1].upper() + 'x' * 3 }}", "Bxxx"),
        ("{{ '%s-%d' | format('x', 3) }}{{ '{}!'.format('y') }}", "x-3y!"),
        ("{{ messages | map(attribute='role') | join('+') }}", "system+user"),
        ("{{ bos_token }}{{ tools is defined and tools is not none }}", "<s>False"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{%- for m in messages -%}\n  {{ m.role }}\n{%- endfor -%}", "systemuser"),
        (
            "{{ range(3) | list }}{{ dict(a=1) }}{{ messages | selectattr('role', 'equalto', 'user') | list | count }}",
            "[0, 1, 2]{'a': 1}1",
        ),
    ],
)
def test_what_real_templates_use(source: str, expected: str) -> None:
    assert render(source, bos_token="<s>") == expected


def test_a_template_refuses_messages() -> None:
    with pytest.raises(TemplateError, match=r"refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__ }}",
    "{{ (1).__class__.__base__.__subclasses__() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ ''['__class__'] }}{{ ''['__class__'].x }}",
    "{{ 'x'.translate({120: 'y'}) }}",
    "{{ range.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ raise_exception.__code__ }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_escapes_are_refused(source: str) -> None:
    with pytest.raises(TemplateError, match=r"tries to leave its sandbox"):
        render(source)


BOMBS = [
    "{{ 'a' * 10**9 }}",
    "{{ [0] * 10**9 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ range(10**12) | list }}",
    "{% set x = 'aaaaaaaa' %}" + "{% set x = x ~ x %}" * 60,
    "{% set x = 'aaaaaaaa' %}" + "{% set x = x + x %}" * 60,
    "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60 + "{{ x }}",
    "{% set x = {'a': 1} %}" + "{% set x = {'a': x, 'b': x} %}" * 60 + "{{ x | tojson }}",
    "{% set x %}ab{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=999999999) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ ('b' * 100000).join('a' * 100000) }}",
    "{{ ('a' * 9999 ~ '\n') | indent(10**9) }}",
    "{{ 5 | round(-999999999) }}",
    "{{ {'a': 1} | tojson(indent=10**9) }}",
    "{{ messages | map('replace', 'e', 'b' * 10000000) | list }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{" + "(" * 5000 + ")" * 5000 + "}}",
    "{% for i in range(200000) %}" + "x" * 100 + "{% endfor %}",
]


@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
def test_bombs_are_refused_soon(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(TemplateError):
        render(source)
    assert time.thread_time() - start < 5


def test_endless_loops_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_allowance, "MAX_SECONDS", 0.3)
    loops = "{% for a in r %}" * 4 + "{% endfor %}" * 4
    with pytest.raises(TemplateError, match=r"runs for more than 0.3 seconds"):
        render("{% set r = range(1000) | list %}" + loops)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% include '/etc/passwd' %}", "reads another file (line 1)"),
        ("{% if %}", "is not valid: line 1"),
        ("{{ 'a' | center(9) }}", "No filter named 'center'"),
        ("{{ messages[0].nothing.more }}", "has no attribute 'nothing'"),
        ("{{ 1 + 'a' }}", "fails: TypeError"),
        ("x" * 300_000, "has 300000 characters; 262144 are allowed"),
    ],
)
def test_other_faults_are_named(source: str, expected: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(expected)):
        render(source)


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "is empty"),
        ("hi", "must be a list"),
        (["hi"], "Message 0 must be an object"),
        ([{"content": "x"}], "Message 0 has no 'role'"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "Message 1 ('user') has no 'content'"),
        ([{"role": "user", "content": 3}], "Message 0 ('user') has no 'content'"),
    ],
)
def test_messages_of_a_wrong_form(messages: Any, expected: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(expected)):
        render("x", messages)


def test_a_tool_call_needs_no_content() -> None:
    assert render("{{ messages | length }}", [{"role": "assistant", "content": None, "tool_calls": [{}]}]) == "1"


def test_rendering_equals_transformers_environment() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    source = (
        "{%- if messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
        "{%- endif %}\n{%- for message in messages %}\n  {%- if message.role == 'user' %}\n"
        "{{- '<|im_start|>' + message.role + '\\n' + message.content }}\n  {%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}"
    )
    oracle = _compile_jinja_template(source).render(messages=MESSAGES, add_generation_prompt=True)
    assert render(source, add_generation_prompt=True) == oracle
