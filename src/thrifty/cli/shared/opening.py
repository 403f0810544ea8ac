"""Loading what the command line names: a recipe, and a model that runs with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thrifty.cli.shared import output
from thrifty.cli.shared.plain_prompt import paragraphs

if TYPE_CHECKING:
    from thrifty.api import Thrifty
    from thrifty.engine.request import Handle
    from thrifty.recipe import Recipe


FLAGS = {
    "tools": "--tools",
    "template_arguments": "--template-argument",
    "control_tokens_in_messages": "--control-tokens",
}
"""What else `Thrifty.chat` takes, and the flag of it."""


ADAPTER = "adapter"
"""What the engine calls the adapter of --adapter."""


def with_adapter(sampling: Mapping[str, Any], adapter: Path | None) -> dict[str, Any]:
    """What `Thrifty.submit` takes of sampling, and the adapter of --adapter where it was given."""
    return dict(sampling) if adapter is None else {**sampling, "adapter": ADAPTER}


def read_recipe(path: Path | None) -> Recipe:
    """The recipe of a file, or the empty one. Raises RecipeError."""
    from thrifty.recipe import Recipe

    return Recipe.load(path) if path is not None else Recipe()


def check_names(models: Iterable[str]) -> None:
    """Raise CheckpointError for a name that means nothing, before a server listens and others are told its address."""
    from thrifty.models.loading import check_name

    for name in models:
        check_name(name)


@contextmanager
def opened(
    model: str,
    *,
    recipe: Recipe,
    memory: int | None = None,
    process_memory: int | None = None,
    threads: int | None = None,
    native: bool | None = None,
    context: int | None = None,
    copy: bool = True,
    adapter: Path | None = None,
) -> Iterator[Thrifty]:
    """A model behind an engine, with the adapter of a folder (see `with_adapter`); on leaving, running answers are
    cancelled and the memory is given back.
    """
    from thrifty.api import Thrifty

    with loading(model) as progress:
        thrifty = Thrifty(
            model,
            recipe=recipe,
            memory=memory,
            process_memory=process_memory,
            threads=threads,
            native=native,
            context=context,
            copy=copy,
            progress=progress,
            adapters={} if adapter is None else {ADAPTER: adapter},
        )
    try:
        yield thrifty
    finally:
        thrifty.close()


@contextmanager
def loading(model: str) -> Iterator[Callable[[int, int], None]]:
    """Say that a model is being loaded. Yields what `models.load` tells of a conversion: its size is said before it
    begins, then how far it is.
    """
    from thrifty.models.store.cache_directory import cache_directory

    with output.waiting(f"loading {model}") as say:

        def progress(done: int, total: int) -> None:
            if not done:
                size, folder = output.megabytes(total), cache_directory()
                output.note(f"{model} is converted once: {size} in {folder} (--no-copy keeps no copy)")
            say(f"converting {model}, {done / 1e6:.0f} of {total / 1e6:.0f} MB" if done < total else f"loading {model}")

        yield progress


def submit(
    thrifty: Thrifty,
    messages: Sequence[Mapping[str, str]],
    sampling: Mapping[str, Any],
    *,
    raw: bool = False,
    cache_memory: int | None = None,
    plain: Callable[[Sequence[Mapping[str, str]]], str] = paragraphs,
    template: Mapping[str, Any] | None = None,
) -> Handle:
    """Queue messages through the chat template. cache_memory: bound in bytes on the answer's cache. plain: what a model
    without a template goes on with instead, in which control tokens are text; `raw` is the last text as it is.
    template: what else `Thrifty.chat` takes.

    Raises TemplateError where there is no template that could take these.
    """
    if raw:
        return thrifty.submit(messages[-1]["content"], cache_memory=cache_memory, **sampling)
    tokenizer = thrifty.model.require_tokenizer()
    if tokenizer.has_chat_template:
        return thrifty.submit(list(messages), cache_memory=cache_memory, **sampling, **(template or {}))
    if template:
        from thrifty.errors import TemplateError

        flags = ", ".join(FLAGS[name] for name in template)
        raise TemplateError(f"This model has no chat template that could take {flags}; leave it out.")
    ids = tokenizer.encode(plain(messages), control=False)
    return thrifty.submit(ids, cache_memory=cache_memory, **sampling)


def memory_of(thrifty: Thrifty) -> dict[str, Any]:
    """The highest bytes so far: of the ledger (weights, workspace, caches), and of the process as the system counts it.
    JSON-ready.
    """
    from thrifty.storage.process import peak_resident

    return {"ledger_peak_bytes": thrifty.engine.usage().peak, "process_peak_bytes": peak_resident()}


def say_memory(thrifty: Thrifty) -> None:
    """Both figures, for people."""
    held = memory_of(thrifty)
    output.note(
        f"memory at its peak: {output.megabytes(held['ledger_peak_bytes'])} by the ledger (weights, workspace, cache), "
        f"{output.megabytes(held['process_peak_bytes'])} of the whole process"
    )


def usage_of(handle: Handle, first_token_seconds: float | None) -> dict[str, Any]:
    """What an answer used and how fast it came, JSON-ready."""
    usage = handle.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "kept_tokens": usage.kept_tokens,
        "cached_tokens": usage.cached_tokens,
        "generated_tokens": usage.generated_tokens,
        "first_token_seconds": first_token_seconds and round(first_token_seconds, 3),
        "prefill_tok_s": round(usage.prefill_rate, 1),
        "decode_tok_s": round(usage.decode_rate, 1),
    }
