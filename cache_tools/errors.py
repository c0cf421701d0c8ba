"""Every error that logitcask raises on purpose, as one tree.

::

    LogitcaskError
    ├── ConfigError        a configuration file or a command-line value
    ├── CorpusError        the documents that stage one reads
    ├── ModelError         a teacher or student that cannot be used as asked
    ├── IdentityError      two things that must be the same are not
    ├── FormatError        a path holds nothing that can be read as a cache
    ├── IncompleteError    a capture has not finished
    ├── DamageError        bytes are missing or not what was written
    └── StorageError       the disk or bucket refused

A message answers five questions in a fixed order: where, what was expected, what was found, why it matters, and what
to do next. The command line prints it and exits with ``exit_code``. Parts of a message may come from untrusted files,
so the message is escaped and each part is cut.
"""

from cache_tools.escaping import printable

PART_CHARACTERS = 2000
"""Longest text that is shown of a value that was expected or found."""


class LogitcaskError(Exception):
    """Base of all errors above.

    Args:
        problem: One sentence: what is wrong.
        where: Path, shard, sequence or key the problem belongs to.
        expected: What would have been right.
        found: What was there instead.
        why: Which harm continuing would do.
        fix: The next command to run or thing to change.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        where: object = "",
        expected: object = "",
        found: object = "",
        why: str = "",
        fix: str = "",
    ) -> None:
        self.where = _shown(where)
        text = problem
        sides = [f"{side} {_shown(value)}" for side, value in (("expected", expected), ("found", found)) if str(value)]
        if sides:
            text += f" ({', '.join(sides)})"
        text += "."
        for sentence in filter(None, (why, fix)):
            text += f" {sentence[0].upper()}{sentence[1:]}."
        self.message = text = printable(text, keep="\n")
        super().__init__(f"{self.where}: {text}" if self.where else text)

    def __reduce__(self) -> tuple[object, ...]:
        """Pass the error to another process unchanged; the default would pass the message as ``problem``."""
        return _restored, (type(self), self.args, self.__dict__)


def _shown(value: object) -> str:
    text = str(value)
    return printable(text if len(text) <= PART_CHARACTERS else f"{text[:PART_CHARACTERS]}…", keep="\n")


def _restored(kind: type[LogitcaskError], args: tuple[object, ...], attributes: dict[str, object]) -> LogitcaskError:
    error = kind.__new__(kind)
    error.args, error.__dict__ = args, attributes
    return error


class ConfigError(LogitcaskError):
    """A configuration file or a command-line value is wrong."""


class CorpusError(LogitcaskError):
    """The documents that stage one reads are missing, broken or unusable."""


class ModelError(LogitcaskError):
    """A teacher or student cannot be loaded or used as asked."""


class IdentityError(LogitcaskError):
    """Two things that must be the same (tokenizer, teacher, corpus, parameters) are not."""


class FormatError(LogitcaskError):
    """What lies at a path is not a cache that this version can read."""


class IncompleteError(LogitcaskError):
    """Shards are asked for that no capture has committed yet."""


class DamageError(LogitcaskError):
    """Bytes of a cache are missing, or are not the bytes that were written."""


class StorageError(LogitcaskError):
    """The disk or bucket refused to read or write."""
