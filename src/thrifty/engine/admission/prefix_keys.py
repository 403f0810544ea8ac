"""What the prefix tree tells prompts apart by: tokens and media, adapter, and how their rows came about."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from thrifty.engine.running import Running
from thrifty.engine.steering import steering_key
from thrifty.models.config.model_config import ModelConfig
from thrifty.models.rope import depends_on_length, length_class


class PrefixKeys:
    """The keys of a model's sequences."""

    def __init__(self, config: ModelConfig) -> None:
        self._ropes_by_length = [rope for rope in config.ropes if depends_on_length(rope)]

    def tokens(self, sequence: Running, tokens: Sequence[int]) -> Sequence[Hashable]:
        """One key a token: its id, or what stands at its place."""
        return tokens if sequence.media is None else sequence.media.keys(tokens)

    def adapter(self, sequence: Running) -> str:
        """Rows of one adapter are worthless for another, and for none."""
        adapter = None if sequence.extra is None else sequence.extra.adapter
        return "" if adapter is None else adapter.version

    def salt(self, sequence: Running) -> str:
        """Keys rotated by the length of their sequence are shared between prompts under which they turn alike; those of
        steered rows between requests that steer alike.
        """
        request, prompt = sequence.ticket.request, sequence.prompt_length
        salt = "|".join([request.salt, *(str(length_class(rope, prompt)) for rope in self._ropes_by_length)])
        return f"{salt}|steered {steering_key(request.steering)}" if request.steering else salt
