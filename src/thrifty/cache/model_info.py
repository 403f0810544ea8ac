"""What the cache knows of a model: the sizes, windows and services that policies may ask about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats, Integers

Rotation = Callable[[int, Integers], tuple[Floats, Floats]]
"""(layer, positions int64 [n]) → cos, sin, each fp32 [n, dimension/2] (half-split convention)."""

Mask = npt.NDArray[np.bool_]

Instruct = Callable[[str, Sequence[int]], Sequence[int]]
"""(text, token ids quoted behind it) → token ids that end the user's turn with both and begin the answer."""

Opening = Callable[[Sequence[int]], int]
"""(token ids of a prompt) → how many of its first ones the chat template says before the user's text, 0 without."""


def no_opening(prompt: Sequence[int]) -> int:
    """0: of a model without a chat template."""
    return 0


@dataclass(frozen=True)
class TokenClasses:
    """Token ids that a model's tokenizer sets apart. special: control tokens. punctuation: tokens of nothing but
    punctuation characters, spaces aside."""

    special: frozenset[int] = frozenset()
    punctuation: frozenset[int] = frozenset()

    def masks(self, tokens: Integers) -> tuple[Mask, Mask]:
        """bool, as `tokens` int64: which are special, and which are punctuation; −1 is neither."""
        special, punctuation = self._tables
        places = np.minimum(tokens, len(special) - 1)
        return special[places], punctuation[places]

    @cached_property
    def _tables(self) -> tuple[Mask, Mask]:
        """bool by token id up to the highest; the last entry is False, and what −1 finds."""
        tables = np.zeros((2, max(self.special | self.punctuation, default=-1) + 2), np.bool_)
        for table, members in zip(tables, (self.special, self.punctuation), strict=True):
            table[list(members)] = True
        return tables[0], tables[1]


@dataclass(frozen=True)
class Widths:
    """Query heads, KV heads and head_dim of the attention of one layer."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads a KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the cache must know of a model. `windows[layer]`: its sliding window in tokens, None for a global layer.
    `states[layer]`: fp32 numbers of its recurrent state, 0 where it attends; empty where all layers do.
    `widths[layer]`: those of its attention; empty where all layers have the model's heads, kv_heads and head_dim.

    format: how open pages store keys and values ("bf16", or "f32" for the reference dtype). scale multiplies q·k;
    softcap is tanh capping of scores or None. chunk: the most rows that are appended at once. version: of the weights.
    rotation: RoPE tables, for policies that renumber. classes: gives the tokenizer's token classes when one asks.
    head_scores: measured importance of query heads by the kind of probe, fp32 [global layers, most heads of
    a layer]; read when it is asked for, empty where none was measured. context: the most positions of a sequence, 0
    where unknown. instruct: words for the model, for policies that run it; None without a tokenizer. opening: how much
    of a prompt is the chat template's, not the user's.
    """

    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    states: tuple[int, ...] = ()
    widths: tuple[Widths, ...] = ()
    scale: float = 0.0
    softcap: float | None = None
    format: str = "bf16"
    chunk: int = 512
    version: str = ""
    rotation: Rotation | None = field(default=None, compare=False, repr=False)
    classes: Callable[[], TokenClasses] = field(default=TokenClasses, compare=False, repr=False)
    head_scores: Mapping[str, Floats] = field(default_factory=dict, compare=False, repr=False)
    context: int = 0
    instruct: Instruct | None = field(default=None, compare=False, repr=False)
    opening: Opening = field(default=no_opening, compare=False, repr=False)

    def __post_init__(self) -> None:
        for own in {Widths(self.heads, self.kv_heads, self.head_dim), *self.widths}:
            if own.heads % own.kv_heads:
                raise ValueError(f"{own.heads} query heads do not divide into {own.kv_heads} KV heads")
        if self.widths and len(self.widths) != len(self.windows):
            raise ValueError(f"{len(self.widths)} widths for {len(self.windows)} layers; give one a layer, or none")
        if self.states and len(self.states) != len(self.windows):
            raise ValueError(f"{len(self.states)} states for {len(self.windows)} layers; give one a layer, 0 for none")
        if not self.scale:
            object.__setattr__(self, "scale", self.head_dim**-0.5)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.windows)

    @property
    def group(self) -> int:
        """Query heads a KV head, by the model's own widths."""
        return self.heads // self.kv_heads

    @cached_property
    def _widths(self) -> tuple[Widths, ...]:
        return self.widths or (Widths(self.heads, self.kv_heads, self.head_dim),) * self.layers

    def of(self, layer: int) -> Widths:
        """Heads, KV heads and head_dim of one layer's attention."""
        return self._widths[layer]

    @cached_property
    def most_heads(self) -> int:
        """Query heads of the layer that has most of them, of those that policies act on."""
        return max((self.of(layer).heads for layer in self.policy_layers), default=self.heads)

    @cached_property
    def most_kv_heads(self) -> int:
        """KV heads of the layer that has most of them."""
        return max(self.of(layer).kv_heads for layer in self.attention_layers)

    def alike(self, layers: Sequence[int]) -> list[tuple[int, ...]]:
        """`layers`, in their order, parted into those of equal KV heads and head_dim: their pages are of one shape."""
        parts: dict[tuple[int, int], list[int]] = {}
        for layer in layers:
            parts.setdefault((self.of(layer).kv_heads, self.of(layer).head_dim), []).append(layer)
        return [tuple(part) for part in parts.values()]

    def layer(self, index: int, length: int = 0, prompt: int = 0, earlier: int = 0) -> LayerInfo:
        """The facts of one layer of a sequence."""
        return LayerInfo(
            index=index, window=self.windows[index], length=length, prompt=prompt, model=self, earlier=earlier
        )

    def layer_groups(self) -> list[LayerGroup]:
        """Layers that keep the same tokens in pages of one shape, the global ones first; recurrent ones keep none."""
        attending = {self.windows[layer] for layer in self.attention_layers}
        windows = sorted(attending, key=lambda window: (window is not None, window or 0))
        return [
            LayerGroup(window, layers, self.of(layers[0]).kv_heads, self.of(layers[0]).head_dim)
            for window in windows
            for layers in self.alike(self.layers_with(window))
        ]

    def layers_with(self, window: int | None) -> tuple[int, ...]:
        """The layers that attend within one window."""
        return tuple(index for index in self.attention_layers if self.windows[index] == window)

    @cached_property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that keep slots, rising."""
        return tuple(index for index in range(self.layers) if not self.states or not self.states[index])

    @cached_property
    def state_layers(self) -> tuple[int, ...]:
        """The layers that keep a recurrent state, rising."""
        return tuple(index for index, numbers in enumerate(self.states) if numbers)

    @property
    def policy_layers(self) -> tuple[int, ...]:
        """The layers that policies act on, rising: those that keep every token."""
        return self.layers_with(None)


@dataclass(frozen=True)
class LayerGroup:
    """Layers of the same window, KV heads and head_dim: their full-precision pages are one run each."""

    window: int | None
    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One layer as a policy sees it. length: the sequence's logical tokens so far, evicted ones included; prompt: its
    length when the (last) prompt ended; earlier: its length when the prompt before that one ended, 0 for the first."""

    index: int
    window: int | None
    length: int
    prompt: int
    model: ModelInfo
    earlier: int = 0

    @property
    def widths(self) -> Widths:
        """Heads, KV heads and head_dim of its attention."""
        return self.model.of(self.index)
