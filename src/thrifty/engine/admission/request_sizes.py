"""The bytes that a request needs, before it runs: its caches, and the hidden state of what it fills them with."""

from __future__ import annotations

from collections.abc import Sequence

from thrifty.cache.composition import layer_major, rehearsing
from thrifty.cache.footprint import Footprint, shared_bytes, state_bytes
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.formats.kv import PAGE


class RequestSizes:
    """Upper bounds, from the cache's own. page_bytes: one open page of all layers."""

    def __init__(self, cache: Cache, hidden_size: int, chunk: int) -> None:
        """chunk: the most rows that a prefill appends at once."""
        self._state_bytes = state_bytes(cache.model)
        self.page_bytes = cache.footprint((), 1, 1).steady_bytes - self._state_bytes
        self._cache = cache
        self._hidden_size = hidden_size
        self._chunk = chunk

    def held(self, policies: Sequence[CachePolicy], prompt: int, total: int, samples: int) -> Footprint:
        """Caches and hidden state. Samples share the prompt, unless a policy goes on compressing while they
        decode: then each may come to hold all of its own.
        """
        single = self._cache.footprint(policies, prompt, total)
        private = self.decoding(policies, prompt, total, self.shared(policies, prompt, prompt, total))
        more = (samples - 1) * private
        filling = single.peak_bytes + self.hidden(policies, prompt)
        return Footprint(peak_bytes=max(filling, single.peak_bytes + more), steady_bytes=single.steady_bytes + more)

    def decoding(self, policies: Sequence[CachePolicy], prompt: int, total: int, shared: int) -> int:
        """What a decoding sequence needs of its own until it has `total` tokens, an open page more than it
        keeps.
        """
        whole = self._cache.footprint(policies, prompt, total)
        if any(policy.watches_decode for policy in policies):
            return whole.peak_bytes if whole.decoding_bytes is None else whole.decoding_bytes
        return max(0, whole.steady_bytes - shared) + self.page_bytes

    def shared(self, policies: Sequence[CachePolicy], prompt: int, tokens: int, length: int) -> int:
        """Bytes that a sequence of `length` tokens shares with others until it is longer, where its first `tokens`
        came from them: it needs that much less of its own.
        """
        if any(policy.watches_decode or (policy.compresses and tokens < prompt) for policy in policies):
            return 0
        if not any(policy.compresses for policy in policies):
            return shared_bytes(self._cache.model, tokens, length)
        steady = self._cache.footprint(policies, min(prompt, tokens), tokens).steady_bytes
        return max(0, steady - self._state_bytes - 2 * self.page_bytes)

    def hidden(self, policies: Sequence[CachePolicy], prompt: int) -> int:
        """The hidden state of what goes through the layers together: the prompt, or a chunk that is cut into slices
        (in whole pages, as its cache is), or what is rehearsed.
        """
        if layer_major(policies):
            return 4 * prompt * self._hidden_size
        rows, policy = min(-(-prompt // PAGE) * PAGE, self._chunk), rehearsing(policies)
        if policy is not None:
            rows = max(rows, policy.rehearsal_rows(self._cache.model, prompt))
        return 4 * rows * self._hidden_size
