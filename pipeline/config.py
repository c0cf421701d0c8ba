"""The capture file: which documents to read, how to encode them, which teachers to run, what to keep.

It is one YAML file, checked here before anything is loaded; unknown keys are errors.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from cache_tools.codecs.registry import DEFAULT_MAX_KL_NATS
from cache_tools.configuration import Config
from cache_tools.errors import FormatError
from cache_tools.format.layout import MAX_TEMPERATURE, MIN_TEMPERATURE, checked_name
from cache_tools.format.manifest import Kind, Objective
from cache_tools.storage import CachePath
from pipeline.corpus.config import CorpusConfig


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

    def identity(self) -> dict[str, Any]:
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
        positions_per_shard: Kept positions per shard, the unit of work and retry; a multiple of
            ``chunk_positions``. 131,072 makes objects of about 6 MB at k = 64.
        chunk_positions: Positions per inner chunk, the smallest piece that a reader decodes.
    """

    name: str = "main"
    tokenizer: str | None = None
    objective: Objective = "causal"
    max_length_tokens: PositiveInt = 1024
    overlap_tokens: int = Field(default=1, ge=0)
    append_eos: bool = True
    masking: MaskingConfig = MaskingConfig()
    positions_per_shard: PositiveInt = 131_072
    chunk_positions: PositiveInt = 4096

    @field_validator("name")
    @classmethod
    def _legal_name(cls, name: str) -> str:
        return _checked(name)

    @model_validator(mode="after")
    def _sizes(self) -> "EncodingConfig":
        if self.positions_per_shard % self.chunk_positions:
            raise ValueError("positions_per_shard must be a multiple of chunk_positions")
        if self.max_length_tokens > self.positions_per_shard:
            raise ValueError("max_length_tokens must not exceed positions_per_shard")
        if self.overlap_tokens >= self.max_length_tokens:
            raise ValueError("overlap_tokens must be smaller than max_length_tokens")
        return self


class TargetConfig(Config):
    """What is kept of each predicted distribution.

    Attributes:
        kind: ``topk`` keeps the k most likely tokens; ``topp`` the fewest of them that reach the mass p;
            ``sampled`` draws with replacement, unbiased for losses linear in the target;
            ``hybrid`` the k most likely and draws from the rest, unbiased with less variance;
            ``dense`` every logit, for small vocabularies.
        k: Number of most likely tokens to keep; all tokens if the vocabulary is smaller. Not for ``sampled`` and
            ``dense``.
        p: Mass that ``topp`` reaches, in (0, 1].
        draws: Number of draws per position, for ``sampled`` (the paper uses 50) and ``hybrid``.
        seed: Seed of the random draws; each draw depends on (seed, sequence, position) alone.
        temperatures: Further temperatures at which students will use the targets. For each, the log-normaliser of the
            logits divided by it is kept, so that kept probabilities can be tempered without bias; and
            ``max_kl_nats`` holds at each as it does at 1.
        scalars: Further numbers per position: ``gold_rank`` (how many tokens are likelier than the gold token), and
            ``tail_mean``, ``tail_variance`` and ``tail_minimum`` of the logits outside the k most likely.
        max_kl_nats: Error budget of the stored targets, in nats: the mean over a shard of the KL divergence from the
            predicted to the stored distribution, over the k tokens and the rest. Each shard is quantised as
            coarsely as the budget allows. It also bounds the KL between the kept tokens at each of ``temperatures``,
            whose error ``inspect`` shows; at any other temperature the expected error of a row is at most 16 times the
            budget.
        exact: Store every bit of the float32 log-probabilities instead of quantising. The logits of a teacher in
            bfloat16 or float16 lie on a coarse grid, so its exact rows take about 100 bytes at k = 64; those of a
            float32 teacher take about 240. Default: true for a teacher in bfloat16 or float16 with ``topk`` or
            ``topp``, unless ``max_kl_nats`` is given. Given as true, or with ``temperatures``, the scalars of an exact
            target are float32 too; else they are steps of 1/1,024.
        rank_ids: Store ids by rank tables, learned from the teacher's predictions at one position in 32 before the
            first shard; rows become a seventh smaller. For ``topk`` and ``topp``. Default: true with ``exact``.
        vocabulary: Folder of a smaller vocabulary, made by ``logitcask vocabulary --keep``: the distribution is over
            its tokens. The teacher still reads the whole text, and ids stay those of the teacher.
    """

    kind: Kind = Kind.TOPK
    k: PositiveInt = 64
    p: float | None = Field(default=None, gt=0, le=1)
    draws: PositiveInt | None = Field(default=None, le=65_535)
    seed: int = Field(default=0, ge=0, lt=2**63)
    temperatures: tuple[Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)], ...] = ()
    scalars: tuple[Literal["gold_rank", "tail_mean", "tail_variance", "tail_minimum"], ...] = ()
    max_kl_nats: float = Field(default=DEFAULT_MAX_KL_NATS, ge=1e-9, le=0.1)
    exact: bool | None = None
    rank_ids: bool | None = None
    vocabulary: CachePath | None = None

    @model_validator(mode="after")
    def _fits_the_kind(self) -> "TargetConfig":
        needed = {"p": self.kind.has_mass, "draws": self.kind.is_drawn}
        for key, is_needed in needed.items():
            if is_needed and getattr(self, key) is None:
                raise ValueError(f"kind: {self.kind} needs {key}")
        lossless = not self.kind.has_head or bool(self.exact)
        allowed = {
            **needed,
            "seed": needed["draws"],
            "k": self.kind.has_head,
            "exact": self.kind.has_head,
            "rank_ids": self.kind.is_ranked,
            "max_kl_nats": not lossless,
        }
        without = [key for key, fits in allowed.items() if not fits and key in self.model_fields_set]
        if without:
            what = "exact: true" if self.exact else f"kind: {self.kind}"
            raise ValueError(f"{what} does not use {', '.join(without)}; remove it")
        return self


class HiddenConfig(Config):
    """Which hidden states are kept, and how.

    Each layer of a shard is held in memory as float32 until it is written: 2 GB for 131,072 positions of
    width 4,096. Give wide teachers fewer ``positions_per_shard``.

    Attributes:
        layers: Indices into transformers' ``hidden_states``, or ``last``: the input of the output
            matrix. From it and the ``head.safetensors`` in the cache the whole distribution can be computed.
            Layers that are added later are captured without redoing the rest.
        codec: ``bfloat16`` or ``float32`` store the states in that type; ``budget`` quantises them within an error.
        max_kl_nats: Error budget of layer ``last``, in nats: mean KL divergence of the distribution that the states
            lead to, at temperature 1 and at each of ``target.temperatures``.
        max_relative_error: Error budget of other layers: rms error of each channel relative to its rms.
    """

    layers: tuple[int | Literal["last"], ...] = ()
    codec: Literal["bfloat16", "float32", "budget"] = "bfloat16"
    max_kl_nats: float = Field(default=1e-4, ge=1e-9, le=1)
    max_relative_error: float = Field(default=0.02, ge=1e-5, le=1)

    @property
    def stored_codec(self) -> Literal["bfloat16", "float32", "transform"]:
        """Name of the codec in the cache."""
        return "transform" if self.codec == "budget" else self.codec

    @model_validator(mode="after")
    def _budgets(self) -> "HiddenConfig":
        budgets = {"max_kl_nats", "max_relative_error"} & self.model_fields_set
        if budgets and self.codec != "budget":
            raise ValueError(f"{' and '.join(sorted(budgets))} need codec: budget")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("a layer is named twice")
        return self


class TeacherConfig(Config):
    """One teacher.

    Attributes:
        name: Name of the teacher, and of the folder of its predictions in the cache.
        model: Local folder or hub id of the model.
        gguf_file: Name of a GGUF file in that folder or under that id, instead of safetensors: weights, configuration
            and tokenizer come from it. Weights are dequantised to ``dtype``, by default float32, and take the memory
            of that; needs ``logitcask[gguf]``.
        revision: Branch, tag or commit of a hub id.
        dtype: Type in which the forward pass computes; ``auto`` is the type of the checkpoint.
        trust_remote_code: Run Python code that comes with the model. Only for models you trust.
        target: What is kept of each distribution.
        hidden: Which hidden states are kept.
        device: Device of the teacher; ``auto`` takes a GPU when there is one.
        device_map: For a teacher larger than one device, instead of ``device``: ``auto`` or another strategy of
            accelerate, or a mapping of modules to devices, with ``cpu`` and ``disk`` for modules that fit no GPU.
        tensor_parallel: For a teacher larger than one device: number of processes, each with a GPU, that hold a part
            of every matrix and run each batch together. torchrun starts them.
        gpus: Number of GPUs that a worker of a Ray cluster takes for this teacher; more than 1 needs ``device_map``.
            Default: 1, or 0 if the cluster has no GPU.
        batch_tokens: Tokens per forward pass, padding included; 1 reads each sequence alone.
        attention: Attention implementation, by its name in transformers (``sdpa``, ``eager``, ``flash_attention_2``,
            …); default: the choice of transformers.
        packing: Whether the sequences of a batch are put into one row, kept apart by their positions, instead of
            being padded; causal only. Default: only with flash attention, which then reads no padding.
        compile: Compile the teacher with ``torch.compile``. Compilation takes minutes, and rounding changes.
        nan_rows: What happens at a position whose logits are not numbers: the capture ends (``fail``), or the
            position is kept as an empty row, which is counted in the receipt and ignored by students (``skip``).
    """

    name: str
    model: str
    gguf_file: str | None = Field(default=None, pattern=r"\.gguf$")
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    target: TargetConfig = TargetConfig()
    hidden: HiddenConfig = HiddenConfig()
    device: str = "auto"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, int | str] | None = None
    tensor_parallel: PositiveInt = 1
    gpus: PositiveInt = 1
    batch_tokens: PositiveInt = 16_384
    attention: str | None = None
    packing: bool | None = None
    compile: bool = False
    nan_rows: Literal["fail", "skip"] = "fail"

    @field_validator("name")
    @classmethod
    def _legal_name(cls, name: str) -> str:
        return _checked(name)

    @model_validator(mode="after")
    def _rows_can_be_empty(self) -> "TeacherConfig":
        if self.nan_rows == "skip" and not self.target.kind.has_head:
            raise ValueError(f"nan_rows: skip needs rows that can be empty; rows of kind: {self.target.kind} cannot")
        return self

    @model_validator(mode="after")
    def _one_placement(self) -> "TeacherConfig":
        if self.device_map is not None and self.device != "auto":
            raise ValueError("device and device_map exclude each other")
        excluded = {"device": self.device != "auto", "device_map": self.device_map is not None, "compile": self.compile}
        if self.tensor_parallel > 1 and any(excluded.values()):
            raise ValueError(f"tensor_parallel and {next(key for key in excluded if excluded[key])} exclude each other")
        if self.gguf_file is not None and self.tensor_parallel > 1:
            raise ValueError("a GGUF file cannot be split: gguf_file and tensor_parallel exclude each other")
        if self.device_map is None and self.gpus > 1:
            raise ValueError(f"gpus: {self.gpus} needs device_map: auto; without it all GPUs but one stay idle")
        return self


class AuditConfig(Config):
    """How much of a capture is compared with the live teacher, and how far the two may differ.

    Tolerances are added to the error that the cache's manifest allows its codec. The default of each follows from the
    dtype in which the cache was captured, see ``TOLERANCES`` in ``pipeline/audit/verdict.py``.

    Attributes:
        shards: Number of committed shards to sample at random.
        sequences_per_shard: Number of sequences to sample from each shard: by default 64 in all, about ten thousand
            positions.
        seed: Seed of the random sample.
        max_kl_nats: Tolerance of the mean KL divergence of a shard's sampled rows, in nats.
        max_error_nats: Tolerance, in nats, of the mean absolute error of log-normaliser, entropy and gold
            log-probability, and of the mean surprisal of draws.
        max_relative_error: Tolerance of the error of hidden states except ``last``, relative to each channel's spread.
    """

    shards: PositiveInt = 8
    sequences_per_shard: PositiveInt = 8
    seed: int = Field(default=0, ge=0)
    max_kl_nats: float | None = Field(default=None, gt=0)
    max_error_nats: float | None = Field(default=None, gt=0)
    max_relative_error: float | None = Field(default=None, gt=0)


class CaptureConfig(Config):
    """The whole capture file.

    Attributes:
        cache: Folder or URL (``s3://…``) of the cache; created if absent, continued if present.
        corpus: Which documents to read.
        encoding: How documents become sequences.
        teachers: Teachers to run, one after another, with different names.
        audit: How ``logitcask audit`` compares the capture with the live teachers.
    """

    cache: CachePath
    corpus: CorpusConfig
    encoding: EncodingConfig = EncodingConfig()
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _together(self) -> "CaptureConfig":
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) < len(names):
            raise ValueError("teachers need different names")
        if len({teacher.tensor_parallel for teacher in self.teachers}) > 1:
            raise ValueError("teachers of one capture file need the same tensor_parallel; others go into a second file")
        return self

    @model_validator(mode="after")
    def _something_to_predict(self) -> "CaptureConfig":
        masked, masking = self.encoding.objective == "masked", self.encoding.masking
        if self.corpus.label_field and not masked:
            raise ValueError("corpus.label_field needs encoding.objective: masked")
        if masked and masking.probability == 0 and masking.keep == "slots" and not self.corpus.label_field:
            raise ValueError("encoding.masking.probability: 0 leaves nothing to predict; set keep: all, or use labels")
        return self


def _checked(name: str) -> str:
    try:
        return checked_name(name)
    except FormatError as error:
        raise ValueError(str(error)) from error
