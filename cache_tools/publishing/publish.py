"""Publish a cache: check it, make the repository, refuse to mix two caches, send what is lacking, look again.

Nothing is sent before everything that can be known beforehand is: that the cache has no damage, that there is a token,
that a repository that is to be private is, that what lies there is this cache or none. Nothing is deleted on the Hub:
files that are no part of the cache are counted and left.
"""

from dataclasses import dataclass

from cache_tools.errors import ConfigError, DamageError, IdentityError, StorageError
from cache_tools.format import layout
from cache_tools.hub.places import parse
from cache_tools.hub.refusals import LOGIN, hub_errors, patiently, status_of
from cache_tools.maintenance.verify import shards_to_check, verify
from cache_tools.progress.reporter import Reporter
from cache_tools.publishing.card import card_text
from cache_tools.publishing.facts import card_facts
from cache_tools.publishing.files import cache_files
from cache_tools.publishing.sending import Card, Outgoing, Target, lacking, open_target, send
from cache_tools.quantities import counted
from cache_tools.storage import object_exists, pinned, read_object, store_path
from cache_tools.store.reader import Cache

OWN_FILES = (".gitattributes", "README.md")
"""Files of a repository that are no part of a cache and belong there."""


@dataclass(frozen=True)
class Request:
    """What a publication is asked.

    Attributes:
        repository: Owner and name of a dataset repository.
        branch: Branch to commit to; made if there is none of this name.
        private: Make the repository private if it is new, and refuse a public one.
        message: Summary of the commits.
        licence: Identifier of a licence for the card; None to state none, or the one that the card has.
    """

    repository: str
    branch: str = "main"
    private: bool = False
    message: str = "Publish a logitcask cache"
    licence: str | None = None


@dataclass(frozen=True)
class Publication:
    """What a publication did.

    Attributes:
        url: The cache at its new commit.
        commits: Commits that were made; 0 if everything was there.
        files: Files of the cache and its card.
        bytes: Their size.
        sent_files: Files that were sent.
        sent_bytes: Their size.
        other_files: Files of the repository that are no part of the cache.
    """

    url: str
    commits: int
    files: int
    bytes: int
    sent_files: int
    sent_bytes: int
    other_files: int


def repository_of(url: str) -> str:
    """Return owner and name of the repository that a URL names.

    Raises:
        ConfigError: it does not name a whole dataset repository.
    """
    try:
        uri = parse(url) if url.startswith("hf://") else None
    except ValueError:
        uri = None
    if uri is None or uri.type != "dataset" or uri.revision or uri.path_in_repo:
        raise ConfigError(
            "this is not a place to publish to",
            where=url,
            expected="hf://datasets/OWNER/NAME; a branch is named by --revision",
            found=f"a {uri.type} or a part of one" if uri and uri.type != "dataset" else "another URL",
            fix="To write to a disk or bucket, use 'logitcask copy'",
        )
    return str(uri.id)


def publish(cache: Cache, request: Request, reporter: Reporter) -> Publication:
    """Send a cache to the Hub, or what an earlier call did not.

    Raises:
        DamageError: the cache is damaged.
        ConfigError: there is no token, the repository is public and must not be, or the header of its card is unusable.
        IdentityError: the repository holds another cache.
        StorageError: the Hub refused.
    """
    reporter.stage("checking the cache", shards_to_check(cache) or None, "shards")
    _require_sound(cache, reporter)
    reporter.stage("looking at the Hub", None)
    target = open_target(request.repository, request.branch)
    _require_token()
    _make_repository(target, request)
    _require_same_cache(cache, f"{target.url}@{target.commit_now()}")
    reporter.stage("reading receipts and manifests", None)
    facts, files = card_facts(cache), cache_files(cache)
    there = target.listing()
    present = _present_card(target) if "README.md" in there else None
    card = Card(card_text(facts, request.repository, request.licence, present))
    everything: list[Outgoing] = [*files, card]
    missing = lacking(everything, there)
    total = sum(file.size_bytes for file in everything)
    left = sum(file.size_bytes for file in missing)
    reporter.stage("publishing", total, "bytes", done=total - left)
    commits = send(target, missing, request.message, reporter.advance) if missing else 0
    _require_arrived(target, everything)
    own = {file.key for file in everything}
    others = [path for path in there if path not in own and path not in OWN_FILES]
    url = f"{target.url}@{target.commit_now()}"
    return Publication(url, commits, len(everything), total, len(missing), left, len(others))


def _require_sound(cache: Cache, reporter: Reporter) -> None:
    """Refuse a damaged cache; an unfinished one may be published, and its card says so."""
    damage = [problem for problem in verify(cache.path, progress=reporter.part) if problem.kind == "damage"]
    if damage:
        raise DamageError(
            f"the cache is damaged: {damage[0].message.rstrip('.')}",
            where=damage[0].where,
            found=counted(len(damage), "problem"),
            fix=f"Run 'logitcask repair {cache.path}' and capture again",
        )


def _require_token() -> None:
    from huggingface_hub import get_token

    if get_token() is None:
        raise ConfigError("there is no token for the Hub", why="only its owner may write into a repository", fix=LOGIN)


def _make_repository(target: Target, request: Request) -> None:
    """Make the repository and the branch unless they are there."""
    api, name = target.api, target.repository
    with hub_errors(target.url):
        try:
            info = patiently(lambda: api.dataset_info(name, timeout=30))
        except Exception as error:
            if status_of(error) not in (401, 404):
                raise
            patiently(lambda: api.create_repo(name, repo_type="dataset", private=request.private, exist_ok=True))
            info = patiently(lambda: api.dataset_info(name, timeout=30))
        if request.branch != "main":
            patiently(lambda: api.create_branch(name, branch=request.branch, repo_type="dataset", exist_ok=True))
    if request.private and not info.private:
        raise StorageError(
            "the repository is there already, and it is public",
            where=target.url,
            why="everybody could read the text of the corpus",
            fix="Make it private on its page on the Hub, choose another name, or leave --private out",
        )


def _require_same_cache(cache: Cache, url: str) -> None:
    """Refuse a repository that holds other encodings or teachers of the same names, or a later state of them."""
    place = pinned(store_path(url))
    if not object_exists(place / layout.MANIFEST):
        return
    there = Cache(place)
    for name in sorted(set(there.encodings) & set(cache.encodings)):
        ours, theirs = cache.encoding(name), there.encoding(name)
        later = theirs.manifest.parts != ours.manifest.parts[: len(theirs.manifest.parts)]
        if ours.manifest.fingerprint != theirs.manifest.fingerprint or later:
            raise _mixed(
                "encoding", name, ours.manifest.contents_fingerprint, theirs.manifest.contents_fingerprint, url
            )
        for teacher in sorted(set(ours.teachers) & set(theirs.teachers)):
            mine, other = (encoding.teacher(teacher).manifest.fingerprint for encoding in (ours, theirs))
            if mine != other:
                raise _mixed("teacher", teacher, mine, other, url)


def _mixed(what: str, name: str, ours: str, theirs: str, url: str) -> IdentityError:
    return IdentityError(
        f"the repository holds another {what} under the name {name!r}, or a later state of it",
        where=url,
        expected=f"{ours[:12]}…",
        found=f"{theirs[:12]}…",
        why="the repository would mix two caches",
        fix="Choose another repository, or another branch with --revision",
    )


def _present_card(target: Target) -> str:
    place = pinned(store_path(f"{target.url}@{target.commit_now()}"))
    return read_object(place / "README.md").decode(errors="replace")


def _require_arrived(target: Target, files: list[Outgoing]) -> None:
    """Look at the Hub once more: a file that its rules left out, or that somebody has changed, is missed now."""
    absent = lacking(files, target.listing())
    if absent:
        raise StorageError(
            f"the Hub does not hold {counted(len(absent), 'file')} as they were sent",
            where=target.url,
            found=absent[0].key,
            why="a .gitignore there may leave files out, or somebody wrote at the same time",
            fix="Run the same command again; it sends what is missing",
        )
