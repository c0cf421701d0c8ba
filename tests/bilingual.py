"""Short sentences in English and German from a small grammar, which a tiny masked model can learn in seconds.

Every sentence is about the same scene in both languages, and every slot is told by the others:
who does it says what is done, and what is done says where.
"""

import json
from pathlib import Path
from random import Random

SCENES = {
    "en": {
        "who": ["The baker", "The farmer", "The sailor", "The teacher", "The doctor", "The painter"],
        "does": ["bakes bread", "feeds cows", "mends nets", "reads books", "treats wounds", "mixes paint"],
        "where": [
            "in the kitchen",
            "on the meadow",
            "at the harbour",
            "in the school",
            "in the clinic",
            "in the studio",
        ],
        "when": ["every morning", "at noon", "in the evening", "on Sunday"],
    },
    "de": {
        "who": ["Der Bäcker", "Der Bauer", "Der Matrose", "Der Lehrer", "Der Arzt", "Der Maler"],
        "does": ["backt Brot", "füttert Kühe", "flickt Netze", "liest Bücher", "versorgt Wunden", "mischt Farben"],
        "where": ["in der Küche", "auf der Wiese", "am Hafen", "in der Schule", "in der Klinik", "im Atelier"],
        "when": ["jeden Morgen", "am Mittag", "am Abend", "am Sonntag"],
    },
}


def write_texts(folder: Path, documents: int = 300) -> Path:
    """Write ``en.jsonl`` and ``de.jsonl``: documents of two sentences, the same scenes under the same group."""
    folder.mkdir(parents=True)
    for language, words in SCENES.items():
        draw, lines = Random(0), []
        for number in range(documents):
            text = " ".join(sentence(words, draw) for _ in range(2))
            lines.append(json.dumps({"id": f"{number}", "group": f"scene{number}", "text": text}) + "\n")
        (folder / f"{language}.jsonl").write_text("".join(lines))
    return folder


def sentence(words: dict[str, list[str]], draw: Random) -> str:
    """Return who does what, where and when."""
    who = draw.randrange(len(words["who"]))
    return f"{words['who'][who]} {words['does'][who]} {words['where'][who]} {draw.choice(words['when'])}."
