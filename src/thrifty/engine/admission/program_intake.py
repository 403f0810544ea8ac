"""What the prompt programs of a request must pass before it is queued."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thrifty import registry
from thrifty.engine.drafting.drafting import Drafting
from thrifty.engine.prompt.reading import PromptReading, check_programs, check_request

if TYPE_CHECKING:
    from thrifty.decoding.services import ModelFacts
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.drafting.model import EngineDraftModel
    from thrifty.engine.prompt.program import PromptProgram
    from thrifty.engine.request import Request

Tables = Sequence[Mapping[str, Any]]
Models = Callable[[Sequence[str]], "Mapping[str, EngineDraftModel]"]
"""(names) → the models that draft, loaded. Raises RecipeError, BudgetError and what loading raises."""


class ProgramIntake:
    """Checks programs against the model, those that draft, and the prompt."""

    def __init__(self, tables: Tables, memory: EngineMemory, facts: Callable[[], ModelFacts]) -> None:
        """tables: of requests that bring none. facts: of the model, read when a program asks. Raises RecipeError."""
        self._tables, self._memory, self._facts = tables, memory, facts
        self.names = tuple(name for program in self.programs(None) for name in program.models)

    def programs(self, given: Tables | None) -> tuple[PromptProgram, ...]:
        """The programs of a recipe's tables, of the engine's own where there are none. Raises RecipeError."""
        programs = tuple(registry.build("prompt", table) for table in (self._tables if given is None else given))
        check_programs(programs)
        return programs

    def models(self, programs: Sequence[PromptProgram], models: Models) -> Mapping[str, EngineDraftModel]:
        """The models that draft for programs, which are checked with them."""
        drafts = models(tuple(dict.fromkeys(name for program in programs for name in program.models)))
        for program in programs:
            program.check(self._memory.cache.model, self._facts(), {name: drafts[name] for name in program.models})
        return drafts

    def reading(self, request: Request, drafting: Drafting, models: Models) -> tuple[PromptReading | None, Drafting]:
        """(what looks at the prompt before it is read, `drafting` with its bytes). Raises RecipeError and PromptError
        for what it cannot look at, and what `models` raises.
        """
        programs = self.programs(request.programs)
        check_request(request, programs)
        drafts = self.models(programs, models)
        reading = PromptReading.of(programs, drafts, self._memory.cache.model, len(request.prompt))
        if reading is None:
            return None, drafting
        return reading, dataclasses.replace(drafting, reading=reading.nbytes(self._memory.pass_bytes))
