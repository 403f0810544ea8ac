"""The open tail of a sequence: private full-precision pages that new rows go to, one list a layer group."""

from __future__ import annotations

from thrifty.cache.model_info import LayerGroup, ModelInfo
from thrifty.cache.slots.segment import Segment
from thrifty.cache.slots.tiers import Tiers
from thrifty.formats import kv
from thrifty.formats.kv import PAGE
from thrifty.storage.ledger import Reservation


class Tail:
    """Open pages of every group, all groups alike: the first holds `rows` committed rows (0..63), the others none."""

    def __init__(
        self, tiers: Tiers, model: ModelInfo, groups: list[LayerGroup], reservation: Reservation | None
    ) -> None:
        self.groups = groups
        self.rows = 0
        self.pages: list[list[Segment]] = [[] for _ in groups]
        self._tiers = tiers
        self._model = model
        self._reservation = reservation
        self._group_of = {layer: index for index, group in enumerate(groups) for layer in group.layers}

    def missing(self, n: int) -> int:
        """Pages that a group lacks for n more rows."""
        return -(-(self.rows + n) // PAGE) - len(self.pages[0])

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of every group."""
        rounded, form = self._tiers.arena.rounded, self._model.format
        return sum(
            rounded(kv.slab_bytes(form, PAGE, group.head_dim) * group.kv_heads * len(group.layers))
            for group in self.groups
        )

    def of(self, layer: int) -> list[Segment]:
        """The open pages that hold a layer."""
        return self.pages[self._group_of[layer]]

    def open(self, count: int, length: int) -> list[list[Segment]]:
        """Append `count` empty pages to every group, all or none; returns them. length: of the sequence, in tokens."""
        made: list[list[Segment]] = [[] for _ in self.groups]
        try:
            for group, pages in zip(self.groups, made, strict=True):
                for _ in range(count):
                    pages.append(self._page(group))
        except BaseException:
            for pages in made:
                for page in pages:
                    page.release()
            raise
        for pages, more in zip(self.pages, made, strict=True):
            pages.extend(more)
        self.number(length)
        return made

    def number(self, length: int) -> None:
        """Give the pages the positions that follow from a sequence of `length` tokens."""
        first = length - self.rows
        for pages in self.pages:
            for index, page in enumerate(pages):
                page.positions = first + index * PAGE

    def take(self) -> list[tuple[LayerGroup, Segment]]:
        """Every group's first page, no longer in the tail; the caller owns the references and counts the rows."""
        return [(group, pages.pop(0)) for group, pages in zip(self.groups, self.pages, strict=True)]

    def copy_from(self, other: Tail, length: int) -> None:
        """The committed rows of another sequence's tail, copied into a page of its own. Raises BudgetError."""
        if other.rows:
            self.open(1, length)
            for mine, theirs in zip(self.pages, other.pages, strict=True):
                mine[0].copy_from(theirs[0])
        self.rows = other.rows
        self.number(length)

    def close(self) -> None:
        """Give all pages back."""
        for pages in self.pages:
            for page in pages:
                page.release()
            pages.clear()
        self.rows = 0

    def _page(self, group: LayerGroup) -> Segment:
        heads = tuple(range(group.kv_heads))
        return Segment(
            self._tiers,
            group.layers,
            heads,
            PAGE,
            self._model.format,
            group.head_dim,
            reservation=self._reservation,
        )
