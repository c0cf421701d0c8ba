"""Hub URLs: which commit a branch stands for, and whether its files take a token.

``hf://datasets/owner/name@revision/folder`` names a folder of a repository, ``hf://buckets/owner/name/folder`` one of a
bucket. A branch is resolved to a commit once, when a cache is opened, and everything is read at that commit, so no
reader ever sees two states of a repository. A bucket has no commits.

A token is used only where the Hub refuses to answer without one, or says that the files of a repository need one.
"""

import logging
import os
import re
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cache_tools.hub.refusals import hub_errors, patiently, status_of
from cache_tools.mappings import Arguments

if TYPE_CHECKING:
    from huggingface_hub import HfUri

COMMIT_PATTERN = r"[0-9a-f]{40}"

logger = logging.getLogger(__name__)


class Pinned(NamedTuple):
    """A URL at a commit, and the options with which its file system is opened."""

    url: str
    options: Arguments


def endpoint() -> str:
    """Return the address of the Hub: ``HF_ENDPOINT``, or that of the public one."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def parse(url: str) -> "HfUri":
    """Return the parts of a hub URL.

    Raises:
        ValueError: it is not one.
    """
    from huggingface_hub import parse_hf_uri

    return parse_hf_uri(url)


def pin(url: str) -> Pinned:
    """Return a URL with its branch or tag replaced by the commit that it stands for now.

    A message on the log names the commit unless the URL did.

    Raises:
        StorageError: there is no such repository or revision, or the Hub refused.
    """
    uri = parse(url)
    options: Arguments = {"endpoint": endpoint(), "token": False}
    with hub_errors(url):
        try:
            commit, needs_token = _commit(uri, token=False)
        except Exception as error:
            if status_of(error) not in (401, 403, 404) or not _has_token():
                raise
            commit, needs_token = _commit(uri, token=None)[0], True
    if needs_token:
        options["token"] = None  # the client then reads it from where the user keeps it, for each request
    if commit is None:
        return Pinned(url, options)
    if uri.revision != commit:
        _say_commit(url, uri.revision, commit)
    return Pinned(replace(uri, revision=commit).to_uri(), options)


def _commit(uri: "HfUri", token: bool | None) -> tuple[str | None, bool]:
    """Return the commit of a repository's revision, None for a bucket, and whether its files need a token."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), token=token)
    if uri.type == "bucket":
        patiently(lambda: api.bucket_info(uri.id))
        return None, False
    info = patiently(lambda: api.repo_info(uri.id, repo_type=uri.type, revision=uri.revision, timeout=30))
    return str(info.sha), bool(getattr(info, "gated", False))


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


_SAID: set[tuple[str, str]] = set()


def _say_commit(url: str, revision: str | None, commit: str) -> None:
    if (url, commit) not in _SAID:
        _SAID.add((url, commit))
        logger.warning("%s is read at commit %s, the latest of %s", url, commit, revision or "main")


def is_pinned(path: str) -> bool:
    """Say whether a path inside the Hub names a commit, so that what it holds never changes."""
    return re.search(f"@{COMMIT_PATTERN}(/|$)", path) is not None
