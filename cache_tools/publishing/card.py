"""The card of a published cache: ``README.md`` with a header that the Hub reads and a text for people.

What logitcask writes stands between two marks. When a cache is published again, that part is replaced, and what people
wrote around it, or added to the header, stays. Names in a cache may come from strangers, so they are shown as plain
text, without anything that Markdown or HTML would act on.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath

import yaml

from cache_tools.errors import ConfigError
from cache_tools.escaping import printable
from cache_tools.mappings import JsonObject
from cache_tools.progress.stage import quantity
from cache_tools.publishing.facts import CacheCard, EncodingCard, TeacherCard
from cache_tools.quantities import counted
from cache_tools.terminal.summary import codec_words

BEGIN, END = "<!-- logitcask: begin (written again by 'logitcask publish') -->", "<!-- logitcask: end -->"
SHOWN_CHARACTERS = 200
"""Longest name that is shown."""

SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
"""Limits of the Hub's size categories, a factor of ten apart."""

TAGS = ("logitcask", "knowledge-distillation", "logits")

NO_LICENCE = (
    "No licence is stated. The text has the licences of its sources, and predictions may fall under the terms of the "
    "teacher's model; ask the owner of this repository before you use either."
)


def card_text(facts: CacheCard, repository: str, licence: str | None, present: str | None = None) -> str:
    """Return the card of a cache.

    Args:
        facts: What it states.
        repository: Owner and name of the repository.
        licence: Identifier of a licence for the header; None for the one in the header so far, or none.
        present: The card that is there.

    Raises:
        ConfigError: the header of the present card cannot be read.
    """
    header, around = _split(present or "")
    fields = {"pretty_name": repository.partition("/")[2], "tags": [], "viewer": False} | header
    tags = fields["tags"] if isinstance(fields["tags"], list) else []
    fields["tags"] = [*tags, *(tag for tag in TAGS if tag not in tags)]
    fields["size_categories"] = [size_category(facts.positions)]
    if licence is not None:
        fields["license"] = licence
    body = f"{BEGIN}\n{_body(facts, repository, fields.get('license'))}\n{END}"
    before, mark, after = around.partition(BEGIN)
    if mark and END in after:
        text = before + body + after.partition(END)[2]
    else:
        text = f"{around.strip()}\n\n{body}\n" if around.strip() else f"{body}\n"
    return f"---\n{yaml.safe_dump(fields, sort_keys=True, allow_unicode=True)}---\n\n{text.lstrip()}"


def _split(present: str) -> tuple[JsonObject, str]:
    """Return the header of a card as keys, and the text below it."""
    parts = re.match(r"---\r?\n(.*?)\r?\n?---\r?\n?(.*)", present, re.DOTALL)
    if parts is None:
        return {}, present
    try:
        header = yaml.safe_load(parts[1]) or {}
        if not isinstance(header, dict):
            raise ValueError("it is not a list of keys")
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            "the header of the repository's card cannot be read",
            where="README.md",
            expected="YAML between two lines of ---",
            found=str(error).splitlines()[0],
            fix="Correct README.md on the Hub, or delete it there",
        ) from error
    return header, parts[2]


def size_category(count: int) -> str:
    """Return the Hub's name for a number of rows."""
    limits = [1000 * 10**power for power in range(len(SIZES))]
    above = sum(count >= limit for limit in limits)
    if above == 0:
        return f"n<{SIZES[0]}"
    return f"n>{SIZES[-1]}" if above == len(SIZES) else f"{SIZES[above - 1]}<n<{SIZES[above]}"


def _body(facts: CacheCard, repository: str, licence: object) -> str:
    names = [teacher.facts.name for encoding in facts.encodings for teacher in encoding.teachers]
    sections = [
        f"# Predictions of {', '.join(map(plain, names)) or 'no teacher yet'}",
        f"Predictions of {counted(len(names), 'teacher')} at {counted(facts.positions, 'position')} of text, kept by "
        "logitcask so that students can be trained on them without running a teacher. The files are a Zarr and Arrow "
        "store; logitcask reads them where they lie.",
        "**This repository holds text.** `sequences/` has every token of the corpus, in order, with the names of its "
        "documents. Whoever can read this repository can read the corpus.",
        f"Licence: {plain(licence)}." if licence else NO_LICENCE,
        *(_encoding(encoding) for encoding in facts.encodings),
        _reading(facts, repository),
    ]
    return "\n\n".join(sections)


def _encoding(encoding: EncodingCard) -> str:
    facts = encoding.facts
    rows = [
        ("objective", facts.objective),
        (
            "vocabulary",
            f"{facts.vocabulary_size:,} tokens, fingerprint `{encoding.tokenizer_fingerprint or 'unknown'}`",
        ),
        ("corpus fingerprint", f"`{encoding.contents_fingerprint}`"),
        ("files of sequences", quantity(facts.sequence_bytes, "bytes")),
    ]
    for split, totals in facts.splits.items():
        counts = [counted(totals.documents, "document"), counted(totals.tokens, "token")]
        rows.append((split, ", ".join([*counts, counted(totals.positions, "position")])))
    tables = [f"## Encoding {plain(facts.name)}", _table(rows)]
    for teacher in encoding.teachers:
        tables += [f"### Teacher {plain(teacher.facts.name)}", _table(list(_teacher_rows(teacher)))]
    return "\n\n".join(tables)


def _teacher_rows(teacher: TeacherCard) -> Iterator[tuple[str, str]]:
    """Yield what the table of a teacher states."""
    facts, means = teacher.facts, teacher.means
    yield "model", _model(facts.model)
    yield "fingerprint", f"`{facts.fingerprint}`"
    yield "kept", f"{facts.target.kind}, k = {facts.target.k}; scalars {plain(', '.join(facts.scalars)) or 'none'}"
    yield "codec", plain(codec_words(facts.target.codec))
    share = f"{facts.shards_done:,} of {counted(facts.shards, 'shard')}, {counted(facts.positions, 'position')}"
    yield "captured", share if facts.shards_done == facts.shards else f"**{share}: not finished**"
    if facts.bytes_per_position is not None:
        yield "size", f"{quantity(facts.stored_bytes, 'bytes')}, {facts.bytes_per_position:.1f} bytes per position"
    if "kept_mass" in means:
        yield "kept mass", f"{means['kept_mass']:.2%} of the probability, on average"
    if "codec_kl_nats" in means:
        largest = means.get("codec_kl_nats_max")
        yield (
            "error made by storing",
            f"{means['codec_kl_nats']:.1e} nats of KL on average"
            + ("" if largest is None else f", {largest:.1e} at most"),
        )
    if teacher.kl_floor_nats is not None:
        yield "KL floor", f"{teacher.kl_floor_nats:.2g} nats: how far a student stays that spreads the rest evenly"
    if "cross_entropy_nats" in means:
        yield "teacher's loss on this text", f"{means['cross_entropy_nats']:.3f} nats per token"
    for layer, spec in facts.hidden.items():
        yield f"hidden states, {plain(layer)}", f"{spec.width:,} values, {spec.codec}"


def _model(model: Mapping[str, object]) -> str:
    parameters, place = model.get("parameters"), str(model.get("name") or "")
    name = (
        PurePath(place).name if PurePath(place).is_absolute() else place
    )  # folders of one's own say nothing to others
    words = [name, *(str(model.get(key) or "") for key in ("revision", "architecture", "dtype"))]
    words = [word for word in words if word]
    words += [f"{parameters:,} parameters"] if isinstance(parameters, int) else []
    return plain(", ".join(words)) or "unknown"


def _reading(facts: CacheCard, repository: str) -> str:
    encoding = next((e for e in facts.encodings if e.teachers), None)
    if encoding is None:
        return ""
    url = f"hf://datasets/{repository}"
    return "\n".join(
        [
            "## Read it",
            "",
            "```python",
            "from logitcask import Cache",
            "",
            f'encoding = Cache("{url}").encoding({encoding.facts.name!r})  # add @COMMIT to read the same bytes again',
            f"teacher = encoding.teacher({encoding.teachers[0].facts.name!r})",
            "sequence = encoding.sequence(0)",
            "targets = teacher.targets(*sequence.rows)  # ids and log_probs: (positions, k)",
            "```",
            "",
            f"`cache: {url}` in a student file trains from it, `logitcask copy {url} FOLDER` brings it to a disk, and",
            f"`logitcask verify --deep {url}` checks every byte and value.",
        ]
    )


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def plain(value: object) -> str:
    """Return text that a page shows as it is."""
    text = " ".join(printable(str(value)[:SHOWN_CHARACTERS]).split())
    return re.sub(r"([\\`*_{}\[\]|~#])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
