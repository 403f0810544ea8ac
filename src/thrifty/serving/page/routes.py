"""GET / and /page/…: the page's own files, and the policy under which a browser shows them."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter, Response

from thrifty.serving.errors import RequestError

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Its own scripts and styles, its own server, and nothing else: no inline script, no frame, no form that is sent."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def router() -> APIRouter:
    """The endpoints. Every file is read when the server starts, so a request names a file and never a path."""
    folder = resources.files("thrifty.serving.page") / "files"
    contents = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    routes = APIRouter(include_in_schema=False)

    def answer(name: str) -> Response:
        if name not in contents:
            raise RequestError(f"GET /page/{name:.80} is not served here", 404)
        kind = KINDS[name.rpartition(".")[2]]
        return Response(contents[name], media_type=kind, headers=HEADERS)

    @routes.get("/")
    async def index() -> Response:
        return answer("index.html")

    @routes.get("/page/{name}")
    async def file(name: str) -> Response:
        return answer(name)

    return routes
