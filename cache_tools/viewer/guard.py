"""Who may use the viewer, and what a browser may do with its responses.

The viewer shows a corpus that may be private, on a machine whose browser also visits strangers' pages. So it accepts
only GET, and only under the expected host names: otherwise a stranger's domain could be pointed at this address and
read the corpus (DNS rebinding). On an address that others can reach it requires a token, which the first visit stores
as a cookie. It sends no CORS headers, and its content policy lets only the package's own scripts run.

This wraps the whole application, so that every response carries these headers, also that of an error.
"""

import ipaddress
import re
import secrets
import socket

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "logitcask_view"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach a host; ``localhost`` is the only name for which this is assumed."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def is_expected(header: str, host: str) -> bool:
    """Say whether a Host header names the server that listens on ``host``.

    Under a wildcard (``0.0.0.0``, ``::``) this machine's name and every numeric address are accepted: DNS rebinding
    needs a name.
    """
    match = re.fullmatch(r"\[?([\w.-]+|[0-9a-fA-F:.]+)\]?(:\d+)?", header, re.ASCII)
    if match is None:
        return False
    name, listening = match[1].lower(), _address(host)
    if name in LOOPBACK or name == host.lower():
        return True
    wildcard = listening is not None and listening.is_unspecified
    return wildcard and (name == socket.gethostname().lower() or _address(name) is not None)


class Guard:
    """An application that only permitted requests reach.

    Args:
        app: The application.
        host: The address that the server listens on.
        token: The token that visitors must send; None if everybody who can connect may look.
    """

    def __init__(self, app: ASGIApp, host: str, token: str | None) -> None:
        self._app, self._host, self._token = app, host, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """Return the response to a request that is not permitted; None if it is permitted."""
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("The viewer accepts only GET requests.", 405, {"Allow": "GET, HEAD"})
        if not is_expected(request.headers.get("host", ""), self._host):
            return PlainTextResponse("This is not the address that 'logitcask view' printed.", 403)
        if self._token is None:
            return None
        if self._is_token(request.query_params.get("token")):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="lax")
            return answer
        if self._is_token(request.cookies.get(COOKIE)):
            return None
        return PlainTextResponse("Open the whole address that 'logitcask view' printed, including its token.", 401)

    def _is_token(self, text: str | None) -> bool:
        return secrets.compare_digest((text or "").encode(), (self._token or "").encode())


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
