"""What a request must pass before it is queued: everything that can never be served is refused here, with a
number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from thrifty import registry
from thrifty.cache.composition import check_order
from thrifty.decoding.constraint import Constraint
from thrifty.decoding.grammars import Grammars
from thrifty.decoding.option_values import tables
from thrifty.decoding.possible import Absent
from thrifty.decoding.sampling import ForcedSampler, Sampler, check_tokens
from thrifty.decoding.sampling_parameters import AtMost, SamplingParameters
from thrifty.decoding.services import ModelFacts
from thrifty.decoding.strategies.autoregressive import Autoregressive
from thrifty.decoding.strategies.dimple import Dimple
from thrifty.decoding.strategy import DecodingStrategy
from thrifty.engine.admission import bounding
from thrifty.engine.admission.masked_checks import check_kind, check_masked
from thrifty.engine.admission.media_checks import check_drafts, check_media, room_behind
from thrifty.engine.admission.program_intake import ProgramIntake
from thrifty.engine.drafting.drafting import NOTHING, Drafting
from thrifty.engine.drafting.models import facts_of
from thrifty.engine.media import seen_whole
from thrifty.engine.prompt.reading import PromptReading, check_policies
from thrifty.engine.request import Request
from thrifty.engine.row_extra import RowExtra
from thrifty.engine.running import Running
from thrifty.engine.steering import check_layers
from thrifty.engine.ticket import Ticket
from thrifty.errors import BudgetError, PromptError, RecipeError, nearest

if TYPE_CHECKING:
    from thrifty.cache.policy import CachePolicy
    from thrifty.engine.admission.adapter_shelf import AdapterShelf
    from thrifty.engine.admission.memory import EngineMemory
    from thrifty.engine.drafting.model import EngineDraftModel
    from thrifty.models.model import Model

Tables = Sequence[Mapping[str, Any]]


class Intake:
    """Checks requests against the model, the context and the budget."""

    def __init__(
        self,
        model: Model,
        memory: EngineMemory,
        *,
        context: int | None,
        cache: Tables,
        decoding: Tables,
        programs: Tables = (),
        batch: int,
        chunk: int,
        adapters: AdapterShelf,
        drafts: Sequence[str] = (),
    ) -> None:
        """chunk: the most rows that a prefill appends at once. drafts: models that requests may draft with, beside
        those of the engine's own `decoding` and `programs`.

        Raises PromptError where `context` exceeds the model's, RecipeError for the tables, BudgetError where the budget
        does not hold one token with them.
        """
        own = model.config.context_length
        if context is not None and not 2 <= context <= own:
            raise PromptError(f"context = {context} is out of range; this model takes 2 to {own} tokens")
        self.context = own if context is None else context
        self.vocabulary_size = model.config.vocabulary_size
        self.end_ids = frozenset(model.tokenizer.eos_ids if model.tokenizer else model.config.eos_ids)
        self.grammars = Grammars(lambda: model.grammar_vocabulary)
        self._model = model
        self._tokenizer = model.tokenizer
        self._config = model.config
        self._memory = memory
        self._batch = batch
        self._chunk = chunk
        self._adapters = adapters
        memory.drafts.adapter_of = adapters.get
        self._cache = tuple(tables("cache", cache) or ())
        self._decoding = tuple(tables("decoding", decoding) or ())
        self._programs = ProgramIntake(tuple(tables("programs", programs) or ()), memory, lambda: self._facts)
        self._drafts = frozenset((*drafts, *self._strategy(None).models, *self._programs.names))
        drafting = self._drafting(None) if self._decoding else None
        self._programs.models(self._programs.programs(None), lambda names: self._draft_models(names, tuple))
        memory.check(bounding.with_capacity(self._policies(None), 1), 1, 2, drafting=drafting, what="one token")

    def check(self, request: Request, accepted: Callable[[], Sequence[Running]] = tuple) -> Ticket:
        """Raises PromptError, RecipeError or BudgetError, each with what would work. accepted: sequences that must
        still be able to end beside a model that is loaded to draft.
        """
        check_tokens("the prompt", request.token_ids, self.vocabulary_size)
        check_layers(request.taps, request.steering, self._config)
        if request.samples > self._batch:
            raise PromptError(
                f"samples = {request.samples}, but the engine decodes {self._batch} together; "
                f"use at most {self._batch}, or an engine with a larger batch"
            )
        if request.sampling.stop and self._tokenizer is None:
            raise PromptError(
                f"stop = {request.sampling.stop!r} looks for text, and this model has no tokenizer.json; "
                "use stop_token_ids"
            )
        if request.forced is not None and request.samples > 1:
            raise PromptError("forced answers are all the same; use samples = 1")
        if self._config.mask_id is not None:
            check_masked(request)
            request = dataclasses.replace(request, media=seen_whole(request.token_ids))
        salt = request.salt if request.share_prefix else None
        drafting = self._drafting(request.decoding, accepted, salt)
        reading, drafting = self._programs.reading(request, drafting, lambda names: self._draft_models(names, accepted))
        rows = len(request.prompt) if reading is None else reading.rows
        policies = self._fitted(request, drafting, reading, rows)
        if request.media is not None:
            check_media(request.media, self._config, policies, self._chunk)
            if request.media.pieces:
                check_drafts(drafting.strategy)
        for policy in policies:
            policy.check_prompt(self._memory.cache.model, rows)
        maximum = self._maximum(request, policies, drafting, rows, rows)
        sampler = self._sampler(request, drafting.strategy.sampling(request.sampling))
        sampler.observe_prompt(request.token_ids)
        extra = self._extra(request, drafting.strategy)
        return Ticket(request, policies, drafting, maximum, sampler, extra, reading)

    def check_fork(
        self,
        parent: Running,
        sampling: SamplingParameters | None,
        stream: int,
        forced: Sequence[int] = (),
        free: int = 0,
    ) -> Ticket:
        """The ticket of a sequence that goes on from `parent`. Raises PromptError or BudgetError."""
        origin = parent.ticket.request
        if sampling is None:
            left = parent.total - len(parent.tokens)
            sampling = dataclasses.replace(parent.sampler.parameters, max_tokens=left)
        request = dataclasses.replace(
            origin,
            prompt=parent.tokens,
            sampling=sampling,
            samples=1,
            session=None,
            forced=tuple(forced) or None,
            free=free,
            identity=_identity(),
        )
        policies = parent.ticket.policies
        drafting = dataclasses.replace(parent.ticket.drafting, reading=NOTHING)
        maximum = self._maximum(request, policies, drafting, parent.prompt_length, len(parent.tokens))
        sampling = drafting.strategy.sampling(sampling)
        own = None if sampling.grammar == parent.sampler.parameters.grammar else self._constraint(sampling)
        sampler = parent.sampler.fork(stream, sampling, request.forced or (), own)
        return Ticket(request, policies, drafting, maximum, sampler, parent.extra)

    def _extra(self, request: Request, strategy: DecodingStrategy) -> RowExtra | None:
        """What the request and its strategy ask of all its rows."""
        adapter = None if request.adapter is None else self._adapters.get(request.adapter)
        taps = tuple(dict.fromkeys((*request.taps, *strategy.taps(self._facts))))
        extra = RowExtra(adapter=adapter, taps=taps, residual=request.steering)
        return None if extra.plain else extra

    def _fitted(
        self, request: Request, drafting: Drafting, reading: PromptReading | None, rows: int
    ) -> tuple[CachePolicy, ...]:
        """The request's policies, with the capacities that its byte budget gives them; those of its prompt programs
        first. rows: of its prompt that are read at most.
        """
        model = self._memory.cache.model
        known = request.ids if reading is None else ()  # which tokens are read is not known yet
        policies = tuple(policy.for_prompt(model, known) for policy in self._policies(request.cache))
        if reading is not None:
            check_policies(reading.programs, policies)
            policies = (*reading.policies, *policies)
            check_order(policies)
        held = self._memory.sessions.policies_of(request)
        if held and request.cache_bytes is not None and bounding.taken_over(policies, held):
            return held  # a session goes on with the capacities that it began with
        wanted = self._wanted(request)
        total = self.context if wanted is None else min(self.context, rows + wanted)
        need = self._need(request, rows, drafting)
        return bounding.fitted(policies, request.cache_bytes, need, total)

    @staticmethod
    def _wanted(request: Request) -> int | None:
        """The answer's tokens that the request asks for, None: as many as there may be."""
        return request.sampling.max_tokens if request.forced is None else len(request.forced) + request.free

    def _need(self, request: Request, prefilled: int, drafting: Drafting) -> bounding.Need:
        def need(policies: Sequence[CachePolicy], total: int) -> int:
            held = self._memory.request_bytes(policies, prefilled, total, request.samples, drafting.rows)
            return max(held, drafting.reading.cache)

        return need

    def _maximum(
        self, request: Request, policies: Sequence[CachePolicy], drafting: Drafting, prefilled: int, held: int
    ) -> int:
        """The answer's bound in tokens. prefilled: rows of the original prompt (a fork's prompt is longer). held: those
        that the answer stands behind.
        """
        prompt = len(request.prompt)
        room = self.context - prompt
        if room >= 1 and request.media is not None:
            room = room_behind(request.media, held, self.context)
        if room < 1:
            raise PromptError(
                f"the prompt has {prompt} tokens; the context holds {self.context}, the answer included: "
                f"use at most {self.context - 1}"
            )
        wanted, bound = self._wanted(request), request.cache_bytes
        need = self._need(request, prefilled, drafting)
        if wanted is None or isinstance(wanted, AtMost):
            fitting = self._memory.longest(policies, prefilled, self.context, request.samples, drafting)
            if bound is not None:
                fitting = min(fitting, bounding.longest(policies, bound, need, prefilled, self.context))
            most = room if wanted is None else min(room, wanted)
            wanted = max(1, min(most, fitting - held))
        if wanted > room:
            raise PromptError(
                f"max_tokens = {wanted} after a prompt of {prompt} tokens exceeds the context of {self.context}; "
                f"use at most {room}, or None for as many as fit"
            )
        if bound is not None:
            bounding.check(policies, bound, need, prefilled, held + wanted)
        self._memory.check(policies, prefilled, held + wanted, request.samples, drafting)
        return wanted

    def check_cache(self, cache: Tables) -> None:
        """Raise RecipeError where a recipe's cache tables do not do for the model."""
        self._policies(tables("cache", cache))

    def _policies(self, given: Tables | None) -> tuple[CachePolicy, ...]:
        chosen = self._cache if given is None else given
        policies = tuple(registry.build("cache", table) for table in chosen)
        check_order(policies)
        for policy in policies:
            policy.check(self._memory.cache.model)
        return policies

    def _strategy(self, given: Tables | None) -> DecodingStrategy:
        chosen = self._decoding if given is None else given
        if len(chosen) > 1:
            names = " and ".join(str(table.get("technique")) for table in chosen)
            raise RecipeError(f"a request decodes with one strategy; the recipe has {names}: keep one")
        if not chosen:
            return Autoregressive() if self._config.mask_id is None else Dimple()
        strategy: DecodingStrategy = registry.build("decoding", chosen[0])
        check_kind(str(chosen[0]["technique"]), strategy.fills_masks, self._config)
        return strategy

    def _drafting(
        self, given: Tables | None, accepted: Callable[[], Sequence[Running]] = tuple, salt: str | None = None
    ) -> Drafting:
        """The strategy with the models that draft for it. salt: of the request, None where it shares nothing. Raises
        RecipeError, BudgetError, and what loading raises.
        """
        strategy = self._strategy(given)
        if strategy.rows > 1 and self._memory.cache.model.state_layers:
            raise RecipeError(
                f"decoding technique {type(strategy).__name__!r} drafts, but the model's recurrent layers cannot go "
                "back to some of a draft's rows: decode with 'autoregressive'"
            )
        models = self._draft_models(strategy.models, accepted)
        strategy.check(self._facts, models)
        self._memory.kept.check(strategy.keeps(self._facts))
        return Drafting(strategy, self._facts, models, self._memory.drafts.costs, self._memory.kept, salt)

    def _draft_models(
        self, names: Sequence[str], accepted: Callable[[], Sequence[Running]]
    ) -> Mapping[str, EngineDraftModel]:
        self._check_drafts(names)
        return self._memory.drafts.require(
            names, lambda nbytes: self._memory.check_accepted(accepted(), nbytes, "a model that drafts")
        )

    def _check_drafts(self, names: Sequence[str]) -> None:
        """Raise RecipeError for a model that the engine's owner did not name: a request alone loads none."""
        for name in names:
            if name not in self._drafts:
                raise RecipeError(
                    f"draft = {name!r:.200} is no model that requests of this engine may draft with. "
                    f"{nearest(name, self._drafts)} Name it in the engine's own recipe, or allow it: "
                    f"drafts=({name!r:.200},)"
                )

    def _sampler(self, request: Request, sampling: SamplingParameters) -> Sampler:
        """sampling: the request's, as its strategy has it."""
        if request.forced is not None:
            return ForcedSampler(sampling, self.vocabulary_size, request.forced, absent=self._absent)
        constraint = self._constraint(sampling)
        return Sampler(sampling, self.vocabulary_size, absent=self._absent, constraint=constraint)

    def _constraint(self, sampling: SamplingParameters) -> Constraint | None:
        if sampling.grammar is None:
            return None
        try:
            self._memory.hold_grammars(self.grammars.bytes_with(sampling.grammar))
        except BudgetError:
            self.grammars.forget()  # those of other requests are only kept to be quick
            self._memory.hold_grammars(self.grammars.bytes_with(sampling.grammar))
        return self.grammars.constraint(sampling.grammar)

    @property
    def _absent(self) -> Absent:
        """The rows of the model that are no token."""
        return self._facts.absent

    @cached_property
    def _facts(self) -> ModelFacts:
        """What strategies may know of the model; read with the first request, as the tokenizer is."""
        return facts_of(self._model)


def _identity() -> str:
    return Request(prompt=(0,)).identity
