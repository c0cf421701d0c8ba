"""Write ``docs/reference/json.md``, what each command prints with ``--json``, from the dataclasses of the results.

Run ``python docs/json_page.py``; a test checks that the page is current, and that every command with ``--json`` is on
it. The meaning of a key is taken from the docstring of its class, beside the code that sets it.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from configuration import meanings
from pydantic import BaseModel

from cache_tools.json_output import Json

RESULTS = {
    "demo": ["pipeline.demo.run:DemoResult", "pipeline.demo.real:RealDemoResult"],
    "generate": ["pipeline.generation.run:GenerateResult"],
    "plan": ["pipeline.planning.capture_plan:CapturePlan"],
    "import": ["cache_tools.exchange.summary:ImportReport"],
    "vocabulary": ["cache_tools.vocabularies.manifest:VocabularyManifest"],
    "align": ["cache_tools.alignments.coverage:AlignmentReport"],
    "evaluate": ["trainer.evaluation.results:EvaluateResult", "trainer.evaluation.results:AlignedEvaluateResult"],
    "inspect": ["cache_tools.inspection.summary:CacheSummary"],
    "show": [
        "cache_tools.inspection.views:SequenceView",
        "cache_tools.inspection.views:PositionView",
        "cache_tools.inspection.search:SearchResult",
    ],
    "diff": [
        "cache_tools.comparison.pair:Comparison",
        "cache_tools.comparison.reference:ReferenceComparison",
    ],
    "audit": ["pipeline.audit.run:Audit"],
    "verify": ["cache_tools.maintenance.verify:VerifyResult"],
    "repair": ["cache_tools.maintenance.repair:RepairResult"],
    "export": ["cache_tools.exchange.exporting:ExportReport"],
}
"""The results of each command with ``--json``, in the order of the commands; of several, what decides is in WHEN."""

WHEN = {
    "DemoResult": "without `--real`",
    "RealDemoResult": "with `--real`",
    "EvaluateResult": "without `--alignment`",
    "AlignedEvaluateResult": "with `--alignment`",
    "SequenceView": "for a sequence",
    "PositionView": "with `--position`",
    "SearchResult": "for a search",
    "Comparison": "without `--reference`",
    "ReferenceComparison": "with `--reference`",
}

HEAD = """# JSON output

What the commands print with `--json`: one object on standard output, while progress goes to standard error. Made from
the dataclasses of the results (`python docs/json_page.py`). Every key is always there; infinity and NaN, which JSON
lacks, are `null`. Later versions may add keys.
"""

WORDS = {int: "integer", float: "number", str: "text", bool: "boolean", types.NoneType: "`null`"}


@dataclass(frozen=True)
class Key:
    """A key of an object: its name, its type and what it means."""

    name: str
    annotation: Any
    meaning: str


def reference() -> str:
    """Return the page."""
    roots = {command: [_imported(place) for place in places] for command, places in RESULTS.items()}
    parts = [HEAD]
    for command, kinds in roots.items():
        parts.append(f"\n## `logitcask {command} --json`\n")
        lines = [f"{_link(kind)}{f' {WHEN[kind.__name__]}' if len(kinds) > 1 else ''}" for kind in kinds]
        parts.append(f"\nPrints {'; '.join(lines)}.\n")
    parts.append("\n## Objects\n")
    parts += [_section(kind) for kind in _reachable(_roots())]
    return "".join(parts)


def keys_of(kind: type) -> Iterator[Key]:
    """Yield the keys of a result in JSON; a part that is marked as flat contributes its own.

    Raises:
        KeyError: the docstring does not say what a field means.
    """
    described: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        described |= meanings(base)[1]  # type: ignore[arg-type]
    hints = get_type_hints(kind)
    flat = {field.name: bool(field.metadata.get("flat")) for field in fields(kind)} if is_dataclass(kind) else {}
    for name in flat or kind.model_fields:  # type: ignore[attr-defined]
        if not flat.get(name):
            yield Key(name, hints[name], described[name])
        elif is_dataclass(hints[name]):
            yield from keys_of(hints[name])
        else:
            yield Key("…", get_args(hints[name])[1], described[name])


def _roots() -> tuple[type, ...]:
    return tuple(_imported(place) for places in RESULTS.values() for place in places)


def _imported(place: str) -> type:
    module, name = place.split(":")
    kind: type = getattr(import_module(module), name)
    return kind


@cache
def _reachable(kinds: tuple[type, ...]) -> list[type]:
    """Return objects and, after each, those inside it; each once."""
    order: dict[type, None] = {}
    for kind in kinds:
        _visit(kind, order)
    return list(order)


def _visit(kind: type, order: dict[type, None]) -> None:
    if kind not in order:
        order[kind] = None
        for key in keys_of(kind):
            for inner in _objects_in(key.annotation):
                _visit(inner, order)


def _objects_in(annotation: Any) -> Iterator[type]:
    if _is_object(annotation):
        yield annotation
    elif annotation != Json:
        for argument in get_args(annotation):
            yield from _objects_in(argument)


def _is_object(annotation: Any) -> bool:
    is_class = isinstance(annotation, type) and get_origin(annotation) is None
    return is_class and (is_dataclass(annotation) or issubclass(annotation, BaseModel))


def _title(kind: type) -> str:
    """Return the heading of an object: the name of its class, with the module's where two classes share a name."""
    namesakes = [other for other in _reachable(_roots()) if other.__name__ == kind.__name__]
    return kind.__name__ if len(namesakes) == 1 else f"{kind.__name__} of {kind.__module__.rpartition('.')[2]}"


def _link(kind: type) -> str:
    title = _title(kind)
    return f"[{title}](#{title.lower().replace(' ', '-')})"


def _section(kind: type) -> str:
    about = " ".join(meanings(kind)[0].split()).replace("``", "`")  # type: ignore[arg-type]
    rows = [
        f"| {_cell(f'`{key.name}`')} | {_cell(_type_name(key.annotation))} | {_cell(key.meaning)} |"
        for key in keys_of(kind)
    ]
    return "\n".join([f"\n### {_title(kind)}\n", f"{about}\n", "| key | type | meaning |", "|---|---|---|", *rows, ""])


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def _type_name(annotation: Any) -> str:
    """Return a type in words of JSON."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == Json or annotation in (Any, object):
        return "any value"
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        kinds = sorted(arguments, key=lambda kind: kind is types.NoneType)
        return " or ".join(dict.fromkeys(map(_type_name, kinds)))
    if origin in (list, tuple):
        return _list_name(arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"object: {_type_name(arguments[1])} by name"
    return _link(annotation) if _is_object(annotation) else WORDS.get(annotation, "text")


def _list_name(arguments: tuple[Any, ...]) -> str:
    kinds = [kind for kind in arguments if kind is not Ellipsis]
    if len(kinds) == 1:
        return f"list of {_type_name(kinds[0])}"
    return f"list of {', '.join(map(_type_name, kinds))}, in this order"


if __name__ == "__main__":
    (Path(__file__).parent / "reference" / "json.md").write_text(reference())
