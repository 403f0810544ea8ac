"""The tools of a request, and which calls it wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, StrictBool

from thrifty.serving.bodies.body import Body
from thrifty.serving.errors import RequestError

NAME = r"^[a-zA-Z0-9_.\-]{1,64}$"
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class FunctionBody(Body):
    """A function that may be called. parameters: a JSON schema of one object, None for no parameters; every schema is
    enforced, `strict` changes nothing.
    """

    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class FunctionName(Body):
    """The name of an offered function."""

    name: str


Choice = Literal["none", "auto", "required"] | FunctionName
"""No call, a call where the model opens one, a call from the first token on, a call of this function."""


@dataclass(frozen=True)
class Function:
    """A function as grammars need it. schema: of its arguments, an object."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Offer:
    """The calls that an answer may hold. functions: those it may call. forced: it calls from its first token on; else
    it may be text. single: one call at most. shown: the tools as the chat template gets them.
    """

    functions: tuple[Function, ...]
    forced: bool
    single: bool
    shown: tuple[Mapping[str, Any], ...]


def offer_of(
    functions: Sequence[FunctionBody] | None,
    choice: Choice | None,
    parallel: bool | None,
    parameters: str = "tools.{}.function.parameters",
) -> Offer | None:
    """What a request offers; None where the answer is to be text. choice: see `Choice`. parameters: where a function's
    schema stands in the API's body, with a place for its number. Raises RequestError that names the field.
    """
    if functions is None:
        for name, value in (("tool_choice", choice), ("parallel_tool_calls", parallel)):
            if value is not None and value != "none":
                raise RequestError(f"{name} is given without tools; leave it out, or give tools", param=name)
        return None
    offered = tuple(_function(body, parameters.format(place)) for place, body in enumerate(functions))
    names = [function.name for function in offered]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"tools has the function '{twice}' twice; give each name once", param="tools")
    if choice == "none":
        return None
    shown = tuple(_shown(body) for body in functions)
    if isinstance(choice, FunctionName):
        wanted = tuple(function for function in offered if function.name == choice.name)
        if not wanted:
            raise RequestError(
                f"tool_choice names '{choice.name}', which is not among the tools: {', '.join(names)}",
                param="tool_choice",
            )
        return Offer(wanted, True, True, shown)
    return Offer(offered, choice == "required", parallel is False, shown)


def _function(body: FunctionBody, place: str) -> Function:
    schema = NO_PARAMETERS if body.parameters is None else body.parameters
    if schema.get("type", "object") != "object":
        raise RequestError(
            f"the parameters of '{body.name}' are of type {schema['type']!r}; a call's arguments are an object",
            param=place,
        )
    return Function(body.name, {"type": "object", **schema})


def _shown(body: FunctionBody) -> Mapping[str, Any]:
    """A tool in the words of OpenAI's API, without what is about the API alone."""
    given = body.model_dump(include={"name", "description", "parameters"}, exclude_unset=True)
    return {"type": "function", "function": given}
