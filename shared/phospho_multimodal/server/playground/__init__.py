"""The window in the door: one page that asks this server about a picture.

Plain files without outside assets and without a build step. The page is shown to anyone, since a
browser sends no key when it opens one; asking needs the key like any other request.
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
    # No script but our files, and no way for a picture or a key to leave for anywhere else.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:;"
        " connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # after an update, no new page with an old script
}


def add_playground(app: FastAPI, *, about: Callable[[], list[str]]) -> None:
    """Give an app the page and its files.

    Args:
        app: The server's application.
        about: Gives the lines that say which model answers.
    """

    @app.get("/playground/about", include_in_schema=False)
    async def tell() -> JSONResponse:
        return JSONResponse({"lines": about()}, headers=_HEADERS)

    for path, (name, media_type) in _FILES.items():
        _add_file(app, path, name, media_type)


def _add_file(app: FastAPI, path: str, name: str, media_type: str) -> None:
    content = resources.files(__name__).joinpath(name).read_bytes()

    @app.get(path, include_in_schema=False)  # the contract's document has the contract alone
    async def file() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)
