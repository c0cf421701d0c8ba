"""Texts of its own for each teacher, and others for the students: teachers that know more together than one by one.

Teachers that were tuned on the same labels agree, and their mean is hardly better than the best of them. So whether a
student gains from several cannot be seen. Here the training texts of a task are cut into equal parts by a hash of their
groups. Each teacher learns the labels of one, students see the last one, and the held-out texts are those of the whole
task. So no teacher has seen a text that students are trained on.

The paper tunes all teachers on the same texts; this is the case in which its claim has most room.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from configs.papers.mtbert.data import digest, write_lines
from pipeline.encoding.held_out import is_held_out

STUDENTS = "students"


def write_parts(corpus: Path, teachers: Sequence[str], held_out_fraction: float, folder: Path) -> None:
    """Cut a task into a file for each teacher and one for the students, which has the held-out texts too.

    Args:
        corpus: Labelled records.
        teachers: Names.
        held_out_fraction: Share of groups that stage one holds out.
        folder: Where ``<teacher>.jsonl`` and ``students.jsonl`` are written.
    """
    owners = (*teachers, STUDENTS)
    records = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    owner_of_each = [
        STUDENTS if is_held_out(record["group"], held_out_fraction) else owners[part(record["group"], len(owners))]
        for record in records
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for owner in owners:
        mine = [record for record, its in zip(records, owner_of_each, strict=True) if its == owner]
        write_lines(folder / f"{owner}.jsonl", mine)


def part(group: str, parts: int) -> int:
    """Return the number of the part that a group belongs to: the same for every corpus."""
    return int(digest(f"part {group}"), 16) % parts
