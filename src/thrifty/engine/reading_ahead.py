"""Answers read again while nobody asks for anything, so that the next turn need not.

What a compressing recipe decodes attends to a compressed cache: its rows are not those that a prompt of the same tokens
has. Where prompts are kept on the disk (`conversation_disk`), a conversation is therefore read once more up to its
newest answer, as a prompt, when the engine has nothing else to do.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.request import Request
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.engine.running import Running

MOST = 16
"""Conversations that wait to be read; the newest ones."""


class ReadingAhead:
    """Which conversations have an answer that was not read yet. reading: the identity of the request that reads one."""

    def __init__(self, on: bool) -> None:
        """on: whether prompts are kept at all."""
        self.reading: str | None = None
        self._on = on
        self._waiting: deque[Request] = deque(maxlen=MOST)
        self._request: Request | None = None

    def note(self, sequence: Running) -> None:
        """An answer ended well. Its conversation will be read where that brings a page, and nothing else goes on from
        it.
        """
        request, policies = sequence.ticket.request, sequence.ticket.policies
        plain = request.media is None and request.session is None and request.share_prefix and request.samples == 1
        plain = plain and sequence.ticket.reading is None  # else its tokens are not the conversation's
        if not self._on or not plain or not any(policy.compresses for policy in policies):
            return
        if request.identity == self.reading or (len(sequence.tokens) - 1) // PAGE == sequence.prompt_length // PAGE:
            return
        self._waiting.append(
            Request(
                prompt=sequence.tokens[:-1],
                sampling=SamplingParameters(max_tokens=1, temperature=0.0),
                cache=request.cache,
                decoding=(),
                programs=(),
                cache_bytes=request.cache_bytes,
                salt=request.salt,
                adapter=request.adapter,
                steering=request.steering,
            )
        )

    def next(self) -> Request | None:
        """The newest conversation that waits, None where none does."""
        self.reading = None
        if not self._waiting:
            return None
        request = self._request = self._waiting.pop()
        self.reading = request.identity
        return request

    def put_back(self) -> None:
        """What `next` gave was stopped before its end: it waits again."""
        if self._request is not None:
            self._waiting.append(self._request)
