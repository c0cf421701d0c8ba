"""Templates of a context: texts in which ``{name}`` stands for a field of the record.

A template has no expressions and no formats: ``{name}`` is the whole language, and ``{{`` and ``}}`` are braces. So
what a teacher read follows from the template and the record alone. Rejected: Jinja, in which a template is a program.
"""

from collections.abc import Mapping
from string import Formatter


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """Return the pieces of a template in order: a literal text, and the field behind it; None where there is none.

    Raises:
        ValueError: braces do not match, or there is something else than a name between them.
    """
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ and }}}} for braces") from error
    if any(name is not None and (not name or spec or conversion) for _, name, spec, conversion in parsed):
        raise ValueError("between braces stands the name of a field and nothing else; write {{ and }} for braces")
    return [(literal, name) for literal, name, _, _ in parsed]


def template_fields(template: str) -> list[str]:
    """Return the fields that a template names, in order."""
    return [name for _, name in template_parts(template) if name is not None]


def filled(template: str, fields: Mapping[str, str]) -> str:
    """Return a template's text for a record, given by the fields that the template names."""
    return "".join(literal + ("" if name is None else fields[name]) for literal, name in template_parts(template))
