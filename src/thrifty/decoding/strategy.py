"""The base of decoding strategies: what they see of a step's sequences, and what they hand back.

In one step a sequence runs `1 + len(draft.tokens)` rows: its last committed token, then the draft, a line or a tree.
Row 0's logits are for the token behind the last committed one, row i + 1's for the token behind the draft's token i.
Uncommitted rows live in a scratch tail; sealing, policies, statistics and the prefix tree act on commit only, so what
was rejected leaves no trace.

A strategy is the technique with its options, and never changes. What changes with a sequence is its drafter's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

from thrifty.decoding.draft import COMMITTED, NO_DRAFT, Accepted, Draft
from thrifty.decoding.kept import Keeps
from thrifty.decoding.sampling import Choice, Sampler
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.scores import Scores, SequenceScores
from thrifty.decoding.services import DraftModel, ModelFacts, Services


class Continuation(Protocol):
    """What a strategy may see of a sequence. It changes none of it."""

    @property
    def tokens(self) -> Sequence[int]:
        """Prompt and committed answer."""
        ...

    @property
    def sampler(self) -> Sampler:
        """The sample's own random stream and penalties."""
        ...


class Drafter:
    """What a strategy knows of one sequence. This one drafts nothing, and takes of any draft what the sampler chooses
    itself: then the answer is that of plain decoding, greedy or sampled.
    """

    def catch_up(self, tokens: Sequence[int]) -> bool:
        """Do one piece of what is to be computed of the committed tokens before a draft can be proposed; whether
        `propose` may be asked now. Where not, the sequence sits this step out, and the others decode.
        """
        return True

    def propose(self, continuation: Continuation) -> Draft:
        """A draft behind the committed tokens. May be called again before anything is accepted."""
        return NO_DRAFT

    def accept(self, continuation: Continuation, draft: Draft, scores: Scores) -> Accepted:
        """What to commit. draft: what was proposed, or less of it. scores: row 0 is the last committed token, row i + 1
        the draft's token i. May be called again: it changes nothing.
        """
        return follow(continuation.sampler, draft, scores)

    def go_on(self, unfinished: object) -> None:
        """The step committed nothing: what `accept` gave as `Accepted.unfinished`."""

    def committed(self, tokens: Sequence[int]) -> None:
        """These tokens are committed: what was accepted, the last choice included. Told where `rows` is above 1."""

    def close(self) -> None:
        """Free what it holds: the sequence ends, or waits for memory and opens another drafter later."""


class Asked(NamedTuple):
    """A sequence that a draft is asked for."""

    continuation: Continuation
    drafter: Drafter


class Judged(NamedTuple):
    """A sequence whose draft has run. first_row: where its rows begin in the step's scores."""

    continuation: Continuation
    drafter: Drafter
    draft: Draft
    first_row: int


class DecodingStrategy:
    """Base of the techniques of stage "decoding".

    A step asks the strategy once for all its sequences, so that drafts can be computed together. The base asks each
    drafter. Where a call fails for several sequences it is made again for each alone: who then fails ends alone.
    """

    fills_masks: ClassVar[bool] = False
    """Whether it decodes masked-diffusion models, and no others."""

    @property
    def rows(self) -> int:
        """The most rows that a sequence runs in one step, at most 64: one more than the longest draft has tokens."""
        return 1

    @property
    def models(self) -> tuple[str, ...]:
        """Names or paths of the models that draft."""
        return ()

    def taps(self, facts: ModelFacts) -> tuple[int, ...]:
        """Layers of the model whose output `accept` reads, as `Scores.taps`."""
        return ()

    def check(self, facts: ModelFacts, models: Mapping[str, DraftModel]) -> None:
        """Raise RecipeError where the strategy cannot draft for a model of these facts with these models."""

    def keeps(self, facts: ModelFacts) -> Keeps | None:
        """What the engine is to keep from one answer to the next, for this strategy's requests of one salt: it comes
        as `Services.kept`, is counted, and goes where others need its memory.
        """
        return None

    def sampling(self, asked: SamplingParameters) -> SamplingParameters:
        """How the tokens of a request are chosen that asks for this."""
        return asked

    def open(self, services: Services) -> Drafter:
        """The drafter of one sequence that begins to decode."""
        return Drafter()

    def propose(self, asked: Sequence[Asked]) -> list[Draft]:
        """One draft a sequence. Called before the step's rows run."""
        return [sequence.drafter.propose(sequence.continuation) for sequence in asked]

    def accept(self, judged: Sequence[Judged], scores: Scores) -> list[Accepted]:
        """What to commit, one a sequence. May be called again for a part of them: it changes nothing."""
        return [
            sequence.drafter.accept(sequence.continuation, sequence.draft, SequenceScores(scores, sequence.first_row))
            for sequence in judged
        ]


def follow(sampler: Sampler, draft: Draft, scores: Scores) -> Accepted:
    """The sampler's own choices, as long as the draft has them: every token is that of plain decoding."""
    path: list[int] = []
    choices: list[Choice] = []
    last: int | None = COMMITTED
    while last is not None:
        drafted = [draft.tokens[index] for index in path]
        choices.append(choose(sampler, scores, last + 1, drafted))
        last = draft.child(last, choices[-1].token)
        if last is not None:
            path.append(last)
    return Accepted(tuple(choices), tuple(path))


def choose(sampler: Sampler, scores: Scores, row: int, drafted: Sequence[int] = ()) -> Choice:
    """The sampler's token for a row; by the step's own arg-max where nothing else of the logits is needed.

    drafted: the uncommitted tokens that precede it. Raises PromptError where no token can be chosen.
    """
    if not sampler.needs_logits:
        best = scores.best(row)
        if best >= 0 and best not in sampler.absent.ids:
            return Choice(best)
    if drafted and (sampler.parameters.penalised or sampler.constraint is not None):
        return sampler.following(drafted).choose(scores.logits(row))
    return sampler.choose(scores.logits(row), len(drafted))
