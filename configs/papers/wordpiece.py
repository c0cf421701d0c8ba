"""A WordPiece tokenizer of a recipe's own texts, in the folder of an untrained model.

A capture names a teacher. Before a recipe has trained one, it names this model, for the sake of its tokenizer; the
model's predictions are not used. For a pre-trained teacher there is the same small model with that one's tokenizer.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from configs.papers.recipes import make_once

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALLEST = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


def untrained(texts: Iterable[str], tokens: int, output: Path, lowercase: bool = True) -> Path:
    """Write a WordPiece tokenizer of some texts, and the smallest model that it fits.

    Args:
        texts: What it is trained on.
        tokens: Size of the vocabulary, special tokens included; fewer if the texts have no more.
        output: Folder that is made, if it is not there yet.
        lowercase: Whether the tokenizer reads all text in lower case.
    """

    def make(folder: Path) -> None:
        tokenizer = wordpiece(texts, tokens, lowercase)
        roles = {f"{name.strip('[]').lower()}_token": name for name in SPECIALS}
        write_smallest(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles), folder)

    return make_once(output, make)


def with_tokenizer_of(model: Path, output: Path) -> Path:
    """Write the smallest model that a pre-trained model's tokenizer fits, for text that no teacher is needed for."""
    return make_once(output, lambda folder: write_smallest(AutoTokenizer.from_pretrained(model), folder))


def write_smallest(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write an untrained model, always the same for a size of the vocabulary, and its tokenizer."""
    torch.manual_seed(0)
    padding = tokenizer.pad_token_id
    config = AutoConfig.for_model("bert", vocab_size=len(tokenizer), pad_token_id=padding, **SMALLEST)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def wordpiece(texts: Iterable[str], tokens: int, lowercase: bool) -> Tokenizer:
    """Return a trained tokenizer that frames a text with [CLS] and [SEP]; the same texts give the same tokenizer."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.decoder = normalizers.BertNormalizer(lowercase=lowercase), decoders.WordPiece()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vocabulary = [*SPECIALS, *sorted(_pieces(made, list(texts), tokens))]
    made.model = models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]")
    made.add_special_tokens(SPECIALS)
    frame = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=frame)
    return made


def _pieces(untrained: Tokenizer, texts: list[str], tokens: int) -> set[str]:
    """Return the pieces that training finds, special tokens aside.

    Of equally frequent pairs, training joins the one with the lowest ids first, and it gives ids to characters inside
    words in the order of a hash table, which differs in each process. Here they have their ids beforehand, as special
    tokens of a tokenizer that is thrown away. Without that, the same texts gave another vocabulary in each process,
    and with it another teacher.
    """
    words = {word for text in texts for word in _words(untrained, text)}
    inside = [f"##{character}" for character in sorted({character for word in words for character in word[1:]})]
    scratch = Tokenizer.from_str(untrained.to_str())
    scratch.train_from_iterator(
        texts,
        trainers.WordPieceTrainer(vocab_size=tokens, special_tokens=[*SPECIALS, *inside], show_progress=False),
    )
    return scratch.get_vocab().keys() - set(SPECIALS)


def _words(tokenizer: Tokenizer, text: str) -> list[str]:
    normal = tokenizer.normalizer.normalize_str(text)
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
