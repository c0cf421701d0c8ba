"""Check that two tokenizers turn the same text into the same ids, which depends on more than their vocabularies.

If merges or normalisers differ, a second teacher reads, and a student later writes, ids that its own tokenizer never
produces. First the rules that determine ids are compared (``canonical_rules``: model, normaliser, splitting, added
tokens; not templates, decoders, padding, or the notation of merges). If they are equal, no text is compared. Otherwise
both tokenizers encode the same probes, because the same behaviour can be written in several ways (SentencePiece models
exist with a normaliser or with a splitter that puts ``▁`` in front):

- sentences in many scripts, with white space, digits, code, contractions, emoji and combining marks;
- every assigned character of the basic plane, which shows what a normaliser does to it;
- every token of the vocabulary, and pairs of tokens, which show the order of merges;
- every added token between words, also in capitals, which shows its flags;
- texts of the cache itself.

The first difference is an error that shows it. Two tokenizers without a difference on these texts may still differ on
another text; no finite test excludes that. Comparing rules costs some milliseconds, comparing texts a few seconds.
"""

import json
import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer

from cache_tools.errors import IdentityError
from cache_tools.escaping import printable
from cache_tools.mappings import JsonObject
from cache_tools.store.reader import Encoding
from cache_tools.vocabularies.folder import open_tokenizer

SENTENCES = (
    "The quick brown fox can't jump; it's 12345678 3.14159 1,000,000 -5e-10 0xFF $9.99 50% #7.",
    "HELLO World McDonald's DON'T WE'LL I’d “quoted” ‘single’ «guillemets» … – — ― don´t",
    " leading and trailing ",
    "  two  spaces   three\tTab\t\ttwo\nline\r\nwindows\n\n\n   indented\n\t\tmore \n ",
    "\n",
    " ",
    "",
    "def f(x_1: int = 0) -> None:\n    return {'a': [x_1 ** 2, x_1 // 3], \"b\": lambda y: y != x_1}\n\n\n# done",
    "SELECT * FROM t WHERE a<=1 AND b<>'x';  /* c */ <div class=\"x\">&nbsp;</div> https://a.b/c?d=e&f=g#h me@x.org",
    "café cafe\u0301 Ångström A\u030angstro\u0308m ﬁne ①②Ⅷ ½ ㎏ ｆｕｌｌ　ｗｉｄｔｈ ß ẞ İstanbul ıi Σίσυφος ς naïve",
    "Größe über Straße, señor ¿qué? ação; où est-ce? Łódź żółć Příliš žluťoučký kůň; Việt Nam ở đâu",
    "Привет, мир! Ёлка и йод. Ελληνικά με τόνους. Հայերեն. ქართული ენა.",
    "中文分词没有空格。繁體字也一樣！日本語のかなとカナ、漢字。한국어 띄어쓰기 \u1112\u1161\u11ab 조합",
    "العربية من اليمين إلى اليسار مَعَ الحَرَكات ١٢٣ فارسی می‌خواهم עברית עִם נִקּוּד",
    "हिन्दी में क्षेत्र १२३ தமிழ் తెలుగు বাংলা ไทยไม่เว้นวรรค ລາວ မြန်မာ ខ្មែរ አማርኛ",
    "😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ☺️ ♥ → ∀x∈ℝ: x²≥0 ∑∫√ 𝒳𝔸 𐍈 \u200bzero\u200dwidth\ufeff soft\u00adhyphen no\u00a0break",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa AAAA1111aaaa____----====....!!!!????",
    "e\u0301\u0323\u0302 o\u0308\u0304 \u0301 n\u0303\u0303 \u202eright\u202c \x00\x01\x1b[0m \x7f \ufffd",
)

PAIRS = 20_000
BATCH_TEXTS = 1024
CHARACTERS_TOGETHER = 32
SAMPLED_SHARDS, SAMPLED_TEXTS = 4, 64
"""How many shards of a cache, and about how many texts of each, are compared."""

SHOWN_TOKENS, SHOWN_CHARACTERS = 6, 60

Encode = Callable[[list[str]], list[list[int]]]
"""Returns the ids of each text, without special tokens around it."""


class Difference(NamedTuple):
    """The first text that two tokenizers read differently.

    Attributes:
        text: The text, shortened, escaped for a terminal.
        first: Tokens of the first tokenizer, from where they differ.
        second: Tokens of the second tokenizer.
    """

    text: str
    first: str
    second: str


def require_same(
    first: Tokenizer, second: Tokenizer | Encode, texts: Iterable[str], problem: str, where: object, fix: str
) -> None:
    """Refuse a tokenizer that reads some text differently.

    Args:
        first: The tokenizer that made a cache's ids.
        second: Another with the same vocabulary, or a function that encodes.
        texts: Texts to compare if the rules differ.
        problem: The message's first sentence.
        where: Where the second tokenizer comes from.
        fix: The message's last sentence: what to do.

    Raises:
        IdentityError: the second tokenizer reads a text differently.
    """
    difference = first_difference(first, second, texts)
    if difference is not None:
        raise IdentityError(
            problem,
            where=where,
            expected=f"{difference.first} for {difference.text}",
            found=difference.second,
            why="its vocabulary is the same, but it splits text into other tokens than those that were captured",
            fix=fix,
        )


def require_same_encodings(first: Encoding, other: Encoding, problem: str, fix: str) -> None:
    """Refuse two encodings with one vocabulary whose tokenizers read text differently.

    Raises:
        IdentityError: their tokenizers read a text differently.
        DamageError: a tokenizer's file is missing or not what was written.
        FormatError: an encoding keeps no tokenizer, or it cannot be read.
    """
    behaviours = [encoding.manifest.identity["tokenizer"].get("behaviour") for encoding in (first, other)]
    if behaviours[0] != behaviours[1]:
        tokenizers = [open_tokenizer(encoding)[0] for encoding in (first, other)]
        texts = chain(sampled_texts(first), sampled_texts(other), probes(tokenizers[0]))
        require_same(tokenizers[0], tokenizers[1], texts, problem, other.path, fix)


def first_difference(first: Tokenizer, second: Tokenizer | Encode, texts: Iterable[str]) -> Difference | None:
    """Return the first text that two tokenizers encode differently; None if their rules are equal or there is none.

    Args:
        first: A fast tokenizer.
        second: Another with the same vocabulary, or a function that encodes.
        texts: Texts to compare, such as ``probes`` and texts of a cache.
    """
    if isinstance(second, Tokenizer) and canonical_rules(first) == canonical_rules(second):
        return None
    encoders = [_encoder(tokenizer) for tokenizer in (first, second)]
    rest = iter(texts)
    while batch := list(islice(rest, BATCH_TEXTS)):
        for text, left, right in zip(batch, *(encode(batch) for encode in encoders), strict=True):
            if list(left) != list(right):
                return _difference(text, left, right, first)
    return None


def sampled_texts(encoding: Encoding) -> Iterator[str]:
    """Yield the texts of some sequences, spread over the encoding's shards; none if they were given as ids."""
    for shard in np.unique(np.linspace(0, len(encoding.shards) - 1, SAMPLED_SHARDS).astype(int)).tolist():
        sequences = encoding.sequences(shard)
        yield from (
            sequence.text for sequence in sequences[:: max(1, len(sequences) // SAMPLED_TEXTS)] if sequence.text
        )


def canonical_rules(tokenizer: Tokenizer) -> JsonObject:
    """Return the rules that determine the ids of a text, in one notation."""
    state = json.loads(tokenizer.to_str())
    model = {key: value for key, value in state["model"].items() if not _is_default(value)}
    model["merges"] = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges", [])]
    added = sorted(state.get("added_tokens") or [], key=lambda token: int(token["id"]))
    kept = [{key: value for key, value in token.items() if key != "special"} for token in added]
    return {"model": model, "added": kept} | {key: state.get(key) for key in ("normalizer", "pre_tokenizer")}


def probes(tokenizer: Tokenizer) -> Iterator[str]:
    """Yield texts on which two tokenizers of this vocabulary are compared, the most revealing first."""
    yield from SENTENCES
    added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
    for token in added.values():
        name = token.content
        yield from (f"a {name} b", f"a{name}b", f"a  {name}\n b", f"{name}{name}", f"x {name.upper()} y")
    ordinary = [token_id for token_id in sorted(tokenizer.get_vocab().values()) if token_id not in added]
    words = [tokenizer.decode([token_id]) for token_id in ordinary]
    yield from words
    draw = random.Random(0)
    yield from (draw.choice(words) + draw.choice(words) for _ in range(PAIRS if words else 0))
    characters = [char for char in map(chr, range(0x10000)) if unicodedata.category(char) not in ("Cn", "Co", "Cs")]
    for start in range(0, len(characters), CHARACTERS_TOGETHER):
        yield "".join(f"a{char}b {char} " for char in characters[start : start + CHARACTERS_TOGETHER])


def _is_default(value: Any) -> bool:
    """Say whether a setting has its default value; 0 is no default, because it may be an id."""
    return value is None or value is False or value == ""


def _encoder(tokenizer: Tokenizer | Encode) -> Encode:
    """Return a function that encodes texts without truncation and padding."""
    if not isinstance(tokenizer, Tokenizer):
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return lambda texts: [encoding.ids for encoding in copy.encode_batch(texts, add_special_tokens=False)]


def _difference(text: str, left: list[int], right: list[int], tokenizer: Tokenizer) -> Difference:
    start = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))

    def tokens(ids: list[int]) -> str:
        shown = [
            tokenizer.id_to_token(token_id) or f"<id {token_id}>" for token_id in ids[start : start + SHOWN_TOKENS]
        ]
        return printable(" ".join(shown) + (" …" if len(ids) > start + SHOWN_TOKENS else "")) or "nothing"

    shortened = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
    return Difference(printable(repr(shortened)), tokens(left), tokens(right))
