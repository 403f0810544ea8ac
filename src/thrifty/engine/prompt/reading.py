"""The prompt programs of one request: which of a recipe's programs apply to its prompt, what they take, their run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thrifty.engine.drafting.drafting import ReadingBytes
from thrifty.engine.prompt.program import Drafts, Forward, PromptProgram, Read, Work
from thrifty.errors import PromptError, RecipeError

if TYPE_CHECKING:
    from thrifty.cache.model_info import ModelInfo
    from thrifty.cache.policy import CachePolicy
    from thrifty.engine.request import Request


@dataclass(frozen=True)
class PromptReading:
    """Programs in their order, each on what the one before it left. lengths: the tokens that each is given, at most."""

    programs: tuple[PromptProgram, ...]
    lengths: tuple[int, ...]
    drafts: Drafts
    model: ModelInfo

    @classmethod
    def of(
        cls, programs: Sequence[PromptProgram], drafts: Drafts, model: ModelInfo, prompt: int
    ) -> PromptReading | None:
        """For a prompt of so many tokens; None where no program applies to it. Raises PromptError for a prompt that
        one of them cannot look at.
        """
        applying: list[PromptProgram] = []
        lengths: list[int] = []
        for program in programs:
            if program.applies(prompt):
                program.check_prompt(prompt, {name: drafts[name] for name in program.models})
                applying.append(program)
                lengths.append(prompt)
                prompt = program.rows(prompt)
        return cls(tuple(applying), tuple(lengths), drafts, model) if applying else None

    @property
    def rows(self) -> int:
        """The most rows that are read in the end."""
        return self.programs[-1].rows(self.lengths[-1])

    @property
    def policies(self) -> tuple[CachePolicy, ...]:
        """What acts on the cache before the request's own policies."""
        policy = self.programs[-1].policy(self.lengths[-1])
        return () if policy is None else (policy,)

    @property
    def key(self) -> str:
        """What tells the pages of the read tokens apart from those of a prompt that is read whole; "" where nothing has
        to: the tokens stand where they did.
        """
        return repr(self.programs) if any(program.traits.drops_tokens for program in self.programs) else ""

    def nbytes(self, own_pass: Callable[[CachePolicy, int], int]) -> ReadingBytes:
        """What the programs take, one after the other. own_pass: (policy, tokens) → the most bytes of a pass of the
        request's own model.
        """
        own, drafts = 0, 0
        for program, length in zip(self.programs, self.lengths, strict=True):
            observer = program.observer(self.model)
            own = own if observer is None else max(own, own_pass(observer, length))
            drafts = max(drafts, program.draft_bytes(length, self.drafts))
        return ReadingBytes(own, drafts)

    def run(self, prompt: Sequence[int], forward: Forward, answer: int) -> Work[Read]:
        """Let each look at what the former left of the prompt. answer: the most tokens of the answer."""
        read = Read(tuple(prompt), len(prompt))
        for program in self.programs:
            read = yield from program.run(read.tokens, self.model, forward, answer)
        return read


def check_programs(programs: Sequence[PromptProgram]) -> None:
    """Raise RecipeError where the order of a recipe's programs cannot work."""
    for program, following in itertools.pairwise(programs):
        if not program.traits.drops_tokens:
            raise RecipeError(
                f"prompt technique '{program.name}' decides what the cache keeps, but '{following.name}' behind it "
                f"changes which tokens are read: put '{program.name}' last, and use it once"
            )


def check_policies(programs: Sequence[PromptProgram], policies: Sequence[CachePolicy]) -> None:
    """Raise RecipeError for a policy that watches the attention of a prompt whose slots a program has chosen."""
    choosing = next((program for program in programs if not program.traits.drops_tokens), None)
    if choosing is None:
        return
    for policy in policies:
        if policy.watches_prompt or policy.causal:
            raise RecipeError(
                f"cache technique '{policy.name}' decides by the prompt what stays, and '{choosing.name}' has decided "
                "that: keep one of them"
            )


def check_request(request: Request, programs: Sequence[PromptProgram]) -> None:
    """Raise PromptError for a request whose prompt no program can change."""
    if not programs:
        return
    name = programs[0].name
    if request.media is not None:
        raise PromptError(
            f"{name} chooses among a prompt's tokens, and this prompt has embedded rows (images, sound), which are "
            f"none: leave {name} out of the recipe (programs=[]), or send text alone"
        )
    if request.session is not None:
        raise PromptError(
            f"a session goes on from a cache of all its tokens, which {name} does not leave: leave the session out, or "
            f"{name} (programs=[])"
        )
