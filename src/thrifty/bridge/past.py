"""The cache as transformers sees it: its `Cache` interface, the attention function, and hooks around a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from transformers import Cache

from thrifty.arrays import Floats
from thrifty.bridge.rows import BatchRows
from thrifty.cache.model_info import ModelInfo
from thrifty.cache.policy import CachePolicy
from thrifty.cache.sequence import SequenceCache
from thrifty.errors import PromptError

ATTENTION_EXTRAS = ("s_aux", "position_bias", "head_mask")
"""What some attention functions take beside queries, keys and values, and the cache knows nothing of."""


class Past(Cache):
    """Holds the keys and values of a batch as a recipe says. Made by `compressed_cache`."""

    def __init__(self, model: Any, facts: ModelInfo, policies: Sequence[CachePolicy], memory: int | str | None) -> None:
        super().__init__(layers=[])
        self.rows = BatchRows(facts, policies, memory)
        self._model = model
        self._parameters = tuple(inspect.signature(model.forward).parameters)
        self._updated: set[int] = set()
        self._running = False

    # --- for whoever looks at it --------------------------------------------------------------------

    @property
    def sequences(self) -> list[SequenceCache]:
        """The cache of each row of the batch."""
        return self.rows.sequences

    @property
    def nbytes(self) -> int:
        """What keys, values and statistics take now."""
        return self.rows.nbytes

    # --- a forward pass -----------------------------------------------------------------------------

    def hooks(self) -> list[Any]:
        """Hooks around the model's forward pass, to be removed by the caller."""
        before = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
        return [before, self._model.register_forward_hook(self._end)]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See transformers. The attention function puts the rows into the cache."""
        self._updated.add(layer_idx)
        return key_states, value_states

    def attend(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """An attention function of transformers: query [batch, heads, n, d], key and value [batch, kv_heads, n, d] →
        [batch, n, heads, d]. Raises PromptError for what the cache cannot compute.
        """
        layer: int = module.layer_idx  # type: ignore[assignment]
        self._check(layer, query, attention_mask, dropout, options)
        self._updated.discard(layer)
        out = self.rows.attend(layer, _array(query), _array(key), _array(value))
        return torch.from_numpy(out).to(query), None

    def _check(
        self, layer: int, query: torch.Tensor, mask: torch.Tensor | None, dropout: float, options: dict[str, Any]
    ) -> None:
        if not self._running or layer not in self._updated:
            raise PromptError("this forward pass does not use the cache: pass past_key_values=cache, use_cache=True")
        if torch.is_grad_enabled() and query.requires_grad:
            raise PromptError("the cache keeps no gradients: run the model under torch.no_grad()")
        if dropout:
            raise PromptError(f"dropout = {dropout}: the model is in training; call model.eval()")
        if mask is not None:
            raise PromptError("the model brings an attention mask of its own; the cache takes left padding alone")
        extra = next((name for name in ATTENTION_EXTRAS if options.get(name) is not None), None)
        if extra is not None:
            raise PromptError(f"the model's attention takes {extra}, which the cache does not know")

    def _begin(self, model: torch.nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        given = dict(zip(self._parameters, arguments, strict=False)) | options
        ids, embeds, mask = (given.get(name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
        shape = ids.shape if ids is not None else (None if embeds is None else embeds.shape[:2])
        if shape is None:
            raise PromptError("a forward pass needs input_ids or inputs_embeds")
        tokens = np.full(tuple(shape), -1, np.int64) if ids is None else ids.detach().cpu().numpy().astype(np.int64)
        self._updated = set()
        self.rows.begin(tokens, self._real(mask, tuple(shape)))
        self._running = True

    def _real(self, mask: Any, shape: tuple[int, int]) -> np.ndarray:
        """[batch, n]: which of the new columns are no padding."""
        if mask is None:
            return np.ones(shape, np.bool_)
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
            raise PromptError("attention_mask has to be [batch, tokens]; the cache makes its own of more dimensions")
        real: np.ndarray = mask[:, -shape[1] :].detach().cpu().numpy().astype(np.bool_)
        return real

    def _end(self, model: torch.nn.Module, arguments: Any, output: Any) -> None:
        self._running = False
        self.rows.end()

    def close(self) -> None:
        """Give all memory back; the cache is empty afterwards."""
        self.rows.close()

    # --- what transformers asks of a cache ----------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that were passed, padding and evicted ones included: positions go on from there."""
        return self.rows.passed

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """As of a cache that holds all columns."""
        return self.rows.passed + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """−1: it grows."""
        return -1

    def reset(self) -> None:
        """Refused: a new batch opens a new cache."""
        _refuse("reset()", "open another one with compressed_cache")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Refused: beams share and swap rows."""
        _refuse("beam search", "use num_beams=1, or serve the model with Thrifty's engine and fork its requests")

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: rows that policies have acted on do not come back."""
        _refuse("crop() (assisted generation)", "speculation needs the engine: use a recipe's decoding there")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused, as `reorder_cache`."""
        _refuse("repeating the batch", "give the repeated batch as input")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Refused, as `reorder_cache`."""
        _refuse("choosing rows of the batch", "open another cache for them")

    @property
    def is_croppable(self) -> bool:
        """False; see `crop`."""
        return False

    @property
    def batch_size(self) -> int:
        """Rows of the batch, −1 before the first pass."""
        return len(self.rows.sequences) or -1


def _array(x: torch.Tensor) -> Floats:
    array: Floats = x.detach().to(device="cpu", dtype=torch.float32).numpy()
    return array


def _refuse(what: str, remedy: str) -> NoReturn:
    raise PromptError(f"a compressed cache does not do {what}: {remedy}")
