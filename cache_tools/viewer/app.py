"""The viewer's addresses: one page, its files, and the data behind it as JSON.

::

    /                                                    the page
    /static/…                                            its script, style and icon
    /api/summary                                         inspection.summary.CacheSummary
    /api/{encoding}/sample                               overview.OverviewSample
    /api/{encoding}/find?by=…&query=…&teacher=…&after=…   search.SearchPage
    /api/{encoding}/alignments/{name}/worst?after=…       alignments.WorstPage
    /api/{encoding}/alignments/{name}/{number}           alignments.AlignedView
    /api/{encoding}/sequences/{number}                   pages.HeatView
    /api/{encoding}/sequences/{number}/{position}?top=…   inspection.views.PositionView

Every handler is a plain function: Starlette runs it on a thread, so the server answers other requests while a shard is
read. A LogitcaskError becomes ``{"error": text}`` and a status; the page shows the text.
"""

from pathlib import Path
from threading import Lock
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from cache_tools.errors import ConfigError, FormatError, IncompleteError, LogitcaskError
from cache_tools.json_output import json_ready
from cache_tools.storage import StorePath
from cache_tools.store.reader import Encoding
from cache_tools.viewer.alignments import aligned_view, open_alignment, worst_aligned
from cache_tools.viewer.guard import Guard
from cache_tools.viewer.overview import Samples
from cache_tools.viewer.pages import OpenCache, alternatives, heat, pictured
from cache_tools.viewer.search import MEASURES, look_for_highest, look_for_text

WEB = Path(__file__).parent / "web"
TOP = 10
LARGEST_NUMBER = 2**62

NUMBERS = {
    "number": "sequence number",
    "position": "position",
    "top": "number of tokens to list ('top')",
    "after": "place to continue a search from ('after')",
}
"""Numbers in addresses: their names there and in messages."""

STATUS: dict[type[Exception], int] = {ConfigError: 404, FormatError: 404, IncompleteError: 409}
"""HTTP status by error; all others, such as damage and storage, are 500."""


def make_app(path: StorePath, host: str = "127.0.0.1", token: str | None = None) -> Guard:
    """Return the viewer of a cache as an ASGI application.

    Args:
        path: The cache.
        host: The address that it will be served on, see ``guard``.
        token: The token that visitors must send; None if everybody who can connect may look.

    Raises:
        FormatError: the path is not a cache.
    """
    pages = _Pages(OpenCache(path))
    routes = [
        Route("/", pages.index),
        Route("/api/summary", pages.summary),
        Route("/api/{encoding}/sample", pages.sample),
        Route("/api/{encoding}/find", pages.find),
        Route("/api/{encoding}/alignments/{name}/worst", pages.worst_aligned),
        Route("/api/{encoding}/alignments/{name}/{number}", pages.aligned),
        Route("/api/{encoding}/sequences/{number}", pages.sequence),
        Route("/api/{encoding}/sequences/{number}/{position}", pages.position),
        Mount("/static", StaticFiles(directory=WEB)),
    ]
    handlers: dict[Any, Any] = {LogitcaskError: _refused, HTTPException: _not_there, Exception: _unexpected}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), host, token)


class _Pages:
    """The handlers, and the open cache that they share."""

    def __init__(self, opened: OpenCache) -> None:
        self._opened, self._templates, self._samples = opened, Jinja2Templates(WEB), Samples()
        self._scan = Lock()  # two scans at once would hold two shards and be no faster

    def index(self, request: Request) -> Response:
        path = pictured(str(self._opened.path))
        return self._templates.TemplateResponse(request, "index.html", {"path": path})

    def summary(self, _: Request) -> Response:
        return JSONResponse(json_ready(self._opened.summary()))

    def sample(self, request: Request) -> Response:
        encoding = self._encoding(request)
        teachers = [self._opened.teacher(encoding, name) for name in encoding.teachers]
        return JSONResponse(json_ready(self._samples.of(encoding, teachers)))

    def sequence(self, request: Request) -> Response:
        return JSONResponse(json_ready(heat(self._opened, self._encoding(request), _number(request, "number"))))

    def position(self, request: Request) -> Response:
        number, position, top = (_number(request, name) for name in ("number", "position", "top"))
        return JSONResponse(json_ready(alternatives(self._opened, self._encoding(request), number, position, top)))

    def worst_aligned(self, request: Request) -> Response:
        alignment = open_alignment(self._encoding(request), request.path_params["name"])
        with self._scan:
            return JSONResponse(json_ready(worst_aligned(alignment, _number(request, "after"))))

    def aligned(self, request: Request) -> Response:
        alignment = open_alignment(self._encoding(request), request.path_params["name"])
        return JSONResponse(json_ready(aligned_view(alignment, _number(request, "number"))))

    def find(self, request: Request) -> Response:
        encoding, parameters = self._encoding(request), request.query_params
        by, query, after = parameters.get("by", "all"), parameters.get("query"), _number(request, "after")
        if by == "all":
            return JSONResponse(json_ready(look_for_text(encoding, None, None, after)))
        with self._scan:
            if by in MEASURES:
                teachers = [self._opened.teacher(encoding, name) for name in parameters.getlist("teacher")]
                return JSONResponse(json_ready(look_for_highest(encoding, teachers, by, after)))
            if by in ("id", "text") and query:
                document_id, text = (query, None) if by == "id" else (None, query)
                return JSONResponse(json_ready(look_for_text(encoding, document_id, text, after)))
        raise ConfigError(
            "the viewer does not offer this search",
            expected="by=all; by=id or by=text with a query; or by=loss, by=kl or by=top1 with teachers",
            found=f"by={by}, query={query!r}",
        )

    def _encoding(self, request: Request) -> Encoding:
        return self._opened.encoding(request.path_params["encoding"])


def _number(request: Request, name: str) -> int:
    """Return a number from the path or query."""
    text = request.path_params.get(name) or request.query_params.get(name, {"after": "0", "top": str(TOP)}.get(name))
    if text is None or not text.isdecimal() or len(text) > len(str(LARGEST_NUMBER)) or int(text) > LARGEST_NUMBER:
        raise ConfigError(
            f"the {NUMBERS[name]} is not a whole number that the viewer accepts",
            expected=f"0 to {LARGEST_NUMBER:,}",
            found=repr((text or "")[:40]),
        )
    return int(text)


def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": pictured(str(error))}, STATUS.get(type(error), 500))


def _not_there(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return JSONResponse({"error": f"The viewer has no page at {pictured(request.url.path[:200])}."}, status)


def _unexpected(_: Request, error: Exception) -> Response:
    message = f"The viewer failed with an unexpected {type(error).__name__}. Its terminal shows the details."
    return JSONResponse({"error": message}, 500)
