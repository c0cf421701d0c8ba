"""Send what the Hub lacks of a cache: upload in batches, commit rarely, continue after a stop.

What lies on the Hub is compared by hash before anything is read, so a file that is there is neither read nor sent.
Large files are uploaded before the commit that names them and are kept by the Hub if that commit never comes: a second
run is told so and sends only the others. A commit is one state of the repository for every reader, so a cache of up to
COMMIT_FILES files becomes visible at once; a larger one in the order of ``files.py``.

Each file is read whole and compared with its recorded hash on its way, so no damaged byte is published. Memory is a
batch, or the largest file. Rejected: huggingface_hub's upload of a folder, which sends whatever lies in the folder,
follows links, reads every file to compare it, and cannot read a bucket.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache_tools.hub.places import endpoint
from cache_tools.hub.refusals import hub_errors, patiently
from cache_tools.progress.reporter import Advance
from cache_tools.publishing.files import CacheFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

BATCH_FILES, BATCH_BYTES = 100, 64 * 2**20
"""Files that are uploaded together: at most so many, and no more once they hold so many bytes."""

COMMIT_FILES = 1000
"""Largest number of files in a commit; the Hub's own limit is 25,000."""

COMMIT_BYTES = 64 * 2**20
"""Most bytes in a commit of files that were not uploaded before it: documents, which are part of git itself."""


@dataclass(frozen=True)
class Card:
    """The card as a file to be sent.

    Attributes:
        text: Its content.
    """

    text: str
    key: str = "README.md"

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return len(self.content())

    def content(self) -> bytes:
        """Return its bytes."""
        return self.text.encode()

    @property
    def sha256(self) -> str:
        """Its hash."""
        return hashlib.sha256(self.content()).hexdigest()


Outgoing = CacheFile | Card


@dataclass(frozen=True)
class Target:
    """A branch of a dataset repository.

    Attributes:
        api: The client.
        repository: Owner and name.
        branch: The branch.
    """

    api: "HfApi"
    repository: str
    branch: str

    def listing(self) -> dict[str, "RepoFile"]:
        """Return the files of the branch by path; a thousand per request.

        Raises:
            StorageError: the Hub refused.
        """
        from huggingface_hub.hf_api import RepoFile

        with hub_errors(self.url):
            tree = self.api.list_repo_tree(self.repository, repo_type="dataset", revision=self.branch, recursive=True)
            return {item.path: item for item in tree if isinstance(item, RepoFile)}

    def commit_now(self) -> str:
        """Return the commit that the branch points to.

        Raises:
            StorageError: the Hub refused.
        """
        with hub_errors(self.url):
            info = patiently(lambda: self.api.dataset_info(self.repository, revision=self.branch, timeout=30))
        return str(info.sha)

    @property
    def url(self) -> str:
        """The repository as a place."""
        return f"hf://datasets/{self.repository}"


def open_target(repository: str, branch: str) -> Target:
    """Return a branch of a dataset repository, which need not exist yet."""
    from huggingface_hub import HfApi

    return Target(HfApi(endpoint=endpoint()), repository, branch)


def lacking(files: Iterable[Outgoing], there: Mapping[str, "RepoFile"]) -> list[Outgoing]:
    """Return the files that the Hub lacks or has with other bytes; files that it has in git are read to compare."""
    return [file for file in files if not _is_there(file, there.get(file.key))]


def _is_there(file: Outgoing, present: "RepoFile | None") -> bool:
    if present is None or present.size != file.size_bytes:
        return False
    if present.lfs is not None:
        return bool(present.lfs.sha256 == file.sha256)
    return bool(present.blob_id == git_hash(file.content()))


def git_hash(content: bytes) -> str:
    """Return the name that git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def send(target: Target, files: Sequence[Outgoing], message: str, progress: Advance) -> int:
    """Upload and commit files in their order.

    Args:
        target: Where to.
        files: What; the last are committed last.
        message: Summary of the commits; numbered if there are several.
        progress: Called with the number of bytes that were sent.

    Returns:
        Number of commits.

    Raises:
        DamageError: a file is missing or not what was written.
        StorageError: the Hub refused.
    """
    commits = 0
    with quiet():
        pending: list[Any] = []
        for batch in batches(files):
            operations = [_operation(file) for file in batch]
            if len(pending) + len(batch) > COMMIT_FILES or _payload_bytes(pending + operations) > COMMIT_BYTES:
                commits += _commit(target, pending, _numbered(message, commits, last=False))
                pending = []
            with hub_errors(target.url):
                patiently(lambda operations=operations: _upload(target, operations))  # type: ignore[misc]
            pending += operations
            progress(sum(file.size_bytes for file in batch))
        return commits + _commit(target, pending, _numbered(message, commits, last=True))


def batches(files: Sequence[Outgoing]) -> Iterator[list[Outgoing]]:
    """Yield files in order, in groups that are uploaded together."""
    batch: list[Outgoing] = []
    for file in files:
        if batch and (len(batch) == BATCH_FILES or sum(f.size_bytes for f in batch) + file.size_bytes > BATCH_BYTES):
            yield batch
            batch = []
        batch.append(file)
    if batch:
        yield batch


def _operation(file: Outgoing) -> Any:
    from huggingface_hub import CommitOperationAdd

    return CommitOperationAdd(path_in_repo=file.key, path_or_fileobj=file.content())


def _upload(target: Target, operations: list[Any]) -> None:
    """Upload those files of a batch that the Hub does not keep in git, and forget their bytes."""
    target.api.preupload_lfs_files(target.repository, operations, repo_type="dataset", revision=target.branch)


def _payload_bytes(operations: list[Any]) -> int:
    """Return how many bytes a commit would carry itself."""
    return sum(len(operation.path_or_fileobj) for operation in operations)


def _numbered(message: str, commits: int, last: bool) -> str:
    return message if last and not commits else f"{message} ({commits + 1}{', the last' if last else ''})"


def _commit(target: Target, operations: list[Any], message: str) -> int:
    """Make a commit; return 1, or 0 if there is nothing to commit."""
    if not operations:
        return 0

    def request() -> None:
        target.api.create_commit(
            target.repository, operations, commit_message=message, repo_type="dataset", revision=target.branch
        )

    with hub_errors(target.url):
        patiently(request)
    return 1


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the client's own bars and lines from the screen: progress is shown by the caller."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    client, shown = logging.getLogger("huggingface_hub"), not are_progress_bars_disabled()
    level = client.level
    client.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # between the client and its HTTP library
            yield
    finally:
        client.setLevel(level)
        if shown:
            enable_progress_bars()
