"""What a cache policy is: the statistics it wants, the edits it returns, the bytes it promises.

A policy is a frozen dataclass without state: what it learns about a sequence lives in that sequence (statistics follow
their slots through every edit; `Stats.notes` is its own memory). It is called rarely: once a layer when a prompt ends,
then every `period` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from thrifty.cache.edits import Edits
from thrifty.errors import RecipeError
from thrifty.formats.kv import PAGE

if TYPE_CHECKING:
    from torch import Tensor

    from thrifty.cache.rehearsal import Rehearsal
    from thrifty.cache.view import LayerView
    from thrifty.card import Card

Reduction = Literal["max", "mean"]
"""What one slot gets from a row by a KV head's query heads: the greatest of theirs, or their mean."""

Rotation = Callable[[int, "Tensor"], tuple["Tensor", "Tensor"]]
"""(layer, positions int64 [n]) → cos, sin, each fp32 [n, dimension/2] (half-split convention)."""

Instruct = Callable[[str, Sequence[int]], Sequence[int]]
"""(text, token ids quoted behind it) → token ids that end the user's turn with both and begin the answer."""


@dataclass(frozen=True)
class TokenClasses:
    """Token ids that a model's tokenizer sets apart. special: control tokens. punctuation: tokens of nothing but
    punctuation characters, spaces aside."""

    special: frozenset[int] = frozenset()
    punctuation: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What the cache must know of a model. `windows[layer]`: its sliding window in tokens, None for a global layer.

    format: how open pages store keys and values ("bf16", or "f32" for the reference dtype). scale multiplies q·k;
    softcap is tanh capping of scores or None. chunk: the most rows that are appended at once. version: of the weights.
    rotation: RoPE tables, for policies that renumber. classes: gives the tokenizer's token classes when one asks.
    head_scores: measured importance of query heads by the kind of probe, fp32 [global layers, heads]; read when it is
    asked for, empty where none was measured. context: the most positions of a sequence, 0 where unknown. instruct:
    words for the model, for policies that run it; None without a tokenizer.
    """

    heads: int
    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    scale: float = 0.0
    softcap: float | None = None
    format: str = "bf16"
    chunk: int = 512
    version: str = ""
    rotation: Rotation | None = field(default=None, compare=False, repr=False)
    classes: Callable[[], TokenClasses] = field(default=TokenClasses, compare=False, repr=False)
    head_scores: Mapping[str, Tensor] = field(default_factory=dict, compare=False, repr=False)
    context: int = 0
    instruct: Instruct | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads do not divide into {self.kv_heads} KV heads")
        if not self.scale:
            object.__setattr__(self, "scale", self.head_dim**-0.5)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.windows)

    @property
    def group(self) -> int:
        """Query heads a KV head."""
        return self.heads // self.kv_heads

    def layer(self, index: int, length: int = 0, prompt: int = 0) -> LayerInfo:
        """The facts of one layer of a sequence."""
        return LayerInfo(index=index, window=self.windows[index], length=length, prompt=prompt, model=self)

    def layer_groups(self) -> list[LayerGroup]:
        """Layers that keep the same tokens, the global ones first."""
        windows = sorted(set(self.windows), key=lambda window: (window is not None, window or 0))
        return [
            LayerGroup("global" if window is None else f"window-{window}", window, self.layers_with(window))
            for window in windows
        ]

    def layers_with(self, window: int | None) -> tuple[int, ...]:
        """The layers of one window."""
        return tuple(index for index, found in enumerate(self.windows) if found == window)


@dataclass(frozen=True)
class LayerGroup:
    """Layers of the same window: their full-precision pages are one run each."""

    name: str
    window: int | None
    layers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LayerInfo:
    """One layer as a policy sees it. length: the sequence's logical tokens so far, evicted ones included; prompt: its
    length when the (last) prompt ended."""

    index: int
    window: int | None
    length: int
    prompt: int
    model: ModelInfo


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a policy wants to be told. All of it is collected over committed rows only.

    queries: the newest `queries` query rows of the prompt ("all": every row; None: none), rotated, fp32.
    column_sums: for every slot the sum over prompt rows of its attention probability. decode: go on summing while
    decoding (needs column_sums). A prefix hit must bring the column sums of its tokens, or it is a miss.
    tokens: the token id of every slot, while decoding too.
    """

    queries: int | str | None = None
    column_sums: bool = False
    decode: bool = False
    tokens: bool = False

    def __or__(self, other: Statistics) -> Statistics:
        wanted = [one for one in (self.queries, other.queries) if one is not None]
        queries: int | str | None = None
        if wanted:
            queries = "all" if "all" in wanted else max(int(one) for one in wanted)
        return Statistics(
            queries=queries,
            column_sums=self.column_sums or other.column_sums,
            decode=self.decode or other.decode,
            tokens=self.tokens or other.tokens,
        )


@dataclass
class Stats:
    """What was collected for one layer, aligned with the layer's present slots.

    queries: [rows, heads, head_dim] fp32, the newest rows of the prompt in order; None where nobody wanted them.
    column_sums: for every KV head [group, slots of that head] fp32; None where nobody wanted them.
    tokens: for every KV head int64 [slots of that head], the token id of each slot (of a merged one: of its first
    member), −1 where it is not known; None where nobody wanted them.
    notes: what this policy wrote down about this layer of the sequence, by names of its own: it finds it again at every
    later call, in forks too. A few small numbers a head, which the ledger does not count.
    """

    queries: Tensor | None = None
    column_sums: list[Tensor] | None = None
    tokens: list[Tensor] | None = None
    notes: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Footprint:
    """Upper bounds of arena and index bytes. peak: at any moment. steady: between steps, at `total` tokens.

    decoding: at any moment after the prompt was compressed; None where it is the peak.
    """

    peak_bytes: int
    steady_bytes: int
    decoding_bytes: int | None = None


class CachePolicy:
    """Base of every cache policy. Override what the method needs; the rest is the full cache.

    Policies apply to global layers only: a sliding-window layer holds its window whatever the recipe.
    """

    name: ClassVar[str]
    stage: ClassVar[str]
    card: ClassVar[Card]
    exact: ClassVar[bool] = False
    """True where the method reads exact keys or values: it must come before a policy that quantises."""
    quantises: ClassVar[bool] = False
    """True where the method stores slots in a format of less than 16 bits."""
    ragged: ClassVar[bool] = False
    """True where the heads of a layer may keep different numbers of slots."""
    uniform: ClassVar[bool] = False
    """True where the method counts a layer's slots for all heads alike: nothing ragged can come before it."""
    biases: ClassVar[bool] = False
    """True where slots may get a logit bias."""
    whole_pages: ClassVar[bool] = False
    """True where evictions while decoding let go of whole pages only (so that they free quantised pages too)."""
    rehearses: ClassVar[bool] = False
    """True where the method runs the model behind the whole prompt before it decides: the prompt is kept in full until
    then, `rehearse`, `rehearsed` and `witness` say how, and `after_prompt` stands for `after_prefill`."""

    budgeted: ClassVar[str | None] = None
    """The option that may be "budget": as many slots a head as the request's own byte budget holds."""

    period: int = PAGE
    """Tokens between calls of after_decode."""

    def check(self, model: ModelInfo) -> None:
        """Raise RecipeError where the model lacks what the method needs."""

    def wants(self, model: ModelInfo) -> Statistics:
        """The statistics that `after_prefill` and `after_decode` need."""
        return Statistics()

    def after_prefill(self, layer: LayerInfo, kv: LayerView, stats: Stats) -> Edits:
        """Edits for one layer when its prompt is complete. `kv` and `stats` are valid during the call only."""
        return Edits()

    def check_prompt(self, model: ModelInfo, prompt: int) -> None:
        """Raise PromptError or RecipeError where a prompt of so many tokens cannot be compressed, with what can."""

    def rehearse(self, model: ModelInfo, prompt: Sequence[int], first: int) -> list[Rehearsal]:
        """What to force behind the prompt (token ids) to learn what matters of its tokens from `first` on."""
        return []

    def rehearsed(self, model: ModelInfo, prompt: int) -> int:
        """Upper bound of the rows of one rehearsal of a prompt of so many tokens."""
        return 0

    def witness(self, model: ModelInfo, queries: Tensor, keys: Tensor, seen: slice) -> Tensor:
        """Scores fp32 [slots of `seen`] that some forced rows give; the greatest of all rows stays.

        queries: [group, rows, head_dim] fp32, rotated, of one KV head. keys: [slots, head_dim] fp32: sinks, the slots
        that are rehearsed (`seen`), and the forced rows up to these, which are the last.
        """
        raise NotImplementedError

    @property
    def reduction(self) -> Reduction | None:
        """How `witness` reduces a KV head's query heads, row by row, where it is the rows' greatest softmax attention,
        which native code computes too; None where it is a formula of its own."""
        return None

    def after_prompt(self, layers: list[LayerView], received: list[list[Tensor]]) -> Edits:
        """Edits for all global layers at once when the rehearsals are over. received: by layer and KV head the scores
        fp32 [slots]; infinite where a slot was not rehearsed.
        """
        return Edits()

    def after_decode(self, layers: list[LayerView], stats: list[Stats]) -> Edits | None:
        """Edits for all global layers' sealed slots (the open page of up to 63 is not among them), every `period`
        committed tokens after the prompt. None: nothing to do.
        """
        return None

    def kept(self, prompt: int, generated: int = 0) -> int:
        """Upper bound of a head's sealed slots (mean over global layers and heads) after a prompt of `prompt` tokens
        and `generated` more, just before the next `after_decode`."""
        return prompt + generated

    def kept_in_layer(self, prompt: int, generated: int = 0) -> int:
        """`kept` of the layer that keeps most (mean over its heads). Override it where layers differ."""
        return self.kept(prompt, generated)

    def stored(self, slots: int) -> dict[str, int]:
        """How many of a head's `slots` lie in which format, at worst; "" stands for the format they had."""
        return {"": slots}

    def footprint(self, model: ModelInfo, prompt: int, total: int) -> Footprint:
        """Upper bound of the bytes of a sequence with this policy alone: `prompt` tokens grown to `total`."""
        from thrifty.cache.footprint import footprint

        return footprint([self], model, prompt, total)

    @property
    def open_capacity(self) -> bool:
        """True where its capacity is left to the request's byte budget, and not known yet."""
        return self.budgeted is not None and getattr(self, self.budgeted) == "budget"

    def with_capacity(self, slots: int) -> Self:
        """The same policy with so many slots a head. Only where `budgeted` names an option."""
        options: dict[str, Any] = {str(self.budgeted): slots}
        found: Self = replace(cast("Any", self), **options)
        return found

    def known(self, slots: int | str) -> int:
        """The value of the `budgeted` option. Raises RecipeError where it is left to a budget that nobody gave."""
        if isinstance(slots, str):
            raise RecipeError(
                f'{self.name}: {self.budgeted} = "budget" is only known for a request with a byte budget of its own '
                f"(cache_bytes); write a number for {self.budgeted} here"
            )
        return slots

    @property
    def compresses(self) -> bool:
        """True where the prompt is changed when it ends."""
        return self.rehearses or type(self).after_prefill is not CachePolicy.after_prefill

    @property
    def watches_decode(self) -> bool:
        """True where `after_decode` does something."""
        return type(self).after_decode is not CachePolicy.after_decode


def rehearsing(policies: Sequence[CachePolicy]) -> CachePolicy | None:
    """The policy that runs the model before it decides, if there is one."""
    return next((policy for policy in policies if policy.rehearses), None)


def layer_major(policies: Sequence[CachePolicy]) -> bool:
    """Whether the prompt must go layer by layer, each compressed before the next one starts."""
    return rehearsing(policies) is None and any(policy.compresses for policy in policies)


def check_order(policies: Sequence[CachePolicy]) -> None:
    """Raise RecipeError where the order of a recipe's policies cannot work."""
    _check_rehearsal(policies)
    quantiser: CachePolicy | None = None
    ragged: CachePolicy | None = None
    for policy in policies:
        if policy.uniform and ragged is not None:
            raise RecipeError(
                f"cache technique '{policy.name}' counts the slots of a layer for all its heads, but '{ragged.name}' "
                f"before it leaves each head its own number: put '{policy.name}' before '{ragged.name}'"
            )
        ragged = policy if policy.ragged else ragged
        if policy.exact and quantiser is not None:
            raise RecipeError(
                f"cache technique '{policy.name}' needs exact keys and values, but '{quantiser.name}' before it stores "
                f"them in fewer bits: put '{policy.name}' before '{quantiser.name}'"
            )
        if policy.quantises and quantiser is not None:
            raise RecipeError(
                f"cache techniques '{quantiser.name}' and '{policy.name}' both quantise: keep one of them"
            )
        if policy.quantises:
            quantiser = policy


def _check_rehearsal(policies: Sequence[CachePolicy]) -> None:
    """A policy that rehearses sees the full cache, so it is the first to act; and no statistics are gathered then."""
    one = rehearsing(policies)
    if one is None:
        return
    place = policies.index(one)
    for other in policies[:place]:
        if other.compresses or other.watches_decode:
            raise RecipeError(
                f"cache technique '{one.name}' judges the whole prompt, but '{other.name}' before it changes it: put "
                f"'{one.name}' first"
            )
    for other in policies[place + 1 :]:
        if other.rehearses or type(other).wants is not CachePolicy.wants:
            raise RecipeError(
                f"cache technique '{other.name}' watches the prompt's attention, which is not gathered beside "
                f"'{one.name}': keep one of them"
            )


def wanted(policies: Sequence[CachePolicy], model: ModelInfo) -> Statistics:
    """The union of what the policies want."""
    result = Statistics()
    for policy in policies:
        result = result | policy.wants(model)
    return result
