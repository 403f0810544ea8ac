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


Salt = tuple[str, Hashable, str] | tuple[str, Hashable, str, str]


def salt_key(sequence: Running, ropes: Sequence[RopeConfig], length: int | None = None) -> Salt:
    """The request's salt beside what else its rows depend on, each a part of its own, so that no salt looks like it.

    ropes: those that turn by the length of their sequence. Their keys are shared between prompts under which they turn
    alike, those of steered rows between requests that steer alike, those of a prompt of which programs had some tokens
    read between requests with the same programs. length: of the prompt that the rows are of; None: the sequence's.
    """
    request = sequence.ticket.request
    classes = tuple(length_class(rope, sequence.prompt_length if length is None else length) for rope in ropes)
    key = request.salt, classes, steering_key(request.steering)
    return (*key, sequence.program_key) if sequence.program_key else key


def plain_salt_key(salt: str, length: int, ropes: Sequence[RopeConfig]) -> tuple[str, Hashable, str]:
    """`salt_key` of a prompt of so many tokens that nothing steers."""
    return salt, tuple(length_class(rope, length) for rope in ropes), ""
