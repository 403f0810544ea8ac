"""`thrifty counterfactual`: an answer, and what it would have been otherwise, by the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from thrifty.cli.shared import opening, options, output, streams

if TYPE_CHECKING:
    from thrifty.api import Thrifty
    from thrifty.engine.request import Result

EXAMPLE = 'thrifty counterfactual smollm2-135m "The captain was a" --edited "The pilot was a" --seed 7'


@options.takes_sampling
def command(
    model: options.ModelName,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", show_default=False, help="What the answer stands behind.")],
    edited: Annotated[str | None, typer.Option(help="Another prompt, answered by the same noise.")] = None,
    replace: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE=TEXT", help="Another token at a place of the answer (0: its first), e.g. `4= red`."
        ),
    ] = None,
    observed: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A text that was not drawn here: noise is made that explains it as the answer."
        ),
    ] = None,
    recipe: options.RecipePath = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the chat template.")] = False,
    memory: options.Memory = None,
    threads: options.Threads = None,
    native: options.Native = None,
    no_copy: options.NoCopy = False,
    as_json: options.Json = False,
    *,
    sampling: dict[str, Any],
) -> None:
    """Answer a prompt, then again with something changed and the same noise."""
    chosen = opening.read_recipe(recipe)
    change = None if replace is None else _change(replace)
    if edited is None and change is None and observed is None:
        raise typer.BadParameter("nothing is changed; give --edited, --replace or --observed.", param_hint="--edited")
    given = {"temperature": 1.0, "seed": 0} | sampling
    text = None if observed is None else streams.text_of(observed.read_text(), "--observed")
    with opening.opened(
        model, recipe=chosen, memory=memory, threads=threads, native=native, copy=not no_copy
    ) as thrifty:
        origin = _encoded(thrifty, prompt, "PROMPT", chat)
        other = origin if edited is None else _encoded(thrifty, edited, "--edited", chat)
        if text is None:
            given["noise"] = "gumbel"
        else:
            answer = thrifty.model.require_tokenizer().encode(text, add_bos=False, control=False)
            given["noise"] = thrifty.hindsight(origin, answer, **given)
        factual = thrifty.generate(origin, **given)
        counterfactual = _otherwise(thrifty, other, factual, change, given)
    if as_json:
        output.json_line({"model": model, "recipe": chosen.label()} | _told(factual, counterfactual))
    else:
        typer.echo(f"factual:        {factual.text}\ncounterfactual: {counterfactual.text}")


def _otherwise(
    thrifty: Thrifty, prompt: Sequence[int], factual: Result, change: tuple[int, str] | None, given: dict[str, Any]
) -> Result:
    """The answer with what is changed."""
    if change is None:
        return thrifty.generate(prompt, **given)
    place, text = change
    ids = thrifty.model.require_tokenizer().encode(text, add_bos=False, control=False)
    if len(ids) != 1:
        raise typer.BadParameter(f"{text!r} is a text of {len(ids)} tokens; give one token.", param_hint="--replace")
    return thrifty.replay(prompt, factual.token_ids, place, ids[0], **given)


def _told(factual: Result, counterfactual: Result) -> dict[str, Any]:
    """Both answers, JSON-ready, and the first place where they differ (None: nowhere)."""
    both = (factual.token_ids, counterfactual.token_ids)
    shorter = min(map(len, both))
    place = next((i for i in range(shorter) if both[0][i] != both[1][i]), None)
    if place is None and len(both[0]) != len(both[1]):
        place = shorter
    answers = {"factual": factual, "counterfactual": counterfactual}
    return {name: {"text": own.text, "token_ids": own.token_ids} for name, own in answers.items()} | {"differs": place}


def _change(text: str) -> tuple[int, str]:
    """A place and a text. Raises typer.BadParameter."""
    place, sign, token = text.partition("=")
    if not (sign and place.isdecimal() and len(place) < 10 and token):
        raise typer.BadParameter(f"{text!r} is no PLACE=TEXT, such as `4= red`.", param_hint="--replace")
    return int(place), streams.text_of(token, "--replace")


def _encoded(thrifty: Thrifty, text: str, name: str, chat: bool) -> list[int]:
    """Tokens of a prompt. Raises typer.BadParameter for an empty one."""
    if not streams.text_of(text, name).strip():
        raise typer.BadParameter("the prompt is empty; write at least one word.", param_hint=name)
    return thrifty.encode([{"role": "user", "content": text}] if chat else text)
