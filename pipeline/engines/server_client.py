"""Questions to a server over HTTP, each repeated while the server is busy, and refused in words when it refuses.

A request that fails because of the server's load or of the connection (429, 5xx, a connection that ends) is made
ATTEMPTS times, after random pauses whose mean doubles. One that takes too long is made twice. What the server refuses
(4xx) is refused with the server's own words. Redirects are not followed: the key would go to another machine. Each
request has a connection of its own, which costs a fraction of a millisecond beside the computation.

Rejected: a library for HTTP, which the project does not need elsewhere; the retries of ``requests/in_flight.py``, which
are for buckets and repeat whatever fails.
"""

import json
import random
import threading
import time
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from textwrap import shorten
from urllib.parse import urlsplit

from cache_tools.errors import ModelError
from cache_tools.mappings import JsonObject

ATTEMPTS = 5
"""How often a request is made while the server is busy."""

ATTEMPTS_IN_TIME = 2
"""How often a request is made that takes too long."""

PAUSE_SECONDS = 1.0
"""Longest pause before the second attempt; twice as long before each further one."""

BUSY = (408, 425, 429, 500, 502, 503, 504)
"""States of an answer after which the same request may succeed."""

NO_SUCH_PAGE = (404, 405)

FACT_BYTES = 2**24
"""Longest answer of a server that states what it is."""

CONTINUES = "See what the server reports, then run the same command again: it continues where it stopped"


class ServerClient:
    """A server, as the place that requests go to.

    Args:
        url: Its address; a last part ``v1`` is left out.
        key: The API key that is sent; None for none.
        timeout_seconds: How long it may take for an answer.

    Attributes:
        url: Its address, as errors name it.
        received_bytes: Bytes of all answers so far.
    """

    def __init__(self, url: str, key: str | None = None, timeout_seconds: float = 600) -> None:
        parts = urlsplit(url)
        self.url = url
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._root, self._timeout_seconds = parts.path.rstrip("/").removesuffix("/v1"), timeout_seconds
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
        self._headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
        self.received_bytes, self._lock = 0, threading.Lock()

    def get(self, path: str) -> JsonObject | None:
        """Return what the server states there; None if it does not have this page.

        Raises:
            ModelError: it does not answer, or answers something else.
        """
        status, content = self._repeated("GET", path, None, FACT_BYTES)
        return None if status in NO_SUCH_PAGE else self._object(path, status, content)

    def post(self, path: str, question: JsonObject, most_bytes: int) -> JsonObject:
        """Return the answer to a question.

        Args:
            path: Where it goes, below the server's address.
            question: What is asked.
            most_bytes: Longest answer that is read.

        Raises:
            ModelError: the server refuses, does not answer, or answers something else.
        """
        return self._object(path, *self._repeated("POST", path, json.dumps(question).encode(), most_bytes))

    def _repeated(self, method: str, path: str, body: bytes | None, most_bytes: int) -> tuple[int, bytes]:
        """Return the state and content of an answer that is not about the server's load."""
        problem, slow = "", 0
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(random.uniform(0, PAUSE_SECONDS * 2 ** (attempt - 1)))
            try:
                status, content = self._asked(method, path, body, most_bytes)
            except TimeoutError:
                problem, slow = f"nothing within {self._timeout_seconds:g} seconds", slow + 1
                if slow == ATTEMPTS_IN_TIME:
                    break
            except (OSError, HTTPException) as error:
                problem = f"no connection ({error or type(error).__name__})"
            else:
                if status not in BUSY:
                    return status, content
                problem = f"state {status}: {_words(content)}"
        raise ModelError("the server does not answer", where=f"{self.url}, {path}", found=problem, fix=CONTINUES)

    def _asked(self, method: str, path: str, body: bytes | None, most_bytes: int) -> tuple[int, bytes]:
        kind = HTTPSConnection if self._secure else HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_seconds)
        try:
            connection.request(method, self._root + path, body, self._headers)
            with connection.getresponse() as answer:  # which owns the socket, and keeps it if it is not read to its end
                content = answer.read(most_bytes + 1)
        finally:
            connection.close()
        with self._lock:
            self.received_bytes += len(content)
        if len(content) > most_bytes:
            raise ModelError(
                "the server's answer is longer than what it was asked for can be",
                where=f"{self.url}, {path}",
                expected=f"at most {most_bytes:,} bytes",
                found="more",
            )
        return answer.status, content

    def _object(self, path: str, status: int, content: bytes) -> JsonObject:
        """Return the answer as JSON, or refuse with what the server says."""
        if status != 200:
            raise ModelError(
                "the server refuses the request",
                where=f"{self.url}, {path}",
                found=f"state {status}: {_words(content)}",
                fix="Change the file or the server's options accordingly",
            )
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise ModelError(
                "the server's answer is no JSON object",
                where=f"{self.url}, {path}",
                found=shorten(content.decode(errors="replace"), 200),
                fix="Check that 'engine.url' is the address of the server's API",
            )
        return answer


def _words(content: bytes) -> str:
    """Return what an answer says of an error: the text inside, if it is JSON as servers write it."""
    text = content.decode(errors="replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return shorten(text, 300) or "nothing"
    for key in ("error", "message", "detail"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    return shorten(value if isinstance(value, str) else json.dumps(value), 300)
