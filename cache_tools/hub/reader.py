"""Files of the Hub: listings, sizes and ranges of bytes; every write is refused.

Listings come from huggingface_hub's file system for fsspec, one request per folder, and are remembered at a commit.
Files are read with one ranged request for each run of adjacent ranges: the file system's own reader would list the
folder of every file and read five megabytes ahead. The client follows redirects to http and https only, and drops
the token when one leads to another host.

Nothing is written here: a write would be a commit, so a capture of a thousand shards would be thousands of commits;
``publishing`` sends a finished cache in a few.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from cache_tools.hub.places import is_pinned, parse
from cache_tools.hub.refusals import PROTOCOL, hub_errors, patiently, read_only
from cache_tools.mappings import JsonObject

CONCURRENT_REQUESTS = 8


class HubReader:
    """What a store's functions ask of a file system, for the Hub; every write is refused.

    Args:
        driver: huggingface_hub's file system, opened with the options of ``Pinned``.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def info(self, path: str) -> JsonObject:
        """Return size and type of a file or folder."""
        with hub_errors(path):
            try:
                answer: JsonObject = patiently(lambda: self._driver.info(path, refresh=not is_pinned(path)))
            except KeyError as error:  # how the driver answers for a path below a file of a bucket
                raise FileNotFoundError(path) from error
            return answer

    def ls(self, path: str, detail: bool) -> list[Any]:
        """Return what lies directly inside a folder."""
        with hub_errors(path):
            inside = patiently(lambda: self._driver.ls(path, detail=True, refresh=not is_pinned(path)))
        safe = [item for item in inside if item["name"].rpartition("/")[2] not in ("", ".", "..")]
        return safe if detail else [item["name"] for item in safe]

    def cat_file(self, path: str, start: int, stop: int) -> bytes:
        """Return the bytes of a range of a file; less than the range if the file ends before."""
        with hub_errors(path):
            return self._range(path, start, stop)

    def cat_ranges(self, paths: Sequence[str], starts: Sequence[int], stops: Sequence[int], **_: Any) -> list[bytes]:
        """Return the bytes of each range, in order."""
        runs = adjacent(list(zip(paths, starts, stops, strict=True)))
        with hub_errors(paths[0]), ThreadPoolExecutor(min(CONCURRENT_REQUESTS, len(runs))) as pool:
            contents = list(pool.map(lambda run: self._range(run[0][0], run[0][1], run[-1][2]), runs))
        pieces = []
        for run, content in zip(runs, contents, strict=True):
            first = run[0][1]
            pieces += [content[start - first : stop - first] for _, start, stop in run]
        return pieces

    def _range(self, path: str, start: int, stop: int) -> bytes:
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        if stop <= start:
            return b""
        headers = build_hf_headers(token=self._driver.token)
        headers |= {"range": f"bytes={start}-{stop - 1}", "accept-encoding": "identity"}
        response = http_backoff("GET", file_url(path, self._driver.endpoint), headers=headers, timeout=60)
        if response.status_code == 416:  # the file ends before the range
            return b""
        hf_raise_for_status(response)
        content: bytes = response.content
        return content if response.status_code == 206 else content[start:stop]

    def pipe_file(self, path: str, *_: Any, **__: Any) -> NoReturn:
        """Refuse to write."""
        raise read_only(f"{PROTOCOL}://{path}")

    rm_file = pipe_file

    def rm(self, path: str, recursive: bool) -> NoReturn:
        """Refuse to delete."""
        raise read_only(f"{PROTOCOL}://{path}")

    def pipe(self, contents: dict[str, bytes]) -> NoReturn:
        """Refuse to write."""
        raise read_only(f"{PROTOCOL}://{next(iter(contents))}")


def file_url(path: str, address: str) -> str:
    """Return the address of a file from its path inside the Hub."""
    from urllib.parse import quote

    from huggingface_hub import hf_hub_url

    uri = parse(f"{PROTOCOL}://{path}")
    if uri.type == "bucket":
        return f"{address}/buckets/{uri.id}/resolve/{quote(uri.path_in_repo)}"
    url: str = hf_hub_url(uri.id, uri.path_in_repo, repo_type=uri.type, revision=uri.revision, endpoint=address)
    return url


def adjacent(ranges: Sequence[tuple[str, int, int]]) -> list[list[tuple[str, int, int]]]:
    """Return runs of ranges (file, start, stop) in which each begins where the one before ended."""
    runs: list[list[tuple[str, int, int]]] = []
    for item in ranges:
        if runs and runs[-1][-1][0] == item[0] and runs[-1][-1][2] == item[1]:
            runs[-1].append(item)
        else:
            runs.append([item])
    return runs
