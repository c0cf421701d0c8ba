"""Tokenizers that are not as simple as the usual one: edited rules, and ids with gaps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

import tiny

GAP_STARTS, GAP_TOKENS = 280, 37
HIGHEST_ID = 299 + GAP_TOKENS


def edited(edit: Callable[[dict[str, Any]], Any], masked: bool = False) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer after a change of its ``tokenizer.json``."""
    usual = tiny.tokenizer(masked=masked)
    state = json.loads(usual.backend_tokenizer.to_str())
    edit(state)
    made = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=made, **usual.special_tokens_map)


def with_gap(masked: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose ids from GAP_STARTS on are higher by GAP_TOKENS: 300 tokens, the highest id 336."""

    def shift(state: dict[str, Any]) -> None:
        ids = state["model"]["vocab"].items()
        state["model"]["vocab"] = {name: i + GAP_TOKENS * (i >= GAP_STARTS) for name, i in ids}

    return edited(shift, masked)


def save_gapped(folder: Path, model_type: str = "llama", vocabulary: int = HIGHEST_ID + 1) -> Path:
    """Save a model with a gapped tokenizer."""
    masked = model_type == "bert"
    tiny.model(model_type, vocab_size=vocabulary).save_pretrained(folder)
    with_gap(masked).save_pretrained(folder)
    return folder
