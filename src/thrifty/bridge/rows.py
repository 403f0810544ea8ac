"""The sequences of a batch in Thrifty's cache, while a forward pass of another library brings their rows by layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thrifty.arrays import Floats
from thrifty.bridge.policies import for_prompt
from thrifty.cache.model_info import Mask, ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.pool import Cache
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import PromptError


class BatchRows:
    """One SequenceCache a row of the batch. A pass is `begin`, `attend` for every layer, `end`; padding is left out."""

    def __init__(self, model: ModelInfo, policies: Sequence[CachePolicy], memory: int | str | None) -> None:
        """memory: a budget for all sequences together, None for none."""
        self.model = model
        self.policies = tuple(policies)
        self.pool = Cache(model, memory=memory, prefix_tree=False)
        self.sequences: list[SequenceCache] = []
        self.passed = 0  # columns of the batch so far, padding included
        self._real: list[np.ndarray] = []
        self._layers: set[int] = set()

    def begin(self, tokens: np.ndarray, real: Mask) -> None:
        """A pass over new columns. tokens: [batch, n] ids, −1 where unknown; real: [batch, n], False for padding.

        What an earlier pass left unfinished is dropped. Raises PromptError where the batch has another size than
        before, a prompt cannot be compressed, or padding stands behind tokens.
        """
        self.discard()
        if self.sequences and len(self.sequences) != len(tokens):
            raise PromptError(
                f"the batch has {len(tokens)} rows, this cache was begun with {len(self.sequences)}: open another one "
                "with compressed_cache for another batch"
            )
        if not self.sequences:
            if not real.any(axis=1).all():
                raise PromptError("a row of the batch is padding alone; leave it out")
            chosen = [for_prompt(self.policies, self.model, row[mask].tolist()) for row, mask in _both(tokens, real)]
            self.sequences = [self.pool.create(own) for own in chosen]
        for sequence, (row, mask) in zip(self.sequences, _both(tokens, real), strict=True):
            if sequence.length and not mask.all() and mask.any():
                raise PromptError("padding between tokens of a row; pad the left side of the first prompt only")
            if mask.any() and not mask[int(mask.argmax()) :].all():
                raise PromptError("padding stands behind tokens of a row; pad the left side (padding_side='left')")
            sequence.remember(row[mask].tolist(), sequence.length)
            if not self._whole(sequence, int(mask.sum())) and mask.any():
                sequence.reserve(int(mask.sum()))
        self._real = list(real)
        self._layers = set()

    def attend(self, layer: int, query: Floats, key: Floats, value: Floats) -> Floats:
        """Attention of the pass's new columns in one layer: query [batch, heads, n, d], key and value
        [batch, kv_heads, n, d], rotated, fp32 → [batch, n, heads, d] fp32, 0 at padding. Raises PromptError for a
        layer that was asked for already.
        """
        if layer in self._layers:
            raise PromptError(f"layer {layer} attends twice in one forward pass; the cache holds one attention a layer")
        self._layers.add(layer)
        out = np.zeros((query.shape[0], query.shape[2], query.shape[1], query.shape[3]), np.float32)
        for row, (sequence, mask) in enumerate(zip(self.sequences, self._real, strict=True)):
            if mask.any():
                own = (np.ascontiguousarray(x[row][:, mask].swapaxes(0, 1)) for x in (query, key, value))
                out[row, mask] = self._attend(sequence, layer, *own)
        return out

    def end(self) -> None:
        """All layers have attended: the rows are committed, and policies act. Raises PromptError where one has not."""
        if len(self._layers) != self.model.layers:
            left = sorted(set(range(self.model.layers)) - self._layers)
            self.discard()
            raise PromptError(
                f"layers {left} did not attend through the cache in this forward pass: pass past_key_values=cache"
            )
        for sequence, mask in zip(self.sequences, self._real, strict=True):
            if mask.any():
                sequence.commit(int(mask.sum()))
        self.passed += len(self._real[0])
        self._real = []

    def discard(self) -> None:
        """Forget the rows of a pass that did not end. A prompt that policies began to change is forgotten whole."""
        if not self._real:
            return
        for place, sequence in enumerate(self.sequences):
            if self._layers and sequence.layer_major and not sequence.length:
                sequence.free()
                self.sequences[place] = self.pool.create(sequence.policies)
            else:
                sequence.discard()
        self._real = []

    def close(self) -> None:
        """Give all memory back."""
        for sequence in self.sequences:
            sequence.free()
        self.sequences = []
        self._real = []

    @property
    def nbytes(self) -> int:
        """What the sequences hold now."""
        return self.pool.ledger.committed

    def _attend(self, sequence: SequenceCache, layer: int, query: Floats, key: Floats, value: Floats) -> Floats:
        count = len(query)
        whole = self._whole(sequence, count)
        if whole:
            sequence.begin_layer(layer, count)
        sequence.append(layer, key, value)
        positions = np.arange(sequence.length, sequence.length + count)
        out = sequence.attend(layer, query, positions, decodes=not whole)
        if whole:
            sequence.seal_layer(layer)
        return out

    @staticmethod
    def _whole(sequence: SequenceCache, count: int) -> bool:
        """Whether the pass is a prompt that policies compress layer by layer."""
        return sequence.layer_major and (count > 1 or not sequence.length)


def _both(tokens: np.ndarray, real: Mask) -> list[tuple[np.ndarray, Mask]]:
    return list(zip(tokens, real, strict=True))
