"""Errors as OpenAI's clients expect them: a status, and {"error": {message, type, param, code}}."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from thrifty.errors import (
    BudgetError,
    PromptError,
    QueueFullError,
    RecipeError,
    SessionError,
    TemplateError,
    ThriftyError,
    nearest,
)
from thrifty.serving.known_fields import body_of, fields_at


class RequestError(ThriftyError):
    """A request that is refused. param: the field at fault, None where there is none. retry_after: seconds."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after


class ErrorDetails(BaseModel):
    """What went wrong. param: the field at fault. code: for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetails


DOCUMENTED: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
"""As the OpenAPI document says it of every endpoint."""

REFUSED: dict[type[ThriftyError], str | None] = {
    PromptError: None,
    TemplateError: "chat_template",
    RecipeError: "recipe",
    BudgetError: "memory_budget",
}
"""Errors of what a client asked for, and their codes."""

SESSIONS = {"session_expired": 410, "session_not_found": 404}
"""Statuses of what is said of sessions; of all else 409."""

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


LONGEST = 2000
"""Characters of an error's text: what a client sent may be megabytes, and is not sent back whole."""


def envelope(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    message, param = cut(message), None if param is None else cut(param)
    kind = "server_error" if status >= 500 else KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def cut(text: str) -> str:
    """A text of at most `LONGEST` characters: its beginning and its end."""
    half = (LONGEST - 3) // 2
    return text if len(text) <= LONGEST else f"{text[:half]}...{text[-half:]}"


def response(
    message: str, status: int, param: str | None = None, code: str | None = None, retry_after: float | None = None
) -> JSONResponse:
    """An error as an answer. retry_after: seconds, rounded up to whole ones."""
    headers = {} if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
    return JSONResponse(envelope(message, status, param, code), status, headers)


def described(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error that a request met."""
    if isinstance(error, RequestError):
        return error.status, envelope(str(error), error.status, error.param, error.code)
    if isinstance(error, QueueFullError):
        return 429, envelope(str(error), 429, code="queue_full")
    if isinstance(error, SessionError):
        status = SESSIONS.get(error.code, 409)
        return status, envelope(str(error), status, "thrifty.session", error.code)
    for kind, code in REFUSED.items():
        if isinstance(error, kind):
            return 400, envelope(str(error), 400, code=code)
    # What else went wrong is the server's own business: its text may speak of files and other requests.
    return 500, envelope("the server failed on this request; its log says why", 500, code=type(error).__name__)


def install(app: FastAPI) -> None:
    """Have every error of the app answered in this form."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        status, body = described(error)
        retry = getattr(error, "retry_after", None)
        headers = {} if retry is None else {"Retry-After": str(max(1, math.ceil(retry)))}
        return JSONResponse(body, status, headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        if request.method == "POST" and "json" not in request.headers.get("content-type", ""):
            return response("the body must be JSON, sent with 'Content-Type: application/json'", 400)
        message, param = first_fault(error.errors(), body_of(request))
        return response(message, 400, param)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        missing = error.status_code in (404, 405)
        message = f"{request.method} {request.url.path} is not served here" if missing else str(error.detail)
        return response(message, error.status_code)

    app.add_exception_handler(ThriftyError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, refused)


def first_fault(faults: Sequence[Any], body: type[BaseModel] | None = None) -> tuple[str, str | None]:
    """What is wrong with a body, and the field: its path, such as "messages.0.role". body: the class of the body, whose
    fields help after a wrong name.
    """
    # A wrong type says more than the fields that another type would have.
    fault = next((fault for fault in faults if fault["loc"][-1] == "type"), faults[0])
    *parents, last = (str(part) for part in fault["loc"])
    place = [part for part in parents if part != "body" and not _is_branch(part)]
    if last != "body" and (fault["type"] == "extra_forbidden" or not _is_branch(last)):
        place.append(last)
    param = ".".join(place) or None
    if fault["type"] == "extra_forbidden":
        return unknown_field(str(param), last, () if body is None else fields_at(body, fault["loc"][1:-1])), param
    if fault["type"] == "json_invalid":
        return f"the body is no JSON: {fault.get('ctx', {}).get('error', fault['msg'])}", None
    if param is None:
        return f"the body does not do: {fault['msg']}", None
    return f"'{param}': {fault['msg']}", param


def unknown_field(param: str, name: str, known: Collection[str]) -> str:
    """What is said of a field that nobody reads. param: its path; name: its last part; known: what may stand there."""
    hint = f". {nearest(name, known)}" if known else ""
    return f"'{param:.200}' is not a field that this server supports; leave it out{hint}"


def _is_branch(part: str) -> bool:
    """Whether a part of a path names a type among several, and no field: "str", "list[int]", "NamedChoice"."""
    return (
        part in ("str", "int", "float", "bool") or part.startswith(("list[", "literal[", "dict[")) or part[:1].isupper()
    )
