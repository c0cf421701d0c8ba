r"""Text that a terminal can show safely.

Corpora and caches come from strangers; neither a document nor a name in a manifest must be able to write to the
reader's terminal. Letters, marks and pictures stay; what moves a cursor, hides or turns text around is escaped.
"""


def printable(content: bytes | str, keep: str = "") -> str:
    r"""Return text that does nothing to a terminal but stand there.

    Control characters, bidirectional and other invisible marks, line separators and unassigned
    characters become escapes (``\x1b``, ``\u202e``), and so do bytes that are not UTF-8.

    Args:
        content: Text, or its bytes.
        keep: Control characters to leave alone, such as a line feed.
    """
    text = content if isinstance(content, str) else content.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()
