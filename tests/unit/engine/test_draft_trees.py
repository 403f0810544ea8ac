"""Trees of drafts: random ones, around the true answer, give what plain decoding gives, whatever the cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from tests.tiny import VOCABULARY, text_tokens, tiny_model

from thrifty.decoding.draft import Accepted, Draft
from thrifty.decoding.sampling import Choice
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.decoding.scores import Scores
from thrifty.decoding.services import ModelFacts, Services
from thrifty.decoding.strategy import Continuation, DecodingStrategy, Drafter
from thrifty.engine.request import Request
from thrifty.errors import ThriftyError
from thrifty.models.model import Model

LENGTH = 90
PROMPT = 100
CACHES: list[list[dict[str, Any]]] = [
    [],
    [{"technique": "kivi", "bits": 2}],
    [{"technique": "snapkv", "keep": 0.5}],
    [{"technique": "streaming", "window": 60}],
    [{"technique": "h2o", "capacity": 60}],
]


def random_tree(generator: np.random.Generator, answer: Sequence[int], size: int = 12) -> Draft:
    """A tree with the first tokens of the answer on one of its paths, at random places among other branches."""
    tokens: list[int] = []
    parents: list[int] = []
    true, hinted = -1, 0
    while len(tokens) < size:
        if hinted < len(answer) and generator.random() < 0.5:
            branch, true_next = (true, answer[hinted]), True
        else:
            branch, true_next = (int(generator.integers(-1, len(tokens))), int(generator.integers(VOCABULARY))), False
        if branch in zip(parents, tokens, strict=True):
            continue
        parents.append(branch[0])
        tokens.append(branch[1])
        if true_next:
            true, hinted = len(tokens) - 1, hinted + 1
    return Draft(tuple(tokens), tuple(parents))


class TreeDrafter(Drafter):
    """Its trees depend on the place in the answer alone."""

    def __init__(self, prompt: int, answer: tuple[int, ...]) -> None:
        self.prompt, self.answer, self.longest = prompt, answer, 0
        self.told: list[int] = []
        self.closed = 0

    def propose(self, continuation: Continuation) -> Draft:
        done = len(continuation.tokens) - self.prompt
        return random_tree(np.random.default_rng(done), self.answer[done:])

    def committed(self, tokens: Sequence[int]) -> None:
        self.told += tokens
        self.longest = max(self.longest, len(tokens))

    def close(self) -> None:
        self.closed += 1


@dataclass(frozen=True)
class Trees(DecodingStrategy):
    """Random trees around known answers, by the prompt's length."""

    answers: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    opened: tuple[list[TreeDrafter]] = ([],)

    def __hash__(self) -> int:
        return hash(self.answers)

    @property
    def rows(self) -> int:
        return 13

    def open(self, services: Services) -> Drafter:
        self.opened[0].append(TreeDrafter(PROMPT, ()))
        return self.opened[0][-1]

    def propose(self, asked: Any) -> list[Draft]:
        for ask in asked:
            place = self.prompts.index(ask.continuation.tokens[0])
            ask.drafter.answer = self.answers[place]
        return super().propose(asked)


def prompts_of(count: int) -> list[list[int]]:
    """Prompts of one length whose first tokens differ."""
    return [[place, *text_tokens(PROMPT - 1, place)] for place in range(count)]


def answers_of(engine: Any, prompts: Sequence[Sequence[int]], options: dict[str, Any]) -> list[list[int]]:
    handles = [engine.submit(Request(prompt=prompt, **options)) for prompt in prompts]
    return [handle.result().token_ids for handle in handles]


@pytest.fixture(scope="session")
def windowed_plain() -> Model:
    """Local and global layers in turn, fp32."""
    return tiny_model(windows=(100, None, 100, None), seed=1)


def told(value: Any) -> str | None:
    """A cache by its technique."""
    return (value[0]["technique"] if value else "full") if isinstance(value, list) else None


# Every cache greedily; sampled, which changes what is accepted and not what is held, the full one and one that evicts.
CASES = [(cache, 0.0) for cache in CACHES] + [(cache, 1.0) for cache in (CACHES[0], CACHES[-1])]
PATHS = [True, pytest.param(False, marks=pytest.mark.long)]
"""Native, and the reference, which takes rows one by one and seconds for a tree."""
KINDS = [("plain", True), pytest.param("plain", False, marks=pytest.mark.long), ("windowed_plain", True)]


@pytest.mark.parametrize(("kind", "native"), KINDS)
@pytest.mark.parametrize(("cache", "temperature"), CASES, ids=told)
def test_trees_change_the_steps_not_the_answers(
    make_engine: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
    kind: str, native: bool, cache: list[dict[str, Any]], temperature: float,
) -> None:  # fmt: skip
    """Numbers are fp32: what else a tree changes is the order in which a row's slots are added up."""
    model = request.getfixturevalue(kind)
    sampling = SamplingParameters(max_tokens=LENGTH, ignore_eos=True, temperature=temperature, seed=4)
    options: dict[str, Any] = {"sampling": sampling, "cache": cache}
    prompts = prompts_of(2 if native else 1)  # the reference takes row after row, whose ever it is
    plain = answers_of(make_engine(model, native=native), prompts, options)
    engine = make_engine(model, native=native)
    strategy = Trees(tuple(map(tuple, plain)), tuple(prompt[0] for prompt in prompts), ([],))
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: strategy)
    assert answers_of(engine, prompts, options) == plain
    drafters = strategy.opened[0]
    assert [drafter.closed for drafter in drafters] == [1] * len(prompts)
    assert all(drafter.longest >= 4 for drafter in drafters), "deep paths were accepted"
    assert sorted(drafter.told for drafter in drafters) == sorted(answer[1:] for answer in plain)


def scored(engine: Any, handles: Sequence[Any]) -> list[tuple[list[int], Any]]:
    """Tokens and logits [tokens, vocabulary] of each answer."""
    events: dict[str, list[Any]] = {handle.identity: [] for handle in handles}
    while engine.busy:
        for event in engine.step():
            events[event.request].append(event)
    return [([event.token for event in own], np.stack([event.logits for event in own])) for own in events.values()]


@pytest.mark.parametrize("cache", CACHES, ids=lambda cache: cache[0]["technique"] if cache else "full")
def test_trees_of_packed_models_differ_by_rounding_alone(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, cache: list[dict[str, Any]]
) -> None:
    """Activations become int8: another order of additions may round one of them otherwise, and decide between tokens
    that are as good as alike."""
    prompts, sampling = prompts_of(2), SamplingParameters(max_tokens=LENGTH, ignore_eos=True)
    requests = [Request(prompt=prompt, sampling=sampling, cache=cache, logits=True) for prompt in prompts]
    engine = make_engine(packed)
    plain = scored(engine, [engine.submit(request) for request in requests])
    engine = make_engine(packed)
    strategy = Trees(tuple(tuple(tokens) for tokens, _ in plain), tuple(prompt[0] for prompt in prompts), ([],))
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: strategy)
    drafted = scored(
        engine,
        [engine.submit(Request(**{**vars(request), "identity": str(at)})) for at, request in enumerate(requests)],
    )
    for (tokens, logits), (others, other_logits) in zip(plain, drafted, strict=True):
        same = next((place for place in range(LENGTH) if tokens[place] != others[place]), LENGTH)
        assert same > 20
        assert np.abs(logits[:same] - other_logits[:same]).max() < 0.1 * logits.std()
        if same < LENGTH:
            assert logits[same].max() - logits[same][others[same]] < 0.1 * logits.std()
    assert all(drafter.longest >= 4 for drafter in strategy.opened[0])


@pytest.mark.parametrize("native", PATHS)
def test_a_draft_beside_plain_sequences_is_as_alone(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    """The logits of drafted rows and of a neighbour without drafts have the same bits in a batch."""
    sampling = SamplingParameters(max_tokens=30, ignore_eos=True)
    prompts = prompts_of(2)
    options: dict[str, Any] = {"sampling": sampling, "logits": True}
    plain = answers_of(make_engine(packed, native=native), prompts, options)
    logits, neighbours = [], []
    for together in (True, False):
        engine = make_engine(packed, native=native)
        strategy = Trees(tuple(map(tuple, plain)), (prompts[0][0],), ([],))
        with monkeypatch.context() as patch:
            patch.setattr(engine.intake, "_strategy", lambda _, own=strategy: own)
            handles = [engine.submit(Request(prompt=prompts[0], **options))]
        if together:
            handles.append(engine.submit(Request(prompt=prompts[1], **options)))
        answers = scored(engine, handles)
        logits.append(answers[0][1])
        neighbours += answers[1:]
    assert np.array_equal(*logits)
    assert [tokens for tokens, _ in neighbours] == plain[1:]


class Line(Drafter):
    def __init__(self, drafts: Draft, accepted: Accepted | None = None) -> None:
        self.draft, self.accepted = drafts, accepted

    def propose(self, continuation: Continuation) -> Draft:
        return self.draft

    def accept(self, continuation: Continuation, draft: Draft, scores: Scores) -> Accepted:
        return self.accepted or super().accept(continuation, draft, scores)


@dataclass(frozen=True)
class Fixed(DecodingStrategy):
    """One draft, whatever comes."""

    draft: Draft
    most: int = 64
    accepted: Accepted | None = None

    @property
    def rows(self) -> int:
        return self.most

    def open(self, services: Services) -> Drafter:
        return Line(self.draft, self.accepted)


STAR = Draft(tuple(range(20)), (-1,) * 20)
WRONG = [
    (Fixed(STAR, 20), r"a draft of 20 tokens; a step of this strategy takes at most 19"),
    (Fixed(Draft(tuple(range(70))), 80), "takes at most 63"),
    (Fixed(Draft((1, 2)), 3, Accepted((Choice(1), Choice(2)), (1,))), "is no way through the draft"),
    (Fixed(Draft((1, 2)), 3, Accepted((Choice(1), Choice(2)))), "2 tokens were accepted with a path of 0"),
    (Fixed(Draft((1, 2)), 3, Accepted(())), "0 tokens were accepted"),
]


@pytest.mark.parametrize(("strategy", "message"), WRONG, ids=lambda value: str(value)[:20])
def test_a_wrong_draft_ends_its_own_request(
    packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, strategy: Fixed, message: str
) -> None:
    engine = make_engine(packed)
    sampling = SamplingParameters(max_tokens=9, ignore_eos=True)
    other = engine.submit(Request(prompt=text_tokens(20), sampling=sampling))
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: strategy)
    with pytest.raises(ThriftyError, match=message):
        engine.submit(Request(prompt=text_tokens(30), sampling=sampling)).result()
    assert len(other.result().token_ids) == 9


def test_a_tree_longer_than_a_window_is_refused(make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(windows=(16, None))
    engine = make_engine(model)
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: Fixed(STAR))
    with pytest.raises(ThriftyError, match="a tree of 21 rows is longer than the attention window of 16"):
        engine.submit(Request(prompt=text_tokens(30))).result()


def test_many_drafts_run_in_several_steps(packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than the plan takes at once."""
    sampling = SamplingParameters(max_tokens=8, ignore_eos=True)
    prompts = prompts_of(5)
    plain = answers_of(make_engine(packed), prompts, {"sampling": sampling})
    engine = make_engine(packed, chunk=128, batch=8)
    assert engine.runner.most_rows < 5 * 61
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: Fixed(Draft(tuple(range(60)), (-1,) * 60)))
    assert answers_of(engine, prompts, {"sampling": sampling}) == plain


def test_penalties_know_the_drafted_tokens(packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingParameters(max_tokens=40, ignore_eos=True, frequency_penalty=1.5, repetition_penalty=1.2)
    prompts = prompts_of(1)
    plain = answers_of(make_engine(packed), prompts, {"sampling": sampling})
    engine = make_engine(packed)
    strategy = Trees(tuple(map(tuple, plain)), (prompts[0][0],), ([],))
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: strategy)
    assert answers_of(engine, prompts, {"sampling": sampling}) == plain
    assert strategy.opened[0][0].longest >= 3


def test_forced_tokens_are_drafted_too(packed: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forced = text_tokens(40, 9)
    options: dict[str, Any] = {"forced": forced, "free": 10, "sampling": SamplingParameters(logprobs=1)}
    plain = answers_of(make_engine(packed), prompts_of(1), options)
    assert plain[0][:40] == forced
    engine = make_engine(packed)
    strategy = Trees((tuple(plain[0]),), (0,), ([],))
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: strategy)
    assert answers_of(engine, prompts_of(1), options) == plain


class Reader(TreeDrafter):
    """Looks at the hidden states that it asked for."""

    def __init__(self, layer: int) -> None:
        super().__init__(PROMPT, ())
        self.layer = layer
        self.seen: list[tuple[Any, Any]] = []

    def accept(self, continuation: Continuation, draft: Draft, scores: Scores) -> Accepted:
        accepted = super().accept(continuation, draft, scores)
        for row in (0, *(index + 1 for index in accepted.path)):
            self.seen.append((scores.taps[self.layer][row].copy(), scores.logits(row).copy()))
        return accepted


@dataclass(frozen=True)
class Tapping(Trees):
    """Trees that read the last layer's output."""

    def __hash__(self) -> int:
        return super().__hash__()

    def taps(self, facts: ModelFacts) -> tuple[int, ...]:
        return (facts.layers - 1,)

    def open(self, services: Services) -> Drafter:
        self.opened[0].append(Reader(services.facts.layers - 1))
        return self.opened[0][-1]


@pytest.mark.parametrize("native", PATHS)
def test_a_strategy_reads_the_hidden_states_that_it_asks_for(
    plain: Model, make_engine: Any, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    sampling = SamplingParameters(max_tokens=30, ignore_eos=True)
    prompts = prompts_of(2)
    answers = answers_of(make_engine(plain, native=native), prompts, {"sampling": sampling})
    engine = make_engine(plain, native=native)
    strategy = Tapping(tuple(map(tuple, answers)), tuple(prompt[0] for prompt in prompts), ([],))
    monkeypatch.setattr(engine.intake, "_strategy", lambda _: strategy)
    assert answers_of(engine, prompts, {"sampling": sampling}) == answers
    for drafter in strategy.opened[0]:
        assert isinstance(drafter, Reader) and len(drafter.seen) >= 29
        scores = engine.runner.logits(np.stack([state for state, _ in drafter.seen]))
        for row, (_, logits) in enumerate(drafter.seen):
            np.testing.assert_allclose(scores.logits(row), logits, atol=1e-4)
