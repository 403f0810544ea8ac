"""The document that `thrifty fit --json` prints, as the report reads it: checked, typed, unknown keys left alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from thrifty.errors import ThriftyError

OFF_GRID = "off the grid"
Amount = Annotated[int, Field(ge=0)]


class ReportError(ThriftyError):
    """A document is not what `thrifty fit --json` prints; the message names the field."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Interval(_Part):
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Quality(_Part):
    """Against the baseline, over the same text. kl in nats, top1 as a share."""

    kl: Interval
    top1: Interval


class TaskScore(_Part):
    """One task: score 0 to 1; recovery None where the baseline scores nothing."""

    score: float
    recovery: Interval | None = None
    items: Amount = 0


class Candidate(_Part):
    """One row. Bytes and tokens a second; None: not measured."""

    recipe: str
    weights: list[dict[str, Any]] = Field(default_factory=list)
    prompt: list[dict[str, Any]] = Field(default_factory=list)
    cache: list[dict[str, Any]] = Field(default_factory=list)
    decoding: list[dict[str, Any]] = Field(default_factory=list)
    grid: str = "as shipped"
    fits: bool
    need_peak_bytes: Amount
    need_steady_bytes: Amount
    weights_bytes: Amount
    measured_after_tokens: int | None = None
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None
    predicted_decode_tok_s: float | None = None
    quality: Quality | None = None
    tasks: dict[str, TaskScore] = Field(default_factory=dict)
    recovery: Interval | None = None
    stage: Literal["predicted", "divergence", "tasks"] = "divergence"
    on_frontier: bool = False

    @property
    def servable(self) -> bool:
        """Whether it can be chosen; rows off the grid only say what a technique costs."""
        return self.grid != OFF_GRID

    @property
    def measured(self) -> bool:
        """Whether it ran."""
        return self.stage != "predicted"

    @property
    def uncompressed(self) -> bool:
        """Whether it is the baseline of its grid."""
        return not (self.weights or self.prompt or self.cache or self.decoding)

    @property
    def kl(self) -> float | None:
        """Mean KL divergence in nats, 0 for a baseline that ran, None where it was not measured."""
        if self.quality is not None:
            return self.quality.kl.value
        return 0.0 if self.uncompressed and self.measured else None

    @property
    def decode_rate(self) -> float | None:
        """Tokens a second, measured where it ran, else predicted."""
        return self.decode_tok_s if self.decode_tok_s is not None else self.predicted_decode_tok_s


class Budget(_Part):
    """What was asked."""

    memory_bytes: Annotated[int, Field(ge=1)]
    context: Annotated[int, Field(ge=1)]
    batch: Amount | None = None
    latency_ms: float | None = None
    min_recovery: float | None = None
    minutes: float | None = None
    seed: int | None = None


class NextStep(_Part):
    """The cheapest recipe that would lose less, beyond the budget."""

    recipe: str
    need_peak_bytes: Amount
    gain: str | float | None = None


class Share(_Part):
    """An operation's part of one token. bytes: 0 where it reads nothing that counts."""

    us_per_token: Annotated[float, Field(ge=0)]
    bytes: Amount = 0


class Memory(_Part):
    """The winner's bytes by part at the budget's context."""

    weights: Amount
    cache_peak: Amount
    cache_steady: Amount
    workspace: Amount


class Answer(_Part):
    """One prompt and what both models say."""

    prompt: str
    baseline: str
    winner: str


class Machine(_Part):
    """Where it was measured."""

    name: str | None = None
    cpu: str | None = None
    threads: int | None = None
    bandwidth_gb_s: float | None = None
    memory_bytes: int | None = None


class Document(_Part):
    """Everything that the report shows."""

    model: str
    budget: Budget
    candidates: list[Candidate]
    winner: Amount | None
    why: list[str] = Field(default_factory=list)
    next_step: NextStep | None = None
    profile: dict[str, dict[str, Share]] | None = None
    memory: Memory | None = None
    answers: list[Answer] = Field(default_factory=list)
    machine: Machine = Machine()
    versions: dict[str, str] = Field(default_factory=dict)
    date: str = ""
    command: str = ""
    measured_after_tokens: int | None = None
    serving_baseline_bytes: int | None = None
    skipped: list[dict[str, str]] = Field(default_factory=list)
    interrupted: bool = False

    @model_validator(mode="after")
    def _winner_is_a_row(self) -> Document:
        if self.winner is not None and self.winner >= len(self.candidates):
            raise ValueError(f"winner {self.winner} is no row: there are {len(self.candidates)} candidates")
        return self

    @property
    def best(self) -> Candidate | None:
        """The winner's row."""
        return None if self.winner is None else self.candidates[self.winner]

    @property
    def baseline(self) -> Candidate | None:
        """The uncompressed model as shipped."""
        return next((row for row in self.candidates if row.uncompressed and row.servable), None)


def read(document: Mapping[str, Any]) -> Document:
    """Raises ReportError that names the first field that is missing or wrong."""
    try:
        return Document.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise ReportError(
            f"this is not a document of `thrifty fit --json`: '{where}': {first['msg']}. Make one with "
            "thrifty fit MODEL --memory SIZE --context N --json > fit.json"
        ) from error
