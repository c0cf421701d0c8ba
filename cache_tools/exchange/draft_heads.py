"""A teacher's hidden states as files for the trainers of draft heads.

Every state is checked before it is written (``draft_states``), and a shard whose files are finished is not read again.
Memory: what ``draft_states`` holds, one file, and the tokens of a shard.
"""

from dataclasses import dataclass

import numpy as np

from cache_tools.exchange.draft_states import DraftOptions, DraftStates, open_states, require_states, samples_of
from cache_tools.exchange.finished_files import FinishedFiles, origin_of, size_and_hash
from cache_tools.format.fingerprint import fingerprint
from cache_tools.format.manifest import SPLITS, Split
from cache_tools.format.receipts import TARGETS
from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.draft_files import (
    SPECFORGE_SHIFT,
    dataset_index,
    dataset_part,
    sample_file,
    sample_name,
    token_counts_file,
)
from cache_tools.separate_places import require_outside
from cache_tools.storage import StorePath, sha256
from cache_tools.store.predictions import hidden_array
from cache_tools.store.teacher import CachedTeacher

SPLIT_NAMES: dict[Split, str] = {"train": "train", "held_out": "test"}


@dataclass(frozen=True)
class DraftReport:
    """What an export of hidden states wrote.

    Attributes:
        format: The trainer.
        target: The folder.
        sequences: Files of states.
        tokens: Tokens with states.
        training_share: Share of the sequences that are of the training split; they come first.
        layer_ids: Numbers of the auxiliary layers as the trainer counts them.
        error_nats: Error of the row that is nearest its tolerance, of rows that were written by this command.
        tolerance_nats: That row's tolerance.
        bytes_per_value: Bytes of the files for each number of a state.
        cache_bytes_per_value: Bytes of the same layers in the cache for each number.
    """

    format: str
    target: str
    sequences: int
    tokens: int
    training_share: float
    layer_ids: tuple[int, ...]
    error_nats: float
    tolerance_nats: float
    bytes_per_value: float
    cache_bytes_per_value: float


def export_states(teacher: CachedTeacher, target: StorePath, options: DraftOptions, reporter: Reporter) -> DraftReport:
    """Write a teacher's hidden states for a trainer of draft heads, or continue an export that was stopped.

    Args:
        teacher: The teacher.
        target: The folder of the files: new, or that of the same export.
        options: What the user asks of the export.
        reporter: Shown what happens.

    Raises:
        ConfigError: the teacher does not keep what a draft head needs.
        IdentityError: states do not give the stored log-probabilities, or the folder holds something else.
        IncompleteError: a shard has not been captured.
        ModelError: the model's folder holds no final norm.
    """
    encoding = teacher.encoding
    require_outside(target, encoding.path.parent.parent, "the export")
    export = open_states(teacher, options)
    splits = [options.split] if options.split else [split for split in SPLITS if encoding.split_shards(split)]
    shards = [(split, shard) for split in splits for shard in encoding.split_shards(split)]
    _require_shards(export, [shard for _, shard in shards], reporter)
    finished = FinishedFiles(target, _identity(export, splits))
    sequences = [encoding.shards[shard].sequences for _, shard in shards]
    firsts = np.cumsum([0, *sequences])[:-1].tolist()
    train = sum(count for (split, _), count in zip(shards, sequences, strict=True) if split == "train")
    reporter.stage(f"exporting hidden states of {teacher.name}", sum(e.positions for e in encoding.shards), "positions")
    size = 0
    for (split, shard), first in zip(shards, firsts, strict=True):
        number = first if options.trainer == "speculators" or split == "train" else first - train
        size += _write_shard(export, finished, split, shard, number)
        reporter.advance(encoding.shards[shard].positions)
    if options.trainer == "speculators":
        _write_dataset(export, finished, [shard for _, shard in shards])
    tokens = sum(encoding.shards[shard].positions for _, shard in shards)
    values = max(1, tokens * export.width * (len(export.layers) + 1))
    shift = SPECFORGE_SHIFT if options.trainer == "specforge" else 0
    return DraftReport(
        format=options.trainer,
        target=str(target),
        sequences=sum(sequences),
        tokens=tokens,
        training_share=train / max(1, sum(sequences)),
        layer_ids=tuple(int(layer) - shift for layer in export.layers),
        error_nats=export.worst.error_nats,
        tolerance_nats=export.worst.tolerance_nats,
        bytes_per_value=size / values,
        cache_bytes_per_value=_stored_bytes(export, [shard for _, shard in shards]) / values,
    )


def _require_shards(export: DraftStates, shards: list[int], reporter: Reporter) -> None:
    """Refuse shards that lack predictions or states, or whose first tokens have no states."""
    for group in (TARGETS, *map(hidden_array, (*export.layers, "last"))):
        export.teacher.require_shards(shards, group)
    reporter.stage("reading tokens", len(shards), "shards")
    for shard in shards:
        require_states(export.teacher.encoding.sequences(shard))
        reporter.advance(1)


def _identity(export: DraftStates, splits: list[Split]) -> dict[str, object]:
    teacher, norm = export.teacher, export.norm
    return {
        "format": export.options.trainer,
        "layers": list(export.layers),
        "teacher": {"name": teacher.name, "fingerprint": teacher.manifest.fingerprint},
        "sequences": teacher.encoding.manifest.contents_fingerprint,
        "splits": list(splits),
        "norm": None if norm is None else {"weight": sha256(norm.weight.tobytes()), "epsilon": norm.epsilon},
    }


def _write_shard(export: DraftStates, finished: FinishedFiles, split: Split, shard: int, first: int) -> int:
    """Write the files of a shard's sequences unless they are finished; return their bytes."""
    part, origin = f"states-{shard:05d}", origin_of(export.teacher, shard, first=first)
    size = finished.finished_bytes(part, origin)
    if size is not None:
        return size
    contents: dict[str, tuple[int, str]] = {}
    for number, sample in enumerate(samples_of(export, shard), first):
        name = sample_name(export.options.trainer, SPLIT_NAMES[split], number)
        content = sample_file(export.options.trainer, sample)
        finished.write(name, content)
        contents[name] = size_and_hash(content)
    return finished.finish(part, origin, contents)


def _write_dataset(export: DraftStates, finished: FinishedFiles, shards: list[int]) -> None:
    """Write the dataset of tokens, one part for each shard, and how often each token occurs."""
    encoding = export.teacher.encoding
    counts = np.zeros(encoding.manifest.vocabulary_size, np.int64)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        tokens = [s.input_ids[: s.num_positions].astype(np.int64) for s in encoding.sequences(shard)]
        counts += np.bincount(np.concatenate(tokens), minlength=len(counts))
        finished.write(name, dataset_part(tokens))
    rows = fingerprint({"sequences": encoding.manifest.contents_fingerprint, "shards": shards})
    for name, content in (dataset_index(names, rows) | {"token_freq.pt": token_counts_file(counts)}).items():
        finished.write(name, content)


def _stored_bytes(export: DraftStates, shards: list[int]) -> int:
    """Return the bytes of the exported layers in the cache."""
    arrays = tuple(f"{hidden_array(layer)}/" for layer in (*export.layers, "last"))
    receipts = [export.teacher.receipt(shard) for shard in shards]
    return sum(
        o.bytes for receipt in receipts if receipt for key, o in receipt.objects.items() if key.startswith(arrays)
    )
