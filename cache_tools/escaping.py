r"""Text that a terminal can show safely.

Corpora and caches may be untrusted: no document and no name in a manifest must be able to control the reader's
terminal. Letters, marks and pictures stay; characters that move the cursor, or hide or reorder text, are escaped.
"""


def printable(content: bytes | str, keep: str = "") -> str:
    r"""Return text that a terminal only displays.

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
