"""The front door: a checkpoint and a recipe become a model and an engine here, and nowhere else.

`Thrifty` is the synchronous interface for a script: a model by name, an answer back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from thrifty.decoding.option_values import flag, shown
from thrifty.decoding.sampling_parameters import SamplingParameters
from thrifty.engine.admission.weights_bound import weights_bound
from thrifty.engine.counterfactual import hindsight, observation, replaced
from thrifty.engine.drafting.models import facts_of, load_draft
from thrifty.engine.engine import Engine
from thrifty.engine.options import EngineOptions
from thrifty.engine.prompts import are_messages, encoded, prompt_list
from thrifty.engine.request import Handle, Request, Result
from thrifty.engine.text_stream import TextStream
from thrifty.errors import PromptError, QueueFullError, RecipeError
from thrifty.models.chat.arguments import CHAT_OPTIONS
from thrifty.recipe import Recipe
from thrifty.storage.budget import parse_size

if TYPE_CHECKING:
    from thrifty.decoding.noise import GumbelNoise
    from thrifty.models.model import Model
    from thrifty.weights.calibration import CalibrationSet

Checkpoint: TypeAlias = "str | os.PathLike[str] | Model"
Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


def open_model(
    checkpoint: Checkpoint,
    recipe: Recipe | None = None,
    *,
    threads: int | None = None,
    copy: bool = True,
    progress: Callable[[int, int], None] | None = None,
    calibration: CalibrationSet | None = None,
    before: Callable[[], None] | None = None,
    errors: bool = True,
    fits: Callable[[int], None] | None = None,
) -> Model:
    """A checkpoint with the weight techniques of a recipe: the one way to a model, whoever serves or measures it.

    checkpoint: a name, a path, or a loaded Model, which stays as it is. threads, copy, progress, fits: see
    `models.load`. calibration, before, errors: see `weights.technique.prepare`; calibration None: the text that ships
    with the package. Raises PromptError for what is no checkpoint, and what loading and the techniques raise.
    """
    if isinstance(checkpoint, str | os.PathLike):
        from thrifty.models import load

        model = load(checkpoint, threads=threads, copy=flag("copy", copy), progress=progress, fits=fits)
    elif hasattr(checkpoint, "linears"):
        model = checkpoint
    else:
        raise PromptError(f"model = {shown(checkpoint)} is no model; use a name, a path, or a loaded Model")
    if recipe is None or not recipe.weights:
        return model
    from thrifty.weights.applied import check_new
    from thrifty.weights.technique import prepare

    techniques, is_ours = recipe.techniques("weights"), model is not checkpoint
    check_new(model, techniques)
    return prepare(model, techniques, calibration=calibration, in_place=is_ours, before=before, errors=errors)


def open_engine(
    checkpoint: Checkpoint,
    recipe: Recipe | None = None,
    *,
    memory: int | str | None = None,
    process_memory: int | str | None = None,
    threads: int | None = None,
    context: int | None = None,
    native: bool | None = None,
    copy: bool = True,
    progress: Callable[[int, int], None] | None = None,
    calibration: CalibrationSet | None = None,
    fits: Callable[[int], None] | None = None,
    make: Callable[..., Engine] = Engine,
    **options: Any,
) -> Engine:
    """An engine over `open_model`, with the recipe's techniques of prompt, cache and decoding for requests that bring
    none.

    fits: told the bytes of the weights before any is converted, and those of the loaded ones before the engine is made,
    to make room for them or to refuse; what it raises is raised. make: builds the engine, from a Model and the options
    of Engine. options: further ones of Engine. Options are checked before anything is loaded; weights that alone exceed
    the memory are refused before they are converted, where no technique of the recipe may make them fit. Models that
    draft are loaded as this one is, as far as `copy` goes.
    The caller closes the engine.
    """
    chosen = recipe or Recipe()
    checked = EngineOptions.of(threads=threads, context=context, native=native)
    bounds = {"memory": memory, "process_memory": process_memory}
    sizes = {name: None if size is None else parse_size(size, name) for name, size in bounds.items()}
    model = open_model(
        checkpoint, chosen, threads=checked.threads, copy=copy, progress=progress, calibration=calibration,
        fits=_both(fits, None if chosen.weights else weights_bound(**sizes)),
    )  # fmt: skip
    if fits is not None:
        fits(model.nbytes)
    options.setdefault("load_draft", partial(load_draft, copy=flag("copy", copy)))
    return make(
        model,
        **sizes,
        threads=checked.threads,
        context=checked.context,
        native=checked.native,
        cache=chosen.cache,
        decoding=chosen.decoding,
        programs=chosen.prompt,
        **options,
    )


def _both(*checks: Callable[[int], None] | None) -> Callable[[int], None]:
    """All of them, one after the other."""

    def check(weights: int) -> None:
        for own in checks:
            if own is not None:
                own(weights)

    return check


class Thrifty:
    """A loaded model behind an engine.

    >>> model = Thrifty("smollm2-135m", memory="150MB")            # doctest: +SKIP
    >>> model.generate("The capital of France is", max_tokens=8).text  # doctest: +SKIP
    """

    def __init__(
        self,
        model: Checkpoint,
        *,
        memory: int | str | None = None,
        process_memory: int | str | None = None,
        recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        threads: int | None = None,
        context: int | None = None,
        native: bool | None = None,
        copy: bool = True,
        progress: Callable[[int, int], None] | None = None,
        **engine_options: Any,
    ) -> None:
        """model: a name, a path, or a loaded Model. recipe: a Recipe, its tables, or the path of its TOML
        file. copy, progress: of a conversion, see `models.load`.

        The other arguments are those of `open_engine` and Engine. Raises ThriftyError where the model, recipe or
        budget does not do.
        """
        self.recipe = as_recipe(recipe)
        self.engine = open_engine(
            model,
            self.recipe,
            memory=memory,
            process_memory=process_memory,
            threads=threads,
            context=context,
            native=native,
            copy=copy,
            progress=progress,
            **engine_options,
        )
        self.model = self.engine.model

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[False] = False, **sampling: Any) -> Result: ...

    @overload
    def generate(
        self, prompt: Sequence[Prompt], *, stream: Literal[False] = False, **sampling: Any
    ) -> list[Result]: ...

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **sampling: Any) -> TextStream: ...

    def generate(self, prompt: Any, *, stream: bool = False, **sampling: Any) -> Any:
        """Continue a text (or token ids), or a list of them in one batch; with `stream`, pieces of text as
        they come (`TextStream`). Every way to leave an answer ends its request: `break`, an error, Ctrl-C, a stream
        that is closed or dropped.

        sampling: the fields of SamplingParameters, `greedy=True`, `samples=n` for several answers to a prompt,
        `cache_memory="20MB"` as a bound on what each prompt's cache may ever take, `adapter="name"` for one of the
        engine's adapters, and `session="name"` for a conversation that goes on from its own compressed cache.
        """
        prompts = prompt_list(prompt)
        if prompts is None:
            return self._answer(prompt, stream, sampling)
        if stream:
            raise PromptError(f"stream=True takes one prompt; the list has {len(prompts)}: stream them one by one")
        handles: list[Handle] = []
        try:
            for text in prompts:
                handles.append(self._submit_patiently(text, handles, sampling))
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:
                handle.cancel()

    @overload
    def chat(self, messages: str | Messages, *, stream: Literal[False] = False, **sampling: Any) -> Result: ...

    @overload
    def chat(self, messages: str | Messages, *, stream: Literal[True], **sampling: Any) -> TextStream: ...

    def chat(self, messages: Any, *, stream: bool = False, **sampling: Any) -> Any:
        """Answer `[{"role": "user", "content": "..."}]` (or one user text) through the model's chat template.

        Content is a text, or a list of `{"type": "text", "text": "..."}`. Beside what `generate` takes:
        tools, documents: lists of JSON objects for the template. enable_thinking, and template_arguments={...} for all
        others that the template reads; one that it does not read is refused.
        control_tokens_in_messages: False (the default) keeps control tokens that messages spell out as text, so that
        a user can neither end a turn nor begin one; True makes them control tokens.

        Raises TemplateError where the model has no chat template: give `generate` a text that holds all turns.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not are_messages(turns):
            from thrifty.models.chat.messages import check_messages

            check_messages(turns)
        return self._answer(turns, stream, sampling)

    def submit(
        self,
        prompt: Prompt | Messages,
        *,
        samples: int = 1,
        cache_memory: int | str | None = None,
        adapter: str | None = None,
        session: str | None = None,
        **options: Any,
    ) -> Handle:
        """Queue a text, token ids or messages and return the handle, to stream, cancel or fork.

        cache_memory: `Request.cache_bytes`, in bytes or as "20MB". adapter: the name of one of the engine's. session:
        `Request.session`. options: those of sampling, and for messages those of `chat`.
        """
        bound = None if cache_memory is None else parse_size(cache_memory, "cache_memory")
        fields = {"samples": samples, "cache_bytes": bound, "adapter": adapter, "session": session}
        return self.engine.submit(self._request(prompt, options, **fields))

    def replay(
        self, prompt: Prompt | Messages, answer: Sequence[int], place: int, token: int, **options: Any
    ) -> Result:
        """What the answer would have been, had `token` stood at a place of it (0: its first token): its tokens before
        that place, the token, and what follows by the same noise.

        answer: the factual token ids. options: those of the factual answer, with its `seed` and `noise="gumbel"` (or
        the noise of `hindsight`), `max_tokens` a number; `adapter` too. An edited prompt alone needs no replay:
        `generate` answers it by the same noise. Raises PromptError where there is no such place, or no seed.
        """
        adapter = options.pop("adapter", None)
        request = self._request(prompt, options, adapter=adapter)
        if request.sampling.noise is None or request.sampling.seed is None:
            raise PromptError("a replay needs the noise of the factual answer: give noise='gumbel' and its seed")
        return self.engine.submit(replaced(request, answer, place, token)).result()

    def hindsight(self, prompt: Prompt | Messages, answer: Sequence[int], **options: Any) -> GumbelNoise:
        """Noise that explains an answer which was not drawn here, as the option `noise` of other requests takes it.

        answer: its token ids behind the prompt. options: those that it was drawn with, a temperature above 0 among
        them; `seed` says which of all noise that explains it: give the same to the replay. It takes 4 bytes times the
        vocabulary a token. Raises PromptError where a token could not have been drawn.
        """
        adapter, facts = options.pop("adapter", None), facts_of(self.model)
        if options.get("seed") is None:
            raise PromptError("hindsight needs a seed, which the replay gives again; give one")
        request = observation(self._request(prompt, options, adapter=adapter), answer, facts)
        with self.engine.submit(request) as handle:
            return hindsight(request, handle, facts)

    def _request(self, prompt: Prompt | Messages, options: Mapping[str, Any], **fields: Any) -> Request:
        sampling, template = _split(options)
        parameters = SamplingParameters.of(**sampling)
        return Request(prompt=self.encode(prompt, **template), sampling=parameters, **fields)

    def encode(self, prompt: Prompt | Messages, **template: Any) -> list[int]:
        """Token ids of a text, of messages through the chat template, or the ids themselves.

        template: the options of `chat` that are not about sampling; only messages take them.
        Raises PromptError where there is nothing to continue, and for a value that is no prompt; CheckpointError for a
        text where the model has no tokenizer.
        """
        return encoded(self.model, prompt, template)

    def close(self) -> None:
        """Cancel what runs and free the cache."""
        self.engine.close()

    def __enter__(self) -> Thrifty:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, prompt: Prompt | Messages, stream: bool, sampling: Mapping[str, Any]) -> TextStream | Result:
        handle: Handle | None = None
        try:
            handle = self.submit(prompt, **sampling)
            return TextStream(handle) if stream else handle.result()
        except BaseException:
            if handle is not None:
                handle.cancel()
            raise

    def _submit_patiently(self, prompt: Prompt, earlier: list[Handle], sampling: dict[str, Any]) -> Handle:
        """Submit; where the queue is full, work on what is in it first."""
        while True:
            try:
                return self.submit(prompt, **sampling)
            except QueueFullError:
                if all(handle.finished for handle in earlier):
                    raise
                self.engine.step()


def _split(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of sampling, and those of a chat."""
    chat = {name: value for name, value in options.items() if name in CHAT_OPTIONS}
    return {name: value for name, value in options.items() if name not in chat}, chat


def as_recipe(recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str] | None) -> Recipe:
    """A Recipe from itself, its tables, the path of its TOML file, or nothing. Raises RecipeError."""
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe.from_document(dict(recipe))
    if isinstance(recipe, str | os.PathLike):
        return Recipe.load(recipe)
    raise RecipeError(
        f"recipe = {shown(recipe)} is no recipe; use a Recipe, its tables as {{stage: [tables]}}, or a TOML file's path"
    )
