"""Short sentences in English and German from a small grammar, which a tiny masked model can learn in seconds.

Every sentence is about the same scene in both languages, and every slot is told by the others:
who does it says what is done, and what is done says where. Dutch is there to be a language without a teacher.
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
    "nl": {
        "who": ["De bakker", "De boer", "De matroos", "De leraar", "De dokter", "De schilder"],
        "does": ["bakt brood", "voert koeien", "boet netten", "leest boeken", "verzorgt wonden", "mengt verf"],
        "where": ["in de keuken", "op de wei", "in de haven", "in de school", "in de kliniek", "in de studio"],
        "when": ["elke morgen", "in de middag", "in de avond", "op zondag"],
    },
}


def write_texts(folder: Path, documents: int = 300) -> Path:
    """Write a file for each language: documents of two sentences, the same scenes under the same group and section."""
    folder.mkdir(parents=True)
    for language, words in SCENES.items():
        draw, lines = Random(0), []
        for number in range(documents):
            scenes = [draw.randrange(len(words["who"])) for _ in range(2)]
            text = " ".join(sentence(words, who, draw.choice(words["when"])) for who in scenes)
            record = {
                "id": f"{number}",
                "group": f"scene{number}",
                "section": SCENES["en"]["who"][scenes[0]],
                "text": text,
            }
            lines.append(json.dumps(record) + "\n")
        (folder / f"{language}.jsonl").write_text("".join(lines))
    return folder


def sentence(words: dict[str, list[str]], who: int, when: str) -> str:
    """Return who does what, where and when."""
    return f"{words['who'][who]} {words['does'][who]} {words['where'][who]} {when}."
