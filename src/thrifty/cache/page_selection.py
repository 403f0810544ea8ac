"""What a policy says of the pages that rows select while decoding; native code carries it out within its call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo

BLOCKS = 16
"""Room for bounds is taken for so many blocks of 64 slots at once."""


@dataclass(frozen=True)
class PageSelection:
    """In `layers` each query head of a decoded row attends to `pages` pages of `page` slots (16, 32 or 64), its own
    among them. Pages are the parts of a block of 64 slots; a row's own page, which is still being filled, is always
    read. Of the others it reads those in which its query can score most, by the greatest and least key of each channel.
    Rows of a prompt attend to everything.
    """

    layers: tuple[int, ...]
    page: int
    pages: int

    @property
    def slots(self) -> int:
        """The most slots of a query head that a row attends to."""
        return self.page * self.pages

    def bounds_bytes(self, model: ModelInfo, blocks: int) -> int:
        """Bytes of the bounds of so many blocks of every KV head, as native code holds them: two bf16 numbers a
        channel (padded to 16) and a mark for each page.
        """
        pages = blocks * (PAGE // self.page)
        widths = [model.of(layer) for layer in self.layers]
        return sum(own.kv_heads * pages * (4 * -(-own.head_dim // 16) * 16 + 1) for own in widths)

    def most_bytes(self, model: ModelInfo, tokens: int) -> int:
        """Bytes of the bounds of a sequence of `tokens` tokens at most: blocks that are not full, pages reserved for
        drafts, and the room beyond them included.
        """
        return self.bounds_bytes(model, (-(-tokens // PAGE) // BLOCKS + 2) * BLOCKS)

    def rows_left(self, tail_rows: int) -> int:
        """How many rows a step may append behind `tail_rows` rows of the open block before a page begins."""
        return self.page - tail_rows % self.page
