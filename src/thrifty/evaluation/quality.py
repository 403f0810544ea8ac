"""Quality after compression: KL divergence, agreement and recovery against the uncompressed model of the same
run.

A prompt is prefilled and compressed, then real text is fed token by token. Only these steps are scored, for
they alone read the compressed cache (a prefill attends to exact keys and values, so any policy is perfect
there), and the run fails where a scored step read nothing that was compressed.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thrifty.arrays import Floats
from thrifty.errors import PromptError, StorageError
from thrifty.evaluation.forcing import ForcedStep, MeasurementError, Tables, force
from thrifty.evaluation.halves import Half
from thrifty.evaluation.recovery import Interval, mean_interval, ratio_interval
from thrifty.evaluation.text import Encodes, held_out

if TYPE_CHECKING:
    from thrifty.engine.engine import Engine

PREFIX = 1024  # the least that is compressed before anything is scored
SCORED = 256  # the least that is scored
TIMED = 64  # tokens that are timed before any is scored, as many as `speed.measure` decodes


@dataclass(frozen=True)
class Passage:
    """A prompt that is compressed, and an answer of which the first token is what the prefill predicts, the next
    `timed` are only timed, and the rest is scored.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    timed: int = 0

    @property
    def scored(self) -> int:
        """Tokens that are scored."""
        return len(self.answer) - self.first

    @property
    def first(self) -> int:
        """The first step that is scored."""
        return 1 + self.timed


def passage(
    tokenizer: Encodes,
    context: int,
    prefix: int = PREFIX,
    scored: int = SCORED,
    *,
    timed: int = 0,
    part: int = 0,
    half: Half | None = None,
) -> Passage:
    """The package's text cut for one run. context: what the model holds. half: of the text, see `text.prose`.

    Raises PromptError where it does not hold prefix + timed + scored + 2 tokens, or where they are not positive.
    """
    needed = prefix + timed + scored + 2
    if prefix < 1 or scored < 1:
        raise PromptError(f"a run of {prefix} compressed and {scored} scored tokens measures nothing; use 1 or more")
    if needed > context:
        spent = f"{prefix} compressed, {f'{timed} timed, ' if timed else ''}{scored} scored"
        raise PromptError(f"measuring quality takes {needed} tokens ({spent}); this context holds {context}")
    tokens = held_out(tokenizer, prefix + timed + scored + 1, part, half)
    return Passage(tuple(tokens[:prefix]), tuple(tokens[prefix:]), timed)


@dataclass(frozen=True)
class Quality:
    """What compression cost. kl: mean over tokens of KL(baseline ‖ this), nats. top1: how often both have the
    same arg-max. recovery: next-token accuracy on the text over that of the baseline; None where the baseline
    has none. nll: mean negative log-likelihood of the text, nats (context only). tokens: how many were
    scored.
    """

    kl: Interval
    top1: Interval
    recovery: Interval | None
    nll: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "kl": self.kl.as_dict(),
            "top1": self.top1.as_dict(),
            "recovery": self.recovery.as_dict() if self.recovery else None,
            "nll": self.nll,
            "tokens": self.tokens,
        }


@dataclass(frozen=True)
class PassageRun:
    """One measured pass over a passage. Rates in tokens a second: prefill over the whole prompt, decode the mean
    of the timed steps, between which nothing else is done (what `speed.measure` measures); where the passage has
    none, the median of the scored steps, which are slower by what scoring leaves in the processor's caches.
    cache_bytes: the sequence's segments at the end. steady: bytes in the engine's
    ledger then, weights included. quality: None for a baseline.
    """

    prefill_rate: float
    decode_rate: float
    cache_bytes: int
    steady: int
    quality: Quality | None = None


class Baseline:
    """The uncompressed model's predictions on a passage, kept in a temporary file that nobody else sees.

    (fp32 rows of a large vocabulary take hundreds of megabytes, which would spoil the memory figures of the
    run.)
    """

    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self.run: PassageRun | None = None
        self._file = tempfile.TemporaryFile(prefix="thrifty-baseline-")  # noqa: SIM115
        self._vocabulary = 0

    @classmethod
    def measure(cls, engine: Engine, passage: Passage) -> Baseline:
        """Run the engine's model with the full cache."""
        baseline = cls(passage)
        timer = _Timer(passage)
        try:
            for step in _steps(engine, passage, [], timer):
                assert step.logits is not None, "the run asked for logits"
                baseline._append(step.logits)
        except BaseException:
            baseline.close()
            raise
        baseline.run = timer.run()
        return baseline

    def rows(self) -> Iterator[Floats]:
        """The baseline's logits [vocabulary] fp32, one scored token after the other."""
        self._file.seek(0)
        for _ in range(self.passage.scored):
            yield np.frombuffer(self._file.read(4 * self._vocabulary), np.float32)

    def _append(self, logits: Floats) -> None:
        self._vocabulary = len(logits)
        try:
            self._file.write(logits.astype(np.float32).tobytes())
            self._file.flush()
        except OSError as error:
            need = 4 * self._vocabulary * self.passage.scored
            raise StorageError(
                f"{tempfile.gettempdir()}: the baseline's predictions cannot be written: {error.strerror or error}. "
                f"They take {need / 1e6:.0f} MB: make room there, or set TMPDIR to another directory."
            ) from error

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

    def __enter__(self) -> Baseline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def measure(engine: Engine, baseline: Baseline, cache: Tables, *, compresses: bool) -> PassageRun:
    """Score a cache recipe (and the engine's weights) against a baseline of the same process and run.

    compresses: whether the recipe claims to compress the cache. Then every scored step must have read
    something compressed; raises MeasurementError where one did not, and likewise where a prediction is not a
    number.
    """
    passage = baseline.passage
    timer, scores = _Timer(passage), TokenScores()
    rows = baseline.rows()
    for step in _steps(engine, passage, cache, timer):
        if compresses and not (step.evidence and step.evidence.compressed):
            raise MeasurementError(
                f"scored token {step.index - passage.timed} read no compressed segment under {list(cache)}: the recipe "
                f"keeps all of a prompt of {len(passage.prompt)} tokens as it is, so there is nothing to score. "
                "Use a longer prefix, or a smaller budget in the recipe."
            )
        assert step.logits is not None, "the run asked for logits"
        scores.add(next(rows), step.logits, passage.answer[step.index])
    return timer.run(scores.quality())


def _steps(engine: Engine, passage: Passage, cache: Tables, timer: _Timer) -> Iterator[ForcedStep]:
    """The scored steps, each inspected. Those before are timed with nothing done between them: work there would push
    weights out of the processor's caches and let the native pool fall asleep.
    """
    inspect = range(passage.first, len(passage.answer))
    for step in force(engine, passage.prompt, passage.answer, cache, logits=True, inspect=inspect):
        timer.add(step)
        if step.index >= passage.first:
            yield step


def log_probabilities(logits: Floats) -> npt.NDArray[np.float64]:
    """log softmax of logits [vocabulary], in fp64."""
    exact = logits.astype(np.float64)
    exact -= exact.max()
    shifted: npt.NDArray[np.float64] = exact - np.log(np.exp(exact).sum())
    return shifted


class TokenScores:
    """Of every scored token: KL(baseline ‖ this) in nats, whether both have the same first choice, whether each has the
    token that came, and the negative log-likelihood of that.
    """

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.same: list[bool] = []
        self.right: list[bool] = []
        self.baseline_right: list[bool] = []
        self.nll: list[float] = []

    def add(self, reference: Floats, logits: Floats, target: int) -> None:
        """One more. reference, logits: [vocabulary]. Raises MeasurementError where a prediction is not a number."""
        p, q = log_probabilities(reference), log_probabilities(logits)
        kl = float((np.exp(p) * (p - q)).sum())
        if not math.isfinite(kl):
            raise MeasurementError(f"the prediction of scored token {len(self.kl)} is not a number")
        best, baseline_best = int(logits.argmax()), int(reference.argmax())
        self.kl.append(max(0.0, kl))
        self.same.append(best == baseline_best)
        self.right.append(best == target)
        self.baseline_right.append(baseline_best == target)
        self.nll.append(-float(q[target]))

    def quality(self) -> Quality:
        """The means, with their intervals."""
        return Quality(
            kl=mean_interval(self.kl),
            top1=mean_interval(self.same),
            recovery=ratio_interval(self.right, self.baseline_right),
            nll=statistics.fmean(self.nll),
            tokens=len(self.kl),
        )


class _Timer:
    def __init__(self, passage: Passage) -> None:
        self.passage = passage
        self.steps: list[float] = []
        self.prefill = 0.0
        self.cache_bytes = 0
        self.held = 0

    def add(self, step: ForcedStep) -> None:
        self.held = max(self.held, step.held)  # a sequence gives its memory back with its last token
        if step.index == 0:
            self.prefill = step.seconds
            return
        self.steps.append(step.seconds)
        self.cache_bytes = step.evidence.nbytes if step.evidence else self.cache_bytes

    def run(self, quality: Quality | None = None) -> PassageRun:
        timed = self.passage.timed
        seconds = statistics.fmean(self.steps[:timed]) if timed else statistics.median(self.steps)
        return PassageRun(len(self.passage.prompt) / self.prefill, 1 / seconds, self.cache_bytes, self.held, quality)
