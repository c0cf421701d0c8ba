"""Counts and times as words for people: "1 shard", "2 shards", "36 s".

A count takes the singular at exactly one, and a time the units in which something of it shows: a capture that takes a
minute is not "0.01 hours". Sizes and speeds of a running stage are in ``progress.stage``.
"""


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which is given in the singular: "1 shard", "1,024 shards"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration_words(seconds: float) -> str:
    """Return a time span in its two largest units, to the second: "3 h 20 min", "36 s", "less than 1 s"."""
    if 0 < seconds < 1:
        return "less than 1 s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
