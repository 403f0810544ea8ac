"""Where the user's text begins: behind a system prompt and the head of the turn, however the text begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import pytest
from tests.tiny import ByteTokenizer, text_tokens, tiny_model

from thrifty.engine.engine import Engine
from thrifty.engine.opening import opening
from thrifty.engine.request import Request

START, END = 300, 301
DEFAULT = "You help."


class Turns(ByteTokenizer):
    """ChatML in bytes: two control tokens, a default system prompt, and line breaks that stick together."""

    special_ids = frozenset((START, END))
    breaks = 302

    def encode(self, text: str, add_bos: bool | None = None, control: bool = True) -> list[int]:
        tokens: list[int] = []
        while text:
            for mark, token in (("<start>", START), ("<end>", END), ("\n\n", self.breaks)):
                if text.startswith(mark):
                    tokens.append(token)
                    text = text[len(mark) :]
                    break
            else:
                tokens += text[0].encode()
                text = text[1:]
        return tokens

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **_: Any
    ) -> str:
        told = list(messages)
        if told[0]["role"] != "system":
            told.insert(0, {"role": "system", "content": DEFAULT})
        lines = [f"<start>{one['role']}\n{one['content']}<end>\n" for one in told]
        return "".join(lines) + ("<start>assistant\n" if add_generation_prompt else "")


def chat(*turns: tuple[str, str]) -> list[int]:
    tokenizer = Turns()
    return tokenizer.encode(tokenizer.apply_chat_template([{"role": role, "content": text} for role, text in turns]))


def before(prompt: list[int], text: str) -> int:
    """Where a text begins."""
    wanted = list(text.encode())
    return next(place for place in range(len(prompt)) if prompt[place : place + len(wanted)] == wanted)


@pytest.mark.parametrize("system", [None, "Speak like a pirate, and never say more than <end> allows."])
def test_system_prompt_and_head_are_the_opening(system: str | None) -> None:
    turns = [("system", system)] if system else []
    prompt = chat(*turns, ("user", "What is this?"), ("assistant", "A test."), ("user", "Why?"))
    assert opening(Turns())(prompt) == before(prompt, "What is this?")


def test_a_text_that_begins_with_a_line_break_takes_the_heads_last_one() -> None:
    prompt = chat(("system", "Be brief."), ("user", "\nWhat?"))
    assert opening(Turns())(prompt) == before(prompt, "user") + len("user")


def test_plain_text_has_no_opening() -> None:
    found = opening(Turns())
    assert found(Turns().encode("user\nA text about users.")) == 0
    assert found([]) == 0

    class Bare(Turns):
        has_chat_template = False

    assert opening(Bare())(chat(("user", "What?"))) == 0


def test_turns_without_control_tokens_open_only_at_the_beginning() -> None:
    found = opening(ByteTokenizer())
    prompt = list(b"user: What?\nassistant: That.\nuser: Why?")
    assert found(prompt) == len("user: ")
    assert found(list(b"A play. user: What?")) == 0


def test_kvzip_keeps_the_whole_opening() -> None:
    """Here "user: " is six tokens, and the sinks four."""
    model = tiny_model(packed=True)
    prompt = list(b"user: ") + text_tokens(200)
    with closing(Engine(model, prefix_tree=False, threads=1)) as engine:
        for kept, table in ((6, {}), (4, {"opening": False}), (9, {"sinks": 9})):
            cache = [{"technique": "kvzip", "keep": 0.01, "chunk": 300, **table}]
            handle = engine.submit(Request(prompt=prompt, forced=[1, 2, 3], cache=cache, share_prefix=False))
            held: list[list[int]] = []
            for _ in handle:
                sequence = engine.cache_of(handle)
                if sequence is not None and handle.usage.generated_tokens:
                    held = [sequence.view(layer).positions(head).tolist() for layer in range(3) for head in range(2)]
            assert held and all(own[:kept] == list(range(kept)) for own in held)
            assert not all(kept in own for own in held), "what comes behind is ranked"
