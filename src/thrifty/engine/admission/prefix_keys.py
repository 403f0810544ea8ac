"""What the prefix tree tells the roots of requests apart by, beside the model: adapter and salt."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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


def salt_key(sequence: Running, ropes: Sequence[RopeConfig]) -> tuple[str, Hashable, str]:
    """The request's salt beside what else its rows depend on, each a part of its own, so that no salt looks like it.

    ropes: those that turn by the length of their sequence. Their keys are shared between prompts under which they turn
    alike, those of steered rows between requests that steer alike.
    """
    request = sequence.ticket.request
    classes = tuple(length_class(rope, sequence.prompt_length) for rope in ropes)
    return request.salt, classes, steering_key(request.steering)


def plain_salt_key(salt: str, length: int, ropes: Sequence[RopeConfig]) -> tuple[str, Hashable, str]:
    """`salt_key` of a prompt of so many tokens that nothing steers."""
    return salt, tuple(length_class(rope, length) for rope in ropes), ""
