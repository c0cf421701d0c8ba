"""Short texts of three kinds, made from a few words: a task that a tiny model learns in seconds.

What a text is about shows in its nouns alone, and every text is its own group.
"""

import json
from itertools import product
from pathlib import Path

KINDS = {
    "[plant]": ["oak", "fern", "daisy", "willow", "moss"],
    "[tool]": ["saw", "hammer", "ladle", "chisel", "rake"],
    "[animal]": ["otter", "wren", "badger", "newt", "heron"],
}
WHERE = ["near the river", "in the old house", "behind the mill", "on a hill", "under the bridge"]
WHICH = ["small", "brown", "heavy", "rare"]


def labelled() -> list[dict[str, str]]:
    """Return the texts with their kinds."""
    nouns = [(kind, noun) for kind, known in KINDS.items() for noun in known]
    texts = [(kind, f"a {which} {noun} {where}") for (kind, noun), where, which in product(nouns, WHERE, WHICH)]
    return [{"id": f"t{i}", "group": text, "text": text, "label": kind} for i, (kind, text) in enumerate(texts)]


def write_topics(folder: Path) -> Path:
    """Write the task ``wordnet.jsonl`` and plain text, as ``configs/papers/mtbert/data.py`` does."""
    (folder / "plain").mkdir(parents=True)
    records = labelled()
    plain = [{"id": each["id"], "text": f"{each['text']} , they say"} for each in records]
    for path, lines in {"wordnet": records, "plain/wordnet": plain[::2], "plain/debian": plain[1::2]}.items():
        (folder / f"{path}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
