"""Questions of reasoning-gym, which makes them from a seed and grades the answers, after solved examples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from thrifty.errors import PromptError, nearest
from thrifty.evaluation.halves import half_of
from thrifty.evaluation.tasks._answering import Answering
from thrifty.evaluation.tasks._framing import SEPARATOR, Frame
from thrifty.evaluation.tasks.task import Item, TaskTurn

if TYPE_CHECKING:
    from types import ModuleType

LEAD = "Answer:"
LARGE = 1000  # questions of one seed: more than any context holds


@dataclass(frozen=True, kw_only=True)
class Gym(Answering):
    """Solved examples of one kind fill the compressed context; the question comes after it. All are of one half."""

    limit: ClassVar[int] = 24

    def source(self) -> tuple[str, Mapping[str, Any]]:
        """The data set's name and its settings."""
        raise NotImplementedError

    def items(self, tokenizer: Any, count: int, seed: int) -> list[Item]:
        frame = Frame.plain(tokenizer)  # small models take solved examples up better without a template
        return [self._item(frame, seed, number) for number in range(count)]

    def grade(self, item: Item, turn: TaskTurn, answer: str) -> float:
        """By the data set's own rule, which may give a part of the score."""
        name, _ = self.source()
        score = library().get_score_answer_fn(name)
        return min(1.0, max(0.0, float(score(answer=answer.strip().removesuffix("."), entry=dict(item.material)))))

    def _item(self, frame: Frame, seed: int, number: int) -> Item:
        name, settings = self.source()
        own_seed = self.chance(seed, number).getrandbits(31)
        made = questions(name, own_seed, settings)
        examples = (entry for entry in made if half_of(str(entry["question"])) == self.half)
        asked = next(examples, None)
        if asked is None:
            raise PromptError(f"of the questions of '{self.label}' none belongs to the half '{self.half}'")
        shown = self._examples(frame, asked, examples)
        prompt, fed = frame.first(SEPARATOR.join(shown), str(asked["question"]), LEAD, "agnostic")
        turns = (TaskTurn(fed, (str(asked["answer"]),)),)
        return self.item(number, prompt, turns, self.room(prompt, turns), _plain(asked))

    def _examples(self, frame: Frame, asked: Any, examples: Iterator[Any]) -> list[str]:
        """As many solved ones as fit, the asked one not among them."""
        room = self.length - len(frame.before)
        shown: list[str] = []
        for example in examples:
            if example["question"] == asked["question"]:
                continue
            shown.append(f"{example['question']}\n{LEAD} {example['answer']}")
            if len(frame.tokens(SEPARATOR.join(shown))) > room:
                shown.pop()
                break
        if not shown:
            raise PromptError(f"no solved example fits {self.length} tokens for '{self.label}'; use a larger --length")
        return shown


def questions(name: str, seed: int, settings: Mapping[str, Any]) -> Iterator[Any]:
    """Questions of a data set with their answers. Raises TaskError for an unknown name or a setting it refuses."""
    from thrifty.evaluation.tasks import TaskError

    gym = library()
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise TaskError(f"reasoning-gym has no data set '{name}'. {nearest(name, DATASETS)}")
    try:
        made = gym.create_dataset(name, size=LARGE, seed=seed, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise TaskError(f"reasoning-gym refuses '{name}' with {dict(settings)}: {error}") from error
    first = made[0]
    if first["answer"] is None:
        raise TaskError(
            f"the questions of reasoning-gym's '{name}' have no single right answer; choose another data set"
        )
    return (made[place] for place in range(LARGE))


def library() -> ModuleType:
    """The package reasoning-gym. Raises TaskError naming the extra where it is missing."""
    from thrifty.evaluation.tasks import TaskError

    try:
        import reasoning_gym
    except ImportError as error:
        raise TaskError("this task needs reasoning-gym: pip install 'thrifty-engine[eval]'") from error
    return reasoning_gym


def _plain(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry as JSON holds it."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(entry), default=str))
    return plain
