"""Write ``docs/configuration.md``, every key of both files, from the models that check them.

Run ``python docs/configuration.py``; a test checks that the page is current. What a key means stands in the
docstring of its model, which is where its author changes it.
"""

import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from cache_tools.configuration import Config
from pipeline.config.capture_file import CaptureConfig
from pipeline.config.generation import GenerateConfig
from trainer.config.student_file import StudentConfig

HEAD = """# Configuration

Every key of the capture file, the student file and the generation file, made from the models that check them
(`python docs/configuration.py`). An unknown key is refused. On the command line, `--set teachers.0.target.k=32` changes
a key of any of them.
"""
FILES = {
    "The capture file": CaptureConfig,
    "The student file": StudentConfig,
    "The generation file": GenerateConfig,
}


def reference() -> str:
    """Return the page."""
    files = (f"\n## {title}\n" + "".join(_section(*block) for block in blocks(model)) for title, model in FILES.items())
    return HEAD + "".join(files)


def blocks(model: type[Config], path: str = "") -> Iterator[tuple[str, type[Config]]]:
    """Yield a model and those inside it, each with the key that leads there; lists end in ``[]``."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in _inner_models(field.annotation):
            listed = "[]" if get_origin(field.annotation) is tuple else ""
            yield from blocks(inner, f"{path}.{name}{listed}".lstrip("."))


def meanings(model: type[Config]) -> tuple[str, dict[str, str]]:
    """Return what a model's docstring says of the block, and of each key under ``Attributes:``, inherited ones too."""
    inherited = {
        name: text for base in model.__bases__ if base is not Config for name, text in meanings(base)[1].items()
    }
    about, _, attributes = inspect.cleandoc(model.__doc__ or "").partition("\nAttributes:\n")
    keys = re.split(r"^    (\w+): ", attributes, flags=re.M)[1:]
    own = {name: " ".join(text.split()) for name, text in zip(keys[::2], keys[1::2], strict=True)}
    return about.strip(), inherited | own


def _section(path: str, model: type[Config]) -> str:
    about, meaning_of = meanings(model)
    rows = [_row(name, field, meaning_of[name]) for name, field in model.model_fields.items()]
    kind = model.model_fields["kind"].annotation if path.endswith(".engine") else None
    title = f"\n### `{path}`{f', kind: {get_args(kind)[0]}' if kind else ''}\n" if path else ""
    table = "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *rows])
    return f"{title}\n{about.replace('``', '`')}\n\n{table}\n"


def _row(name: str, field: FieldInfo, meaning: str) -> str:
    default = "**required**" if field.is_required() else _shown(field.get_default(call_default_factory=True))
    cells = (f"`{name}`", _type_name(field.annotation), default, meaning.replace("``", "`"))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(default: Any) -> str:
    if isinstance(default, Config):
        return "see below"
    empty = {"None": "null", "()": "[]"}.get(str(default))
    return f"`{empty or (str(default).lower() if isinstance(default, bool) else default)}`"


def _type_name(annotation: Any) -> str:
    """Return what may be written there, in words of YAML."""
    arguments, origin = (
        [argument for argument in get_args(annotation) if argument is not type(None)],
        get_origin(annotation),
    )
    if origin is Literal:
        return ", ".join(f"`{str(argument).lower() if argument is True else argument}`" for argument in arguments)
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        return "block"
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}".replace("list of block", "list of blocks")
    if origin is Annotated:
        return _type_name(arguments[0])
    if annotation is dict or origin is dict:
        return "mapping"
    names = {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}
    if annotation in names or not arguments:
        return names.get(annotation, "text")
    return " or ".join(dict.fromkeys(map(_type_name, arguments)))


def _inner_models(annotation: Any) -> Iterator[type[Config]]:
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        yield annotation
    for argument in get_args(annotation):
        yield from _inner_models(argument)


if __name__ == "__main__":
    (Path(__file__).parent / "configuration.md").write_text(reference())
