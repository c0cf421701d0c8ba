"""Make a task for lm-evaluation-harness from held-out text: ``python docs/examples/next_words.py CACHE FOLDER``.

A model reads some text and has to name the word that follows. Teacher and students are scored by the same file, in
units that need neither a cache nor a common tokenizer.
"""

import json
import re
import sys
from pathlib import Path

from logitcask import Cache

WORD = re.compile(r" ([A-Za-z]{4,})\b")
CONTEXT_CHARACTERS = 200
EVERY = 5
"""Every fifth word is asked for, so that questions overlap less."""

TASK = """task: next_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {lines}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: " {{{{word}}}}"
metric_list: [{{metric: acc}}, {{metric: perplexity}}]
"""


def questions(text: str) -> list[dict[str, str]]:
    """Return the questions of a text: what comes before a word, and the word."""
    words = [word for word in WORD.finditer(text) if word.start() >= CONTEXT_CHARACTERS][::EVERY]
    return [{"context": text[word.start() - CONTEXT_CHARACTERS : word.start()], "word": word[1]} for word in words]


def write_task(cache: str, folder: Path) -> int:
    """Write ``next_words.yaml`` and its lines; return the number of questions."""
    encoding = Cache(cache).encoding()
    texts = [sequence.text for shard in encoding.split_shards("held_out") for sequence in encoding.sequences(shard)]
    lines = [json.dumps(question) for text in texts for question in questions(text)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "next_words.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "next_words.yaml").write_text(TASK.format(lines=(folder / "next_words.jsonl").resolve()))
    return len(lines)


if __name__ == "__main__":
    print(write_task(sys.argv[1], Path(sys.argv[2])), "questions")
