"""What the Hub refuses, as one sentence without secrets; and which requests are repeated.

The client's errors hold addresses, request ids, whole answers and sometimes what was sent. Here the status decides the
sentence, of the rest only what the server says in its header is kept, and tokens and signatures are cut out of it.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from cache_tools.errors import StorageError

PROTOCOL = "hf"

WAITS_SECONDS = (1.0, 2.0, 4.0)
"""How long a request waits before it is repeated that the Hub was too busy for, or that was cut off."""

BUSY = (408, 412, 429, 500, 502, 503, 504)
"""Statuses of requests that may succeed when they are repeated; 412 is a commit beside another one."""

LOGIN = "Run 'hf auth login', or set HF_TOKEN to a token from the Hub's settings"
PUBLISH = (
    "Write to a disk or bucket, then send the finished cache with 'logitcask publish CACHE hf://datasets/OWNER/NAME'"
)

T = TypeVar("T")


def read_only(where: object) -> StorageError:
    """Return the error of whoever writes into the Hub as if it were a disk."""
    return StorageError(
        "a cache on the Hub is not written in place",
        where=where,
        why="every object would be a commit of its own",
        fix=PUBLISH,
    )


def patiently(request: Callable[[], T]) -> T:
    """Make a request; repeat it a few times if the Hub is busy, or the connection breaks after it was open."""
    for seconds in WAITS_SECONDS:
        try:
            return request()
        except Exception as error:
            if status_of(error) not in BUSY and not _is_cut_off(error):
                raise
            time.sleep(seconds)
    return request()


def _is_cut_off(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"ReadError", "WriteError", "RemoteProtocolError", "TimeoutException"})


def status_of(error: BaseException | None) -> int | None:
    """Return the HTTP status that an error, or one that it was raised from, was made for."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__
    return None


@contextmanager
def hub_errors(where: object) -> Iterator[None]:
    """Turn the client's errors into a StorageError of one sentence without secrets; a missing file stays one."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except Exception as error:
        place = where if "://" in str(where) else f"{PROTOCOL}://{where}"
        code = _code(error)
        if status_of(error) == 404 and code not in ("RepoNotFound", "RevisionNotFound"):
            raise FileNotFoundError(str(place)) from error
        problem, fix = _sentence(status_of(error), code)
        raise StorageError(problem, where=place, found=without_secrets(_detail(error)), fix=fix) from error


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    return str(response.headers.get("x-error-code", "")) if response is not None else ""


def _detail(error: BaseException) -> str:
    """Return what the server said, or else the first line of the error that a transfer ended with."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if response is not None:
        message = response.headers.get("x-error-message", "")
        return f"status {response.status_code}" + (f": {message}" if message else "")
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0][:200] if lines else ''}"


def _sentence(status: int | None, code: str) -> tuple[str, str]:
    """Return (what is wrong, what to do) for a status."""
    again = "Run the same command again later; it continues"
    if status is None:
        return "the Hub cannot be reached or gave no usable answer", (
            f"Check the network, and HF_ENDPOINT if it is set. {again}"
        )
    if code == "RevisionNotFound":
        return "the repository has no such branch, tag or commit", "Choose one that its page on the Hub lists"
    if status == 404 or code == "RepoNotFound":
        return "there is no such repository, or it is private and the token may not see it", LOGIN
    if status == 401:
        return "the Hub asks for a valid token", LOGIN
    if status == 403:
        return "the token may not do this", "Use a token with write permission for this owner, or ask for access"
    if status in BUSY:
        return "the Hub is too busy to answer", again
    return "the Hub refused", again


def without_secrets(text: str) -> str:
    """Return a text without tokens, whoever put them there."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "…") if token else text
    return re.sub(r"(hf_|Bearer |[?&](?:X-Amz-)?(?:Signature|token)=)[^\s&'\"]+", r"\1…", text)
