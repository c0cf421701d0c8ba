"""Let models continue the same prompt: ``python -m pipeline.demo.continuations PROMPT MODEL…`` prints them as JSON.

Each model continues greedily, so that the text shows what it thinks most likely and not the luck of a draw. A penalty
on tokens that are already there keeps small students out of endless loops; it is the same for all models.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 48
REPETITION_PENALTY = 1.3


def continuations(prompt: str, folders: Sequence[Path], new_tokens: int = NEW_TOKENS) -> list[str]:
    """Return how each model continues a prompt, without the prompt."""
    return [_continuation(prompt, folder, new_tokens) for folder in folders]


def _continuation(prompt: str, folder: Path, new_tokens: int) -> str:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, repetition_penalty=REPETITION_PENALTY)
    return str(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    print(json.dumps(continuations(sys.argv[1], [Path(folder) for folder in sys.argv[2:]])))
