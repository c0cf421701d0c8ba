"""Where everything lies inside a cache, and the names of its scalars: names only, no reading or writing.

::

    <cache>/zarr.json                                   the cache's manifest
    <cache>/encodings/<encoding>/zarr.json              the encoding's manifest, written last
    <cache>/encodings/<encoding>/parts/00000/           files.arrow, shards.arrow: one part per run that added documents
    <cache>/encodings/<encoding>/sequences/00000.arrow  the sequences of shard 0
    <cache>/encodings/<encoding>/tokenizer/             tokenizer files, no code
    <cache>/encodings/<encoding>/teachers/<teacher>/    zarr.json, arrays, receipts/00000.json, gathered/, files
    <cache>/encodings/<encoding>/alignments/<name>/     zarr.json, tokenizer/, tables/00000.arrow, receipts/00000.json

Names come from strangers' files, so they are checked here: letters, digits, dot, dash and
underscore, never a path.
"""

import re
from collections.abc import Iterable

from cache_tools.errors import FormatError
from cache_tools.storage import StorePath

MANIFEST = "zarr.json"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def checked_name(name: str) -> str:
    """Return ``name`` if it is a legal encoding, teacher or array name.

    Raises:
        FormatError: it is not, for instance because it holds a slash.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise FormatError(
            f"{name!r} is not a legal name",
            expected="letters, digits, '.', '_' and '-', starting with a letter or digit",
            found=repr(name),
            why="names become folders inside the cache",
        )
    return name


def encodings_folder(cache: StorePath) -> StorePath:
    """Return the folder of all encodings."""
    return cache / "encodings"


def encoding_folder(cache: StorePath, encoding: str) -> StorePath:
    """Return the folder of one encoding."""
    return encodings_folder(cache) / checked_name(encoding)


def cache_of(encoding: StorePath) -> StorePath:
    """Return the cache in which the folder of an encoding lies."""
    return encoding.parent.parent


def sequences_file(encoding: StorePath, shard: int) -> StorePath:
    """Return the Arrow file that holds the sequences of a shard."""
    return encoding / "sequences" / f"{shard:05d}.arrow"


def shard_table_file(encoding: StorePath, part: int) -> StorePath:
    """Return the Arrow file that lists the shards of one part of an encoding."""
    return encoding / "parts" / f"{part:05d}" / "shards.arrow"


def file_table_file(encoding: StorePath, part: int) -> StorePath:
    """Return the Arrow file that lists the corpus files of one part of an encoding."""
    return encoding / "parts" / f"{part:05d}" / "files.arrow"


TOKENIZER = "tokenizer"
"""Folder of the tokenizer's files, relative to the encoding."""


def teacher_folder(encoding: StorePath, teacher: str) -> StorePath:
    """Return the folder of one teacher's predictions."""
    return encoding / "teachers" / checked_name(teacher)


def alignments_folder(encoding: StorePath) -> StorePath:
    """Return the folder of an encoding's alignments with other tokenizers."""
    return encoding / "alignments"


def alignment_folder(encoding: StorePath, alignment: str) -> StorePath:
    """Return the folder of one alignment; its receipts lie where a teacher's do."""
    return alignments_folder(encoding) / checked_name(alignment)


def alignment_table_file(alignment: StorePath, shard: int) -> StorePath:
    """Return the Arrow file that holds the aligned sequences of a shard."""
    return alignment / "tables" / f"{shard:05d}.arrow"


def receipts_folder(teacher: StorePath) -> StorePath:
    """Return the folder of a teacher's receipts."""
    return teacher / "receipts"


def receipt_file(teacher: StorePath, shard: int) -> StorePath:
    """Return the receipt of one shard; it exists if and only if the shard is committed."""
    return receipts_folder(teacher) / receipt_name(shard)


def receipt_name(shard: int) -> str:
    """Return the name of a shard's receipt in its folder."""
    return f"{shard:05d}.json"


GATHERED_SHARDS = 1024
"""Shards whose receipts lie together in one file of gathered receipts."""


def gathered_folder(teacher: StorePath) -> StorePath:
    """Return the folder of a teacher's gathered receipts."""
    return teacher / "gathered"


def gathered_name(number: int, sha256: str) -> str:
    """Return the name of the file with the receipts of shards from ``number`` · GATHERED_SHARDS on."""
    return f"{number:05d}-{sha256[:32]}.arrow"


def gathered_parts(name: str) -> tuple[int, str] | None:
    """Return number and beginning of the hash from such a name; None for any other name."""
    match = re.fullmatch(r"(\d{5,12})-([0-9a-f]{32})\.arrow", name)
    return (int(match[1]), match[2]) if match else None


HEAD = "head.safetensors"
"""File of the teacher's LM head, kept when its last hidden state is; relative to the teacher."""

RANKS = "ranks.safetensors"
"""File of the teacher's rank tables, kept if its codec needs them; relative to the teacher."""


def transform_key(layer: str) -> str:
    """Return the key, relative to the teacher, of the file that a quantised hidden layer is decoded with."""
    return f"transforms/{checked_name(layer)}.safetensors"


def array_metadata_file(teacher: StorePath, array: str) -> StorePath:
    """Return the ``zarr.json`` of an array."""
    return teacher / array / MANIFEST


def objects_folder(teacher: StorePath, array: str) -> StorePath:
    """Return the folder of an array's objects."""
    return teacher / array / "c"


def shard_key(array: str, shard: int, dimensions: int) -> str:
    """Return the key, relative to the teacher, of the one object of an array's shard."""
    return "/".join([array, "c", str(shard), *["0"] * (dimensions - 1)])


# Scalars: numbers that are kept for each position, in nats; each is an array of the teacher. FORMAT.md defines them.

LOGSUMEXP = "logsumexp"
"""Log-normaliser of the logits."""
ENTROPY = "entropy"
"""Entropy of the whole distribution."""
GOLD_LOGPROB = "gold_logprob"
"""Log-probability of the gold token."""

SCALARS = (LOGSUMEXP, ENTROPY, GOLD_LOGPROB)
"""Kept at every position."""

GOLD_RANK = "gold_rank"
"""How many tokens are likelier than the gold token; a count."""

TAIL_MEAN, TAIL_VARIANCE, TAIL_MINIMUM = "tail_mean", "tail_variance", "tail_minimum"
TAIL_SCALARS = (TAIL_MEAN, TAIL_VARIANCE, TAIL_MINIMUM)
"""Statistics of the logits outside the k most likely, for temperatures at which those matter; the variance in nats²."""

TEMPERED = "logsumexp_t"
"""Beginning of the names of scalars that hold log-normalisers at other temperatures; the temperature follows."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3
"""Temperatures that a file may name. Logits of a thousand, divided by the lowest, still fit the steps in which scalars
are stored; at the highest, distributions are uniform to within float32."""


def tempered_name(temperature: float) -> str:
    """Return the scalar that holds the log-normaliser of the logits divided by a temperature."""
    return f"{TEMPERED}{temperature:g}"


def temperature_of(scalar: str) -> float | None:
    """Return the temperature whose log-normaliser a scalar holds; None if it holds something else."""
    match = re.fullmatch(TEMPERED + r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", scalar)
    return float(match[1]) or None if match else None


def temperatures_of(scalars: Iterable[str]) -> tuple[float, ...]:
    """Return the temperatures that a capture declared, from the names of its scalars."""
    return tuple(temperature for name in scalars if (temperature := temperature_of(name)))
