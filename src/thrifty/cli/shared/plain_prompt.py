"""Conversations for models without a chat template: plain text in which nothing of them is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Turns = Sequence[Mapping[str, str]]

USER, ASSISTANT = "User:", "Assistant:"
NEXT_TURN = f"\n{USER}"
"""Where an answer to a transcript ends: a base model would go on with the user's part."""


def paragraphs(messages: Turns) -> str:
    """The texts one under another, for the model to go on with."""
    return "\n\n".join(message["content"] for message in messages)


def transcript(messages: Turns) -> str:
    """A conversation with its speakers' names, up to the answer."""
    names = {"user": f"{USER} ", "assistant": f"{ASSISTANT} "}
    lines = [names.get(message["role"], "") + message["content"].strip() for message in messages]
    return "\n".join([*lines, ASSISTANT])
