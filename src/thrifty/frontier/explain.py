"""Why the winner won, what the next step up would cost, and what was missing where nothing could be chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thrifty.frontier.choice import RECOVERY_TIE, TIE, milliseconds
from thrifty.frontier.measurement import TASKS, Measurement
from thrifty.storage.budget import format_size

if TYPE_CHECKING:
    from thrifty.frontier.fit import Fit


@dataclass(frozen=True)
class NextStep:
    """The cheapest recipe outside the bounds that beats the winner. more_bytes, more_seconds: what it asks for beyond
    the winner's, of a decode step by the roofline. kl, winner_kl: of the same short measurement, nats.
    """

    recipe: str
    need_peak: int
    more_bytes: int
    more_seconds: float
    kl: float
    winner_kl: float

    @property
    def gain(self) -> str:
        """What it would bring, and what it would take."""
        return (
            f"KL {self.kl:.4f} instead of {self.winner_kl:.4f} nats, for {format_size(self.more_bytes)} "
            f"{'more' if self.more_bytes >= 0 else '(less)'} and {self.more_seconds * 1e3:+.2f} ms a token"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "recipe": self.recipe,
            "need_peak_bytes": self.need_peak,
            "gain": self.gain,
            "more_bytes": self.more_bytes,
            "more_ms": round(self.more_seconds * 1e3, 4),
            "kl": self.kl,
            "winner_kl": self.winner_kl,
        }


def next_step(fit: Fit) -> NextStep | None:
    """See NextStep; None where the search looked at nothing outside the bounds that is better, or has no winner."""
    best = fit.best
    if best is None:
        return None
    held = fit.row(best.candidate, fit.rungs[0].index)
    if held is None:
        return None
    outside = [row for row in fit.measured if row.candidate.servable and not row.eligible]
    better = []
    for row in outside:
        same = fit.row(row.candidate, held.rung)
        if same is not None and same.kl < held.kl - TIE:
            better.append(same)
    if not better:
        return None
    cheapest = min(better, key=lambda row: (row.need.peak, row.predicted or 0.0))
    return NextStep(
        cheapest.candidate.label,
        cheapest.need.peak,
        cheapest.need.peak - best.need.peak,
        (cheapest.predicted or 0.0) - (best.predicted or 0.0),
        cheapest.kl,
        held.kl,
    )


def why(fit: Fit) -> list[str]:
    """Sentences about the winner; empty where there is none."""
    best = fit.best
    if best is None:
        return []
    sentences = [_searched(fit), _bytes(fit, best), _against_rivals(fit, best), _speed(fit, best), *_reading(fit, best)]
    undefined = fit.exam.undefined(fit.base) if best.stage == TASKS else []
    if undefined:
        sentences.append(
            f"The uncompressed model scores nothing at {', '.join(undefined)}: recovery is undefined there, and "
            "nothing was chosen by it."
        )
    unreached = _unreached(fit)
    if unreached:
        sentences.append(unreached)
    step = next_step(fit)
    if step is not None:
        sentences.append(f"The next step up is {step.recipe}, which needs {format_size(step.need_peak)}: {step.gain}.")
    return sentences


def why_nothing(fit: Fit) -> str:
    """What kept every measured recipe from being chosen, by how much, and what would do."""
    rows = [row for row in fit.measured if row.candidate.servable]
    fitting = [row for row in rows if row.fits]
    question = fit.question
    if not fitting:
        return _none_measured(fit)
    quick = [row for row in fitting if row.quick]
    if not quick:
        assert question.latency is not None
        fastest = min(fitting, key=lambda row: row.step or 0.0)
        step = fastest.step or 0.0
        return (
            f"no recipe that fits {format_size(question.memory)} decodes within {milliseconds(question.latency)}: the "
            f"fastest, {fastest.candidate.label}, took {milliseconds(step)}, {milliseconds(step - question.latency)} "
            f"more. It would do with --latency {milliseconds(step, 1.02)}"
        )
    return _short_of_recovery(fit, [row for row in quick if row.rung == max(other.rung for other in quick)])


def _unreached(fit: Fit) -> str:
    """What was not measured, and why; empty where all was."""
    if not fit.finished:
        return "The search was stopped before its end; the same command goes on from there."
    if fit.unreached:
        return f"The time did not reach {fit.unreached} measurements; --minutes gives more."
    return ""


def _none_measured(fit: Fit) -> str:
    if not fit.finished:
        return "the search was stopped before a recipe that fits was measured; the same command goes on from there"
    fitting = sum(
        prediction.candidate.servable and fit.fits(prediction) and fit.quick(prediction)
        for prediction in fit.predictions.values()
    )
    minutes = fit.question.minutes
    if minutes is None or not fit.unreached:
        return f"none of {fitting} recipes that fit by their predictions could be measured"
    more = math.ceil(2 * minutes)
    return (
        f"{minutes:g} minutes were too short to measure any of {fitting} recipes that fit by their predictions; give "
        f"it more, such as --minutes {more}"
    )


def _short_of_recovery(fit: Fit, rows: list[Measurement]) -> str:
    least = fit.question.min_recovery
    known = [row for row in rows if row.recovery is not None]
    if not known and any(row.stage == TASKS for row in rows):
        nothing = ", ".join([*fit.exam.undefined(fit.base), "the text"])
        return (
            f"recovery is undefined, so nothing is known to reach {least}: the uncompressed model scores nothing at "
            f"{nothing}. Leave --min-recovery out, or name other --tasks"
        )
    if not known:
        return f"no recovery was measured yet, so nothing is known to reach {least}; give it more --minutes"
    closest = max(known, key=lambda row: row.recovery.value if row.recovery else 0.0)
    assert closest.recovery is not None and least is not None
    recovery = closest.recovery
    message = (
        f"no recipe within the bounds reaches a recovery of {least:g}: the closest, {closest.candidate.label}, reaches "
        f"{recovery.value:.3f} (95% {recovery.low:.3f} to {recovery.high:.3f}), {least - recovery.value:.3f} less. "
        f"It would do with --min-recovery {int(recovery.value * 1000) / 1000:g}"
    )
    outside = [
        prediction
        for prediction in fit.predictions.values()
        if prediction.candidate.servable and not fit.fits(prediction)
    ]
    if outside:
        cheapest = min(outside, key=lambda prediction: prediction.need.peak)
        message += f"; from --memory {-(-cheapest.need.peak // 10**6)}MB on more recipes fit"
    base = fit.predictions[fit.base.key]
    return message + f"; the uncompressed model takes {-(-base.need.peak // 10**6)}MB"


def _searched(fit: Fit) -> str:
    dropped, rows = fit.dropped(), [row for row in fit.measured if row.candidate.servable]
    reasons = []
    if dropped["memory"]:
        reasons.append(f"{dropped['memory']} need more than {format_size(fit.question.memory)}")
    if dropped["latency"]:
        assert fit.question.latency is not None
        limit = milliseconds(fit.question.latency)
        reasons.append(f"{dropped['latency']} cannot decode within {limit} at this machine's bandwidth")
    if dropped["weights"]:
        reasons.append(f"{dropped['weights']} round weights anew without saving a byte")
    if dropped["cache"]:
        reasons.append(f"{dropped['cache']} may keep the whole cache, so that no byte is saved for sure")
    if dropped["slow"]:
        reasons.append(f"{dropped['slow']} have weights that take too long to make for {fit.question.minutes:g} min")
    if dropped["gentler"]:
        reasons.append(f"{dropped['gentler']} do all that another one that fits does, and more")
    last = sum(row.rung == fit.rungs[-1].index for row in rows)
    said = (
        f"Of {len(fit.candidates)} recipes {' and '.join(reasons)}; " if reasons else f"{len(fit.candidates)} recipes: "
    )
    return f"{said}{len(rows)} {'was' if len(rows) == 1 else 'were'} measured, {last} of them to the end."


def _bytes(fit: Fit, best: Measurement) -> str:
    need, base = best.need, fit.predictions[fit.base.key].need
    said = (
        f"{best.candidate.label} needs {format_size(need.peak)} of {format_size(fit.question.memory)} "
        f"({format_size(need.weights)} weights, {format_size(need.cache_peak)} cache, {format_size(need.workspace)} "
        "workspace)"
    )
    if best.candidate.key == fit.base.key:
        return f"{said}: the uncompressed model itself fits."
    return f"{said}; the uncompressed model needs {format_size(base.peak)}."


def _against_rivals(fit: Fit, best: Measurement) -> str:
    rivals = [row for row in fit.measured if row.eligible and row.rung == best.rung and row is not best]
    mine = best.recovery
    told = f"KL {best.kl:.4f} nats" if mine is None else _recovered(best)
    if not rivals:
        return f"It is the only one that fits and was measured as far: {told}."
    if mine is None:
        second = min(rivals, key=lambda row: row.kl)
        rest = f"next is {second.candidate.label} with {second.kl:.4f}"
        return f"Its divergence is the least measured so far: {told}; {rest}."
    second = max(rivals, key=lambda row: (min(1.0, row.recovery.value) if row.recovery else 0.0, -row.kl))
    theirs = second.recovery
    if theirs is None or min(1.0, theirs.value) < min(1.0, mine.value) - RECOVERY_TIE:
        return f"Its recovery is the highest: {told}; next is {second.candidate.label}: {_recovered(second)}."
    reason = "its divergence is less" if best.kl < second.kl - TIE else "it is the faster of the two"
    if second.kl < best.kl - TIE:
        reason = "its recovery is higher than that of all recipes that diverge less"
    return f"{told}; {second.candidate.label} recovers as much ({_recovered(second)}), but {reason}."


def _recovered(row: Measurement) -> str:
    recovery = row.recovery
    if recovery is None:
        return f"recovery undefined, KL {row.kl:.4f} nats"
    return f"recovery {recovery.value:.3f} (95% {recovery.low:.3f} to {recovery.high:.3f}), KL {row.kl:.4f} nats"


def _rates(best: Measurement, base: Measurement | None) -> str:
    """How fast a recipe decodes beside the uncompressed model: measured, or by its bytes where other work disturbed."""
    rows = [row for row in (best, base) if row is not None]
    if all(row.quiet for row in rows):
        said = f"It decodes {best.decode_rate:.0f} tokens a second after {best.prompt} tokens"
        return said if base is None else f"{said}, the uncompressed model {base.decode_rate:.0f}"
    others = max(row.others for row in rows)
    said = (
        f"Other work took {others:.0%} of the processors, so no speed was measured; by the bytes it reads, it decodes"
    )
    said = f"{said} at most {best.rate_from_bytes:.0f} tokens a second at the full context"
    return said if base is None else f"{said}, the uncompressed model at most {base.rate_from_bytes:.0f}"


def _speed(fit: Fit, best: Measurement) -> str:
    base = fit.row(fit.base, best.rung)
    rival = base if base is not None and base is not best else None
    said = _rates(best, rival)
    limit = fit.question.latency
    if limit is not None and best.step is not None:
        said += f"; a step at the full context takes {milliseconds(best.step)} of {milliseconds(limit)}"
    return said + "."


def _reading(fit: Fit, best: Measurement) -> list[str]:
    """What the winner takes to read a prompt, where it must look at it more than once."""
    reads = fit.predictions[best.candidate.key].prefills
    if reads == 1:
        return []
    return [f"It reads a prompt in about {reads:.1f} times the uncompressed model's time: it looks at it again."]
