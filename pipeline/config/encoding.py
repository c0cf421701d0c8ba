"""The ``encoding:`` block: how documents become sequences, and which slots masked language modelling chooses."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from cache_tools.configuration import Config
from cache_tools.format.manifest import Objective
from cache_tools.mappings import Identity
from pipeline.config.names import FolderName


class MaskingConfig(Config):
    """How masked language modelling chooses its slots. They are drawn once: a cached prediction belongs to its mask.

    Attributes:
        probability: Share of ordinary tokens that become slots. 0 hides nothing; use it where documents have
            labels, or with ``keep: all``.
        mask_share: Share of slots that the teacher reads as the mask token (BERT: 0.8).
        random_share: Share of slots that the teacher reads as a random token (BERT: 0.1); the others stay visible.
        copies: Number of differently masked copies of each sequence.
        seed: Seed of the random masks; each mask depends on (seed, document, piece, copy) alone.
        keep: Where predictions are kept: at the ``slots``, or at ``all`` ordinary tokens, hidden or visible. The
            position of a label is always kept.
    """

    probability: float = Field(default=0.15, ge=0, le=1)
    mask_share: float = Field(default=0.8, ge=0, le=1)
    random_share: float = Field(default=0.1, ge=0, le=1)
    copies: PositiveInt = 1
    seed: int = 0
    keep: Literal["slots", "all"] = "slots"

    @model_validator(mode="after")
    def _shares(self) -> "MaskingConfig":
        if self.mask_share + self.random_share > 1:
            raise ValueError("mask_share + random_share must not exceed 1")
        return self

    def identity(self) -> Identity:
        """Return what determines the masks, as plain JSON; keys of later versions are included only where used."""
        return self.model_dump(mode="json", exclude={"keep"} if self.keep == "slots" else None)


class EncodingConfig(Config):
    """How documents become sequences. Teachers that share a tokenizer share an encoding.

    Attributes:
        name: Folder of this encoding in the cache.
        tokenizer: Folder or hub id of the tokenizer; default: the tokenizer of the first teacher.
        objective: What teachers predict: the next token (``causal``) or hidden tokens (``masked``).
        max_length_tokens: Length of the longest sequence; longer documents are split, never cut off.
        overlap_tokens: Tokens of the previous piece that a piece repeats, as context only.
            With 1, every token of a document except the first is predicted exactly once.
        append_eos: Whether each plain-text document ends with the end-of-text token (causal only).
        masking: How slots are chosen (masked only).
        segments: Read what follows the first separator of a document, such as ``[SEP]``, as its second segment
            (BERT's ``token_type_ids``): for documents that are pairs, *first [SEP] second* (masked only). Teachers and
            students of the encoding get them. A pair that is too long for one sequence is refused.
        positions_per_shard: Kept positions per shard, the unit of work and retry; a multiple of
            ``chunk_positions``. 131,072 makes objects of about 6 MB at k = 64. ``auto`` chooses a size when the corpus
            is encoded first: smaller for a small corpus, larger for more than a billion positions, and never more than
            4 GiB of a worker's memory.
        chunk_positions: Positions per inner chunk, the smallest piece that a reader decodes.
    """

    name: FolderName = "main"
    tokenizer: str | None = None
    objective: Objective = "causal"
    max_length_tokens: PositiveInt = 1024
    overlap_tokens: int = Field(default=1, ge=0)
    append_eos: bool = True
    masking: MaskingConfig = MaskingConfig()
    segments: bool = False
    positions_per_shard: PositiveInt | Literal["auto"] = 131_072
    chunk_positions: PositiveInt = 4096

    @model_validator(mode="after")
    def _sizes(self) -> "EncodingConfig":
        size = self.positions_per_shard
        if size != "auto" and size % self.chunk_positions:
            raise ValueError("positions_per_shard must be a multiple of chunk_positions")
        if size != "auto" and self.max_length_tokens > size:
            raise ValueError("max_length_tokens must not exceed positions_per_shard")
        if self.overlap_tokens >= self.max_length_tokens:
            raise ValueError("overlap_tokens must be smaller than max_length_tokens")
        if self.segments and self.objective != "masked":
            raise ValueError("segments need objective: masked")
        return self

    @property
    def shard_positions(self) -> int:
        """Positions per shard, as a number: ``auto`` is resolved before anything is encoded (``host_memory.sized``)."""
        assert self.positions_per_shard != "auto", "the size of shards has not been chosen"
        return self.positions_per_shard
