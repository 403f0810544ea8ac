"""Which sequences may share the pages of a prompt, beside those of the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from thrifty.engine.steering import steering_key
from thrifty.models.rope import length_class

if TYPE_CHECKING:
    from thrifty.engine.running import Running
    from thrifty.models.config.model_config import RopeConfig


def adapter_key(sequence: Running) -> str:
    """Rows of one adapter are worthless for another, and for none."""
    adapter = None if sequence.extra is None else sequence.extra.adapter
    return "" if adapter is None else adapter.version


def salt_of(sequence: Running, ropes: Sequence[RopeConfig]) -> str:
    """Keys rotated by the length of their sequence (by these ropes) are shared between prompts under which they turn
    alike; those of steered rows between requests that steer alike.
    """
    request, prompt = sequence.ticket.request, sequence.prompt_length
    salt = "|".join([request.salt, *(str(length_class(rope, prompt)) for rope in ropes)])
    return f"{salt}|steered {steering_key(request.steering)}" if request.steering else salt
