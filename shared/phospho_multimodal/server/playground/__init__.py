"""The playground: a web page at `/` that sends an image and a prompt to this server.

Its files need no build step and load nothing from elsewhere. Everybody gets the page, because a
browser sends no key when it opens one. A prediction needs the key like any other request.
"""

from collections.abc import Callable
from importlib import resources

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse

__all__ = ["add_playground"]

_FILES = {
    "/": ("index.html", "text/html"),
    "/playground/page.css": ("page.css", "text/css"),
    "/playground/page.js": ("page.js", "text/javascript"),
    "/playground/code.js": ("code.js", "text/javascript"),
}

_HEADERS = {
    # Only these scripts run, and image and key go to this server only.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:;"
        " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # after an update, a new page must not run an old script
}


def add_playground(app: FastAPI, *, about: Callable[[], list[str]]) -> None:
    """Add the page, its files, and a route with the lines that say which model answers."""

    @app.get("/playground/about", include_in_schema=False)
    async def show_about() -> JSONResponse:
        return JSONResponse({"lines": about()}, headers=_HEADERS)

    for path, (name, media_type) in _FILES.items():
        _add_file(app, path, name, media_type)


def _add_file(app: FastAPI, path: str, name: str, media_type: str) -> None:
    content = resources.files(__name__).joinpath(name).read_bytes()

    @app.get(path, include_in_schema=False)
    async def file() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)
