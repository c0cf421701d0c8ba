"""A folder served as a bucket: the few requests of S3 that reading and writing a cache takes.

moto keeps every object in one dictionary and sorts all of its keys for each page of a listing, so a cache of a hundred
thousand objects takes longer to list there than to read. This serves a folder that lies on the disk, without an upload,
and its own work for a request is under a millisecond. Only what obstore sends is answered: GET with a range, HEAD, PUT,
DELETE and ListObjectsV2.
"""

import os
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

PAGE_KEYS = 1000
"""Keys in one page of a listing, as in S3."""

Start = Callable[[str, list[tuple[str, str]]], Any]


class FolderBucket:
    """A WSGI application that serves the folders below one folder, each as a bucket.

    Args:
        root: The folder. Nobody else may change it while it is listed: a listing stays in memory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listed = lru_cache(maxsize=64)(self._list)

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        """Answer one request."""
        method, path = environ["REQUEST_METHOD"], unquote(environ["PATH_INFO"]).strip("/")
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        if method in ("PUT", "DELETE"):
            return self._change(method, path, environ, start_response)
        if method == "GET" and "list-type" in query:
            return self._page(path, query, start_response)
        try:
            return self._object(method, path, environ.get("HTTP_RANGE"), start_response)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            start_response("404 Not Found", [("Content-Type", "application/xml")])
            return [b"" if method == "HEAD" else b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"]

    def _change(self, method: str, path: str, environ: dict[str, Any], start_response: Start) -> list[bytes]:
        place = self.root / path
        if "/" not in path:
            place.mkdir(exist_ok=True)
        elif method == "DELETE":
            place.unlink(missing_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f"{place.name}.sent")
            partial.write_bytes(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
            partial.replace(place)
        self._listed.cache_clear()
        start_response("200 OK", [("ETag", '"0"'), ("Content-Length", "0")])
        return [b""]

    def _object(self, method: str, path: str, ranged: str | None, start_response: Start) -> list[bytes]:
        with (self.root / path).open("rb") as file:
            status = os.fstat(file.fileno())
            start, stop = 0, status.st_size
            if ranged and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", ranged)):
                start, stop = int(match[1]), min(stop, int(match[2] or stop) + 1)
            headers = [
                ("Last-Modified", formatdate(status.st_mtime, usegmt=True)),
                ("ETag", f'"{status.st_mtime_ns:x}"'),
                ("Accept-Ranges", "bytes"),
                ("Content-Length", str(stop - start)),
            ]
            if ranged:
                headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{status.st_size}"))
            file.seek(start)
            content = b"" if method == "HEAD" else file.read(stop - start)
        start_response("206 Partial Content" if ranged else "200 OK", headers)
        return [content]

    def _page(self, bucket: str, query: dict[str, str], start_response: Start) -> list[bytes]:
        """Answer ListObjectsV2 with the keys behind the token or the name that the request states."""
        after = query.get("continuation-token") or query.get("start-after") or ""
        entries = self._listed(bucket, query.get("prefix", ""), bool(query.get("delimiter")))
        rest = [entry for entry in entries if entry[0] > after][: PAGE_KEYS + 1]
        page, more = rest[:PAGE_KEYS], len(rest) > PAGE_KEYS
        parts = [_entry(*entry) for entry in page]
        following = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        body = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{bucket}</Name><KeyCount>{len(page)}</KeyCount><MaxKeys>{PAGE_KEYS}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{following}{''.join(parts)}</ListBucketResult>"
        ).encode()
        start_response("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def _list(self, bucket: str, prefix: str, folders: bool) -> list[tuple[str, int | None, float]]:
        """Return (key, size, time) below a prefix, sorted; a folder, if they are not entered, has no size."""
        root, entries = self.root / bucket, list[tuple[str, int | None, float]]()
        pending = [prefix.rstrip("/")]
        while pending:
            folder = pending.pop()
            try:
                inside = list(os.scandir(root / folder))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in inside:
                key = f"{folder}/{entry.name}" if folder else entry.name
                if not entry.is_dir():
                    status = entry.stat()
                    entries.append((key, status.st_size, status.st_mtime))
                elif folders:
                    entries.append((f"{key}/", None, 0.0))
                else:
                    pending.append(key)
        return sorted(entries)


def _entry(key: str, size: int | None, modified: float) -> str:
    if size is None:
        return f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>"
    time = datetime.fromtimestamp(modified, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return (
        f"<Contents><Key>{escape(key)}</Key><LastModified>{time}</LastModified><ETag>&quot;0&quot;</ETag>"
        f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )
