"""The folder of completions: parts in order, each written whole, then listed with its hash in ``policy.json``.

A part is a fixed number of completions in the order of the prompts, and the batches inside it depend on nothing else.
So a generation that was killed anywhere writes the same bytes when it is continued, on the same machine with the same
versions and batch size: a part that is listed is kept, and any other is written again from its beginning.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from cache_tools.errors import IdentityError
from cache_tools.format.fingerprint import differences
from cache_tools.format.manifest import Policy
from cache_tools.json_output import json_text
from cache_tools.mappings import Identity, JsonObject
from cache_tools.storage import file_sha256, sha256, write_object
from pipeline.corpus.policies import RECORD, CompletionFile, GenerationRecord, PromptsRecord, read_record


def part_name(part: int) -> str:
    """Return the name of the file of a part."""
    return f"completions-{part:05}.jsonl"


def open_folder(folder: Path, policy: Policy, prompts: PromptsRecord, part_completions: int) -> GenerationRecord:
    """Return what a folder holds of a generation, and begin it if it holds nothing.

    Args:
        folder: The output.
        policy: The model that writes.
        prompts: What it completes.
        part_completions: Completions in each file.

    Raises:
        IdentityError: the folder holds completions by another model, of other prompts, or with other settings; or a
            file of it was changed.
        FormatError: its ``policy.json`` cannot be read.
    """
    parts = -(-prompts.count * policy.sampling.samples_per_prompt // part_completions)
    fresh = GenerationRecord(policy=policy, prompts=prompts, part_completions=part_completions, parts=parts)
    stored = read_record(folder)
    if stored is None:
        _refuse_others(folder)
        write_record(folder, fresh)
        return fresh
    changes = differences(_compared(stored), _compared(fresh))
    if changes:
        raise IdentityError(
            "the folder holds completions by another model, of other prompts or with other settings",
            where=folder,
            expected="what its policy.json says",
            found="; ".join(changes),
            why="one file of the corpus would have been written by another model than the next",
            fix="Restore the settings, or choose another output",
        )
    return stored.model_copy(update={"files": _checked(folder, stored)})


def write_part(folder: Path, record: GenerationRecord, part: int, lines: Iterable[JsonObject]) -> GenerationRecord:
    """Write the file of a part, then list it; return the new record.

    Args:
        folder: The output.
        record: What the folder holds.
        part: Number of the part.
        lines: Its completions, see ``run.py``.
    """
    entries = list(lines)
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in entries).encode()
    write_object(folder / part_name(part), content)
    file = CompletionFile(
        sha256=sha256(content),
        completions=len(entries),
        prompt_tokens=sum(line["prompt_tokens"] for line in entries),
        completion_tokens=sum(line["completion_tokens"] for line in entries),
        stopped=sum(line["stop"] == "token" for line in entries),
    )
    listed = record.model_copy(update={"files": dict(sorted((record.files | {part_name(part): file}).items()))})
    write_record(folder, listed)
    return listed


def write_record(folder: Path, record: GenerationRecord) -> None:
    """Write ``policy.json``."""
    write_object(folder / RECORD, (json_text(record) + "\n").encode())


def _compared(record: GenerationRecord) -> Identity:
    """Return what must be the same for a generation to be continued."""
    identity = record.model_dump(mode="json", include={"prompts", "part_completions", "parts"})
    return identity | {"policy": record.policy.identity}


def _checked(folder: Path, record: GenerationRecord) -> dict[str, CompletionFile]:
    """Return the listed files that are there.

    Raises:
        IdentityError: one of them was changed.
    """
    present = {name: file for name, file in record.files.items() if (folder / name).is_file()}
    for name, file in present.items():
        actual = file_sha256(folder / name)
        if actual != file.sha256:
            raise IdentityError(
                "this file does not hold what the model wrote",
                where=folder / name,
                expected=f"sha256 {file.sha256[:12]}…",
                found=f"{actual[:12]}…",
                why="tokens that the model did not draw would be taken for its own",
                fix="Delete the file, and run the same command again: it writes the completions anew",
            )
    return present


def _refuse_others(folder: Path) -> None:
    others = sorted(path.name for path in folder.glob("*.jsonl")) if folder.is_dir() else []
    if others:
        raise IdentityError(
            "the output holds files of which no policy.json says who wrote them",
            where=folder,
            found=", ".join(others[:3]),
            why="a corpus would take them for completions of this model",
            fix="Choose another output",
        )
