"""What one sequence holds: for every layer an ordered list of spans over segments, and an open tail.

THE CONTRACT WITH THE ENGINE (signatures are final; bodies are being written)

    plain prefill or decode step           compressing prefill (`sequence.layer_major` is True)
    ------------------------------         ------------------------------------------------------
    sequence.reserve(n)                    for layer in range(layers):
    for every layer:                           sequence.begin_layer(layer, n)
        sequence.append(layer, k, v)           for chunk in chunks:      # of the layer's hidden states
        sequence.attend(layer, q, ...)             sequence.append(layer, k, v); sequence.attend(layer, q, ...)
    sequence.commit(n)                         sequence.seal_layer(layer)
                                           sequence.commit(n)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from thrifty.cache.policy import Stats


class SequenceCache:
    """The cache of one sequence. Made by `Cache.create` or `fork`; belongs to one thread at a time.

    length: committed tokens, evicted ones included: the position of the next token.
    layer_major: True where a policy changes the prompt, so that prefill must go layer by layer.
    hit: tokens that came from the prefix tree (they count in `length`).
    """

    length: int
    hit: int
    layer_major: bool

    def slots(self, layer: int, head: int = 0) -> int:
        """Physical slots of one head now, uncommitted rows included."""
        raise NotImplementedError

    def reserve(self, n: int) -> None:
        """Make room for n more rows in the open pages of every layer group. Cheap when there is room.

        Raises BudgetError, with nothing changed.
        """
        raise NotImplementedError

    def append(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Reference path: store rows [n, kv_heads, head_dim] (any float dtype, keys rotated) in the layer's open pages.
        Needs a `reserve` (or `begin_layer`) that holds them."""
        raise NotImplementedError

    def attend(
        self,
        layer: int,
        query: Tensor,
        positions: Tensor | None = None,
        *,
        scale: float | None = None,
        softcap: float | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Attention of query [n, heads, head_dim] fp32 over the layer's slots → [n, heads, head_dim] fp32.

        The rows are the newest n that were appended: row i sees every slot but the last n-1-i, and in a windowed layer
        only the last `window` of them. scale, softcap, window default to the model's. positions are the rows' logical
        positions (only their number is checked: keys are stored rotated). Collects the statistics that policies want.
        """
        raise NotImplementedError

    def commit(self, n: int) -> None:
        """Accept the n rows appended since the last commit. Drops window pages, calls policies that are due.

        O(1) but at events (page boundary of windowed layers, a policy's period). Rejected rows must be truncated first.
        """
        raise NotImplementedError

    def truncate(self, n: int) -> None:
        """Drop the newest n rows: uncommitted ones first, then committed ones. Raises PromptError where a windowed layer
        or a policy has already let go of what the shorter sequence would need."""
        raise NotImplementedError

    def begin_layer(self, layer: int, n: int) -> None:
        """Layer-major prefill: take full-precision scratch for n new rows of one layer."""
        raise NotImplementedError

    def observe(self, layer: int, queries: Tensor, column_sums: list[Tensor] | None = None) -> None:
        """Native layer-major prefill: hand over what `attend` would have collected: the newest query rows
        [w, heads, head_dim] fp32 rotated (w ≥ `statistics.queries`, or all there are). Call before `seal_layer`."""
        raise NotImplementedError

    def seal_layer(self, layer: int, stats: Stats | None = None) -> None:
        """Layer-major prefill: run the policies' after_prefill in order, store the result, give the scratch back."""
        raise NotImplementedError

    def fork(self) -> SequenceCache:
        """A second sequence with the same content: sealed segments are shared, the open page is copied.
        Uncommitted rows are not taken along."""
        raise NotImplementedError

    def free(self) -> None:
        """Release everything, the reservation included. A second call has no effect."""
        raise NotImplementedError

    def park(self) -> None:
        """The engine will not step this sequence for a while: its segments may move to the disk tier."""
        raise NotImplementedError

    def resume(self) -> None:
        """Bring every segment back to memory before the next step. Raises BudgetError with nothing changed."""
        raise NotImplementedError

    @property
    def native(self) -> Any:
        """The native View kept in step with the spans, or None where the step needs the reference path (no native module,
        a segment on disk, a selection, statistics while decoding)."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of the segments it holds; a shared segment counts in full."""
        raise NotImplementedError
