"""A tokenizer for a union of vocabularies: WordPiece, which needs only the list of tokens.

A word becomes the longest token of the union that it begins with, then the longest ``##`` token, and so on. If all
tokenizers of the union are WordPiece and normalise and split text into words in the same way, these rules are kept, and
a word is split differently than by its own tokenizer only where another tokenizer has a longer token. BPE and unigram
tokenizers cannot be united, because their merges and scores belong to one corpus each. Their tokens are in the
vocabulary nevertheless, and training uses the ids of the caches, so training loses nothing; only new text is split by
longest match. ``differing_rules`` returns the tokenizers that this concerns.

A student that reads text of a single language may also use that teacher's tokenizer with its map.
"""

import json
from collections.abc import Sequence

from cache_tools.mappings import JsonObject, TokenizerState
from cache_tools.vocabularies.tokens import ROLES
from cache_tools.vocabularies.union import UnionVocabulary

RULES = ("normalizer", "pre_tokenizer")
DEFAULT_RULES = {"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "BertPreTokenizer"}}
PREFIX = "##"
NO_LIMIT = 1_000_000_000


def tokenizer_files(union: UnionVocabulary, states: Sequence[TokenizerState]) -> dict[str, bytes]:
    """Return ``tokenizer.json`` and ``tokenizer_config.json`` of a tokenizer for a union.

    Args:
        union: The union.
        states: ``tokenizer.json`` of each of its tokenizers.
    """
    ids = {name: i for i, name in enumerate(union.names)}
    specials = {role: f"[{role.upper()}]" for role in ROLES if f"[{role.upper()}]" in ids}
    rules = DEFAULT_RULES if differing_rules(states) else {rule: states[0][rule] for rule in RULES}
    state = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(name, ids[name]) for name in sorted(specials.values(), key=ids.__getitem__)],
        **rules,
        "post_processor": _frame(specials, ids),
        "decoder": {"type": "WordPiece", "prefix": PREFIX, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": specials["unk"],
            "continuing_subword_prefix": PREFIX,
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    }
    settings: JsonObject = {f"{role}_token": name for role, name in specials.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": NO_LIMIT}
    return {"tokenizer.json": _json(state), "tokenizer_config.json": _json(settings)}


def differing_rules(states: Sequence[TokenizerState]) -> list[int]:
    """Return the numbers of the tokenizers that are not WordPiece, or normalise or split text unlike the first."""
    return [
        number
        for number, state in enumerate(states)
        if state["model"]["type"] != "WordPiece" or any(state[rule] != states[0][rule] for rule in RULES)
    ]


def _special(name: str, token_id: int) -> JsonObject:
    flags: JsonObject = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return flags | {"id": token_id, "content": name, "special": True}


def _frame(specials: dict[str, str], ids: dict[str, int]) -> JsonObject | None:
    """Return the post-processor that puts [CLS] before and [SEP] after a text; None without such tokens."""
    if not {"cls", "sep"} <= set(specials):
        return None
    cls, sep = ({"SpecialToken": {"id": specials[role], "type_id": 0}} for role in ("cls", "sep"))
    first, second = ({"Sequence": {"id": text, "type_id": number}} for number, text in enumerate("AB"))
    last = {"SpecialToken": {"id": specials["sep"], "type_id": 1}}
    named = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in (specials["cls"], specials["sep"])}
    return {
        "type": "TemplateProcessing",
        "single": [cls, first, sep],
        "pair": [cls, first, sep, second, last],
        "special_tokens": named,
    }


def _json(document: JsonObject) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()
