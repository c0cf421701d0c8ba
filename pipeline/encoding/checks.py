"""Checks before an encoding is written or continued: the same settings, the same corpus, a manifest."""

from collections.abc import Mapping

from cache_tools.errors import FormatError, IdentityError
from cache_tools.format import layout
from cache_tools.format.fingerprint import differences, fingerprint
from cache_tools.mappings import Identity
from cache_tools.storage import StorePath, names


def check_same(folder: StorePath, stored: Identity, identity: Identity) -> None:
    """Refuse an encoding that was made with another tokenizer or other settings.

    Raises:
        IdentityError: it was.
    """
    if fingerprint(stored) != fingerprint(identity):
        raise IdentityError(
            "the cache holds this encoding with another tokenizer or other settings",
            where=folder,
            expected="the settings it was made with",
            found="; ".join(differences(stored, identity)),
            why="old and new predictions would belong to different tokens",
            fix="Restore the settings, or choose another encoding.name or cache",
        )


def check_files(folder: StorePath, recorded: Mapping[str, str], corpus: Mapping[str, str], append: bool) -> None:
    """Refuse a corpus in which a file is missing or changed, or, unless it is to be appended to, a new one.

    Args:
        folder: The encoding's folder.
        recorded: Hashes of the files that the encoding was made from, by name.
        corpus: Hashes of the corpus' files, by name.
        append: Allow new files.

    Raises:
        IdentityError: the files differ.
    """
    changed = [name for name, sha256 in recorded.items() if corpus.get(name) != sha256]
    new = [] if append else [name for name in corpus if name not in recorded]
    if changed or new:
        lines = [f"{name} is {'changed' if name in corpus else 'gone'}" for name in changed]
        lines += [f"{name} is new" for name in new]
        raise IdentityError(
            "the cache holds this encoding from another corpus",
            where=folder,
            expected="the files it was made from",
            found="; ".join(lines[:5]) + (f" and {len(lines) - 5} more" if len(lines) > 5 else ""),
            why="" if not changed else "old and new predictions would belong to different tokens",
            fix="Restore the corpus (the revision of a dataset), or choose another encoding.name or cache"
            if changed
            else "Run the capture with --append to add what is new, or remove it from the corpus",
        )


def refuse_remains(folder: StorePath) -> None:
    """Refuse to encode where teachers' predictions belong to an encoding that is gone."""
    if any(not name.startswith(layout.MANIFEST) for name in names(folder / "teachers")):
        raise FormatError(
            "the encoding's manifest is missing, but teachers' predictions are present",
            where=folder,
            why="encoding again would discard them",
            fix=f"Restore {layout.MANIFEST} from a copy, or delete this folder to start over",
        )
