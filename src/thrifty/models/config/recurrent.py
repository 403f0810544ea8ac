"""A recurrent layer, as data: its sizes, its state and its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from thrifty.models.config.checks import LIMITS, check_choice, check_integer, check_number

Decay = Literal["channel", "head"]


@dataclass(frozen=True)
class RecurrentSpec:
    """Gated linear attention (arXiv 2312.06635): a state S [key_dim, value_dim] a head instead of keys and values.

    For a token with q, k [key_dim] and v [value_dim]: S ← diag(a) S + k vᵀ, o = key_dim^(−1/2) · Sᵀ q (eq. 3), and the
    layer gives W_o (SiLU(gate) · norm(o)) (§4.4). a = sigmoid(decay)^(1 / temperature): one a channel of the keys, or,
    with `decay` "head", one a head (as Mamba-2 has, arXiv 2405.21060, eq. 5).
    """

    heads: int
    key_dim: int
    value_dim: int
    decay: Decay = "channel"
    temperature: float = 16.0

    def __post_init__(self) -> None:
        check_integer("recurrent.heads", self.heads, 1, LIMITS["heads"])
        check_integer("recurrent.key_dim", self.key_dim, 1, LIMITS["head_dim"])
        check_integer("recurrent.value_dim", self.value_dim, 1, LIMITS["head_dim"])
        check_choice("recurrent.decay", self.decay, ("channel", "head"))
        check_number("recurrent.temperature", self.temperature, 1e-3, 1e6)

    @property
    def key_width(self) -> int:
        """Channels of all queries (or keys) together."""
        return self.heads * self.key_dim

    @property
    def value_width(self) -> int:
        """Channels of all values together."""
        return self.heads * self.value_dim

    @property
    def decay_width(self) -> int:
        """Decays of a token: one a channel of the keys, or one a head."""
        return self.key_width if self.decay == "channel" else self.heads

    @property
    def state_numbers(self) -> int:
        """fp32 numbers of the state of one sequence, [heads, key_dim, value_dim]."""
        return self.heads * self.key_dim * self.value_dim

    @property
    def buffer_width(self) -> int:
        """fp32 numbers that a plan holds for each row: queries, keys, values, decays, gates and results."""
        return 2 * self.key_width + 3 * self.value_width + self.decay_width

    @property
    def step_operations(self) -> int:
        """Operations of arithmetic on the state for one token: decay, key times value, and the query's product."""
        return 5 * self.state_numbers

    def parts(self, name: str, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of all that the layer needs, as `models.parts` lists them. name: such as "layers.0.recurrent".
        hidden: channels of the hidden state.
        """
        yield f"{name}.query", (self.key_width, hidden)
        yield f"{name}.key", (self.key_width, hidden)
        yield f"{name}.value", (self.value_width, hidden)
        yield f"{name}.decay", (self.decay_width, hidden)
        yield f"{name}.decay.bias", (self.decay_width,)
        yield f"{name}.gate", (self.value_width, hidden)
        yield f"{name}.norm", (self.value_dim,)
        yield f"{name}.output", (hidden, self.value_width)
