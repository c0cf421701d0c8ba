"""Pairs of a sentence and a gloss, and control corpora, as stage one reads them.

========== ========================================== ========= ====================================================
corpus     sentences                                  labelled  what for
========== ========================================== ========= ====================================================
pairs      of training synsets; of held-out synsets   yes       training; scores on unseen synsets
seen       of training synsets, not trained on        yes       scores on synsets whose gloss was trained on
swapped    held-out, each with another's sentence     yes       how far a gloss alone suffices
shuffled   as pairs; each synset has another's gloss  yes       control: nothing can be learned
text       held-out synsets, no pairs                 no        quality of the language model
========== ========================================== ========= ====================================================

A document is a pair; its group is the synset that the word means there, so a synset is held out with all its
sentences. The gloss of a held-out synset is nowhere in training, neither as the right one nor as a wrong one: such
candidates are left out of training pairs. One leak remains: the *word* of a held-out synset may
have been trained on in its other senses, and the glosses of those senses are then among the candidates. ``swapped``
shows whether that alone reveals the right gloss.

All pairs of an instance have a shortcut: right senses have an example by construction, a quarter of the wrong ones have
none, and glosses of these two kinds differ. ``balanced`` pairs have none: each gloss is in as many right pairs as wrong
ones, so that a gloss alone says nothing about the label. They are fewer, and training only: at test, candidates are all
senses, and ``all_with_examples`` names the instances on which the shortcut is of no use either.

Senses of one word are hard to tell apart, and a model that has never compared two texts learns little from them alone.
``with_strangers`` gives it something easier beside them: each sentence also with the gloss of another word's sense.
Of balanced pairs, each gloss is then right in a third, still the same for all.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import NamedTuple

from configs.papers.cohesive.texts import wordnet_documents, write
from configs.papers.gloss.instances import Instance, by_lemma, instances
from configs.papers.wordnet import Synset, synsets
from pipeline.encoding.held_out import is_held_out

YES, NO = "[yes]", "[no]"
LABELS = (YES, NO)
TokensOf = Callable[[list[str]], list[int]]
"""Returns the numbers of tokens of some texts, with the special ones."""


class Sizes(NamedTuple):
    """How much is taken of WordNet."""

    train: int
    """Instances to train on, at most."""
    seen: int
    """Further instances of the same synsets, at most."""
    texts: int
    """Held-out synsets for the language model's own test, at most."""
    most_senses: int
    """Words of more senses are passed over."""
    most_tokens: int
    """Instances are passed over whose sentence, or one of the glosses, would fill more than half of these."""
    held_out_fraction: float
    """Of all synsets; the same as in the capture file."""


class Pair(NamedTuple):
    """A record of a labelled corpus."""

    id: str
    """Of instance and candidate, with a bar between them."""
    group: str
    text: str
    label: str


class Split(NamedTuple):
    """Instances by what they are for."""

    train: list[Instance]
    unseen: list[Instance]
    seen: list[Instance]


def write_corpora(
    wordnet: Path, folder: Path, tokens_of: TokensOf, sizes: Sizes, is_balanced: bool, has_strangers: bool
) -> None:
    """Write all corpora into a folder.

    Args:
        wordnet: Folder of WordNet's data files.
        folder: Folder to write to.
        tokens_of: Returns the numbers of tokens of texts.
        sizes: How many instances to take.
        is_balanced: Whether to train on balanced pairs only.
        has_strangers: Whether to train on the glosses of other words' senses, too.
    """
    everything, held_out = list(synsets(wordnet)), sizes.held_out_fraction
    glosses = {synset.id: synset.definition for synset in everything}
    split = split_of(everything, glosses, tokens_of, sizes)
    folder.mkdir(parents=True, exist_ok=True)
    trained, seen = known_candidates(split.train, held_out), known_candidates(split.seen, held_out)
    if is_balanced:
        trained = balanced(trained)
        right = {instance.sense for instance in trained if instance.sense in instance.candidates}
        seen = [instance for instance in seen if instance.sense in right]
    if has_strangers:
        trained = with_strangers(trained, by_lemma(everything))
    whole = [*trained, *split.unseen]
    write(folder / "pairs.jsonl", pairs(whole, glosses))
    write(folder / "seen.jsonl", pairs(seen, glosses))
    write(folder / "swapped.jsonl", pairs(swapped(split.unseen), glosses))
    used = {candidate: glosses[candidate] for instance in whole for candidate in instance.candidates}
    write(folder / "shuffled.jsonl", pairs(whole, shuffled(used)))
    texts = (document for document in wordnet_documents(wordnet) if is_held_out(document.group, held_out))
    write(folder / "text.jsonl", islice(texts, sizes.texts))


def split_of(
    everything: Sequence[Synset],
    glosses: Mapping[str, str],
    tokens_of: TokensOf,
    sizes: Sizes,
) -> Split:
    """Return the instances of each part, at random but always the same.

    Of training synsets with several instances one is for the seen part, so that its gloss is trained on in others.
    """
    short = short_ones(list(instances(everything, sizes.most_senses)), glosses, tokens_of, sizes.most_tokens)
    Random(0).shuffle(short)
    unseen = [instance for instance in short if is_held_out(group_of(instance.sense), sizes.held_out_fraction)]
    trainable = [instance for instance in short if not is_held_out(group_of(instance.sense), sizes.held_out_fraction)]
    firsts = {instance.sense: instance.id for instance in reversed(trainable)}
    repeated = [instance for instance in trainable if firsts[instance.sense] != instance.id][: sizes.seen]
    apart = {instance.id for instance in repeated}
    train = [instance for instance in trainable if instance.id not in apart][: sizes.train]
    trained = {instance.sense for instance in train}
    return Split(train, unseen, [instance for instance in repeated if instance.sense in trained])


def short_ones(
    all_instances: list[Instance], glosses: Mapping[str, str], tokens_of: TokensOf, most_tokens: int
) -> list[Instance]:
    """Return instances whose sentence and glosses fill half a sequence each at most, so that any two make a pair."""
    half = most_tokens // 2
    sides = sorted({side for instance in all_instances for side in sides_of(instance, glosses)})
    fits = {side for side, tokens in zip(sides, tokens_of(sides), strict=True) if tokens <= half}
    return [instance for instance in all_instances if fits.issuperset(sides_of(instance, glosses))]


def sides_of(instance: Instance, glosses: Mapping[str, str]) -> list[str]:
    """Return the sentence of an instance, and what stands on the other side of its pairs."""
    return [instance.sentence, *(gloss_side(instance, candidate, glosses) for candidate in instance.candidates)]


def known_candidates(instances_of_part: Sequence[Instance], held_out: float) -> list[Instance]:
    """Return instances without the candidates that are held out, and without those of one candidate."""
    fewer = (
        instance._replace(candidates=tuple(c for c in instance.candidates if not is_held_out(group_of(c), held_out)))
        for instance in instances_of_part
    )
    return [instance for instance in fewer if len(instance.candidates) > 1]


def balanced(instances_of_part: Sequence[Instance]) -> list[Instance]:
    """Return instances with fewer candidates, so that each gloss is right in as many pairs as it is wrong in.

    Of each synset's right pairs and wrong pairs, as many are drawn as there are of the rarer kind. An instance may be
    left with its right sense alone, or without it; one without candidates is left out.
    """
    by_gloss: dict[str, tuple[list[int], list[int]]] = {}
    for row, instance in enumerate(instances_of_part):
        for candidate in instance.candidates:
            by_gloss.setdefault(candidate, ([], []))[candidate != instance.sense].append(row)
    draw, kept = Random(0), set[tuple[int, str]]()
    for gloss, both in by_gloss.items():
        number = min(map(len, both))
        kept.update((row, gloss) for rows in both for row in draw.sample(rows, number))
    fewer = (
        instance._replace(candidates=tuple(c for c in instance.candidates if (row, c) in kept))
        for row, instance in enumerate(instances_of_part)
    )
    return [instance for instance in fewer if instance.candidates]


def with_strangers(instances_of_part: Sequence[Instance], senses: Mapping[str, Collection[str]]) -> list[Instance]:
    """Add to each instance that has its right sense a stranger: the right sense of another instance, drawn at random.

    So each sense is a stranger as often as it is right. A stranger that is a sense of the same word is left out.

    Args:
        instances_of_part: Instances, some of which may lack their right sense.
        senses: All synsets of each word in lower case.
    """
    right = [instance for instance in instances_of_part if instance.sense in instance.candidates]
    others = Random(0).sample(right, len(right))
    stranger = {
        instance.id: other.sense
        for instance, other in zip(right, others, strict=True)
        if other.sense not in senses[instance.lemma.lower()]
    }
    return [
        instance._replace(candidates=(*instance.candidates, stranger[instance.id]))
        if instance.id in stranger
        else instance
        for instance in instances_of_part
    ]


def all_with_examples(pairs_of_part: Sequence[Pair], with_examples: Collection[str]) -> list[bool]:
    """Return for each instance, in the order of its pairs, whether all of its candidates have an example.

    Args:
        pairs_of_part: Pairs, those of an instance side by side.
        with_examples: Synsets that have an example.
    """
    is_whole: dict[str, bool] = {}
    for pair in pairs_of_part:
        instance, _, candidate = pair.id.partition("|")
        is_whole[instance] = is_whole.get(instance, True) and candidate in with_examples
    return list(is_whole.values())


def swapped(instances_of_part: Sequence[Instance]) -> list[Instance]:
    """Return instances with each other's sentences: the next one's."""
    sentences = [instance.sentence for instance in instances_of_part]
    turned = [*sentences[1:], *sentences[:1]]
    return [instance._replace(sentence=sentence) for instance, sentence in zip(instances_of_part, turned, strict=True)]


def shuffled(glosses: Mapping[str, str]) -> dict[str, str]:
    """Return each synset with another's gloss, the same one everywhere."""
    names = list(glosses)
    others = Random(0).sample(names, len(names))
    return {name: glosses[other] for name, other in zip(names, others, strict=True)}


def pairs(instances_of_part: Sequence[Instance], glosses: Mapping[str, str]) -> Iterator[Pair]:
    """Yield every pair of instances and their candidates."""
    for instance in instances_of_part:
        for candidate in instance.candidates:
            label = YES if candidate == instance.sense else NO
            text = text_of(instance, candidate, glosses)
            yield Pair(f"{instance.id}|{candidate}", group_of(instance.sense), text, label)


def text_of(instance: Instance, candidate: str, glosses: Mapping[str, str]) -> str:
    """Return a pair as one text; the tokenizer adds the first and last token."""
    return f"{instance.sentence} [SEP] {gloss_side(instance, candidate, glosses)}"


def gloss_side(instance: Instance, candidate: str, glosses: Mapping[str, str]) -> str:
    """Return the text after the separator."""
    return f"{instance.lemma} : {glosses[candidate]}"


def group_of(synset: str) -> str:
    """Return the name that a synset is held out by, the same as in the texts of ``configs/papers/cohesive``."""
    return f"wordnet:{synset}"
