"""The student file: which cache, which student, which loss, and how to train."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from cache_tools.configuration import Config
from cache_tools.format.layout import MAX_TEMPERATURE, MIN_TEMPERATURE
from cache_tools.storage import CachePath
from trainer.config.lora import LoraKeys
from trainer.config.mixture import MixedCache, MixedTeacher, MixtureConfig

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"]
TailPolicy = Literal["ghost", "renormalise", "gold", "uniform", "minimum", "none"]


class StudentModelConfig(Config):
    """The student: exactly one of ``pretrained`` and ``config``.

    Attributes:
        pretrained: Local folder or hub id of weights to start from.
        gguf_file: Name of a GGUF file in that folder or under that id, instead of safetensors; its weights are
            dequantised to ``dtype``. Needs ``logitcask[gguf]``.
        revision: Branch, tag or commit of a hub id.
        config: Keys of a transformers configuration, ``model_type`` among them, for a student
            from random weights; ``vocab_size`` defaults to the teacher's.
        dtype: Type of the weights.
        attention: Implementation, by transformers' name (``sdpa``, ``eager``, ``flash_attention_2``, …);
            default: what transformers chooses.
        trust_remote_code: Run Python code that comes with the model. Only for models you trust.
        lora: Train low-rank adapters on top of ``pretrained``, and nothing else; needs ``logitcask[lora]``.
    """

    pretrained: str | None = None
    gguf_file: str | None = Field(default=None, pattern=r"\.gguf$")
    revision: str | None = None
    config: dict[str, Any] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str | None = None
    trust_remote_code: bool = False
    lora: LoraKeys | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "StudentModelConfig":
        if (self.pretrained is None) == (self.config is None):
            raise ValueError("give exactly one of pretrained and config")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs a model_type, such as llama")
        if self.lora is not None and self.pretrained is None:
            raise ValueError("lora adapts weights that are there: give pretrained")
        if self.gguf_file is not None and self.pretrained is None:
            raise ValueError("gguf_file names a file of a model: give pretrained")
        if self.gguf_file is not None and self.lora is not None:
            raise ValueError("an adapter names its base model as a folder: lora and gguf_file exclude each other")
        return self

    @property
    def source(self) -> str | None:
        """Where the weights come from: folder or hub id, and the GGUF file if one is named."""
        if self.pretrained is None or self.gguf_file is None:
            return self.pretrained
        return f"{self.pretrained.rstrip('/')}/{self.gguf_file}"


class HiddenPair(Config):
    """A layer of the student that is to resemble a layer of the teacher, through a learned projection.

    Attributes:
        student_layer: Index into the student's hidden states; 0 is the embeddings.
        teacher_layer: The same of the teacher, or ``last``; the cache must hold it.
        teacher: Whose layer it is, with ``teachers``; only there.
        project: Which side the learned matrix maps to the width of the other. With ``teacher`` a small matrix and
            small states of the student make ``mse`` small without any learning: keep another loss beside it.
        kind: ``mse``, the mean square over channels, or ``cosine``, 1 - cos.
        weight: Factor of this term; the loss adds it to everything else.
    """

    student_layer: int = Field(ge=0)
    teacher_layer: int | Literal["last"]
    teacher: str | None = None
    project: Literal["student", "teacher"] = "student"
    kind: Literal["mse", "cosine"] = "mse"
    weight: float = Field(default=1.0, gt=0)

    @property
    def layer(self) -> str:
        """Name of the teacher's layer in the cache."""
        return str(self.teacher_layer)

    @property
    def state(self) -> str:
        """Name of the teacher's states in a batch."""
        return state_name(self.teacher, self.layer)


def state_name(teacher: str | None, layer: str) -> str:
    """Return under which name a batch holds a layer; of several teachers with the teacher's."""
    return layer if teacher is None else f"{teacher}/{layer}"


class LossConfig(Config):
    """What the student minimises: ``kd_weight * divergence + (1 - kd_weight) * cross-entropy + hidden terms``.

    Not every combination is honest on every cache; ``logitcask train --explain`` shows which are.

    Attributes:
        kd_weight: Share of the distillation loss; 0 trains on the text alone.
        source: ``targets``: the sparse targets. ``hidden``: the whole distribution, rebuilt from the
            kept layer ``last``; exact, for the price of the teacher's output matrix.
        divergence: ``forward_kl``, ``reverse_kl``, ``jensen_shannon`` or ``total_variation``.
        beta: Of ``jensen_shannon``: the teacher's share of the mixture; 0.5 is the usual one.
        tail: What becomes of the mass outside the kept tokens. ``ghost``: one more outcome,
            matched by whatever the student gives to all other tokens. ``renormalise``: the
            kept probabilities are scaled to sum to 1, which pushes the student's tail to zero. ``gold``: it is
            added to the gold token. ``uniform``: it is spread evenly over the other tokens. ``minimum``: each of
            them gets the least likely token's logit (scalar ``tail_minimum``), and all are normalised anew.
            ``none``: only the kept tokens are compared.
        temperature: Both sides' logits are divided by it. The loss is multiplied by its square (by
            itself for ``total_variation``), so that ``kd_weight`` keeps its meaning.
        hidden: Layers that are to resemble the teacher's.
        label_weight: Of the mean over labels, in an encoding with labels; see ``data/position_weights.py``. Default, if
            ``token_weight`` is not given either: all positions count alike.
        token_weight: Of the mean over all other kept positions there.
        allow_biased: Accept a combination whose minimum is not the teacher.
    """

    kd_weight: float = Field(default=1.0, ge=0, le=1)
    source: Literal["targets", "hidden"] = "targets"
    divergence: Divergence = "forward_kl"
    beta: float = Field(default=0.5, gt=0, lt=1)
    tail: TailPolicy = "ghost"
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    hidden: tuple[HiddenPair, ...] = ()
    label_weight: float | None = Field(default=None, ge=0)
    token_weight: float | None = Field(default=None, ge=0)
    allow_biased: bool = False

    @model_validator(mode="after")
    def _used_keys(self) -> "LossConfig":
        if "beta" in self.model_fields_set and self.divergence != "jensen_shannon":
            raise ValueError(f"beta belongs to jensen_shannon; divergence is {self.divergence}")
        if "tail" in self.model_fields_set and self.source == "hidden":
            raise ValueError("source: hidden leaves no mass out, so it has no use for tail")
        if self.label_weight == self.token_weight == 0:
            raise ValueError("label_weight and token_weight are both 0: nothing would be learned")
        return self

    def of_teacher(self, name: str) -> "LossConfig":
        """Return the loss as far as it concerns one of several teachers: with the hidden pairs of that one."""
        return self.model_copy(update={"hidden": tuple(pair for pair in self.hidden if pair.teacher == name)})


class PackingConfig(Config):
    """Sequences of a batch one after another in rows, instead of padded; causal students only.

    Attributes:
        row_tokens: Tokens that a row may hold; more if one sequence alone has more. The cache's longest
            sequence is a good length, see ``data/packing.py``. ``null``: all sequences in one row, which
            flash attention needs, and which is slow with any other.
    """

    row_tokens: PositiveInt | None


class StudentConfig(Config):
    """The whole student file.

    Attributes:
        cache: Folder of the cache.
        encoding: Name of the encoding; may be left out if there is one.
        teacher: Name of the teacher; may be left out if there is one.
        teachers: Several teachers of the encoding, instead of ``teacher``; see ``mixture.py``.
        mixture: How ``teachers`` are mixed.
        caches: Several caches, instead of ``cache``.
        vocabulary: Folder that ``logitcask vocabulary`` wrote for all these caches: the student's vocabulary, instead
            of the caches' own. Not with ``teachers``.
        control: ``other_positions``: a negative control. Each position is given what the teacher said half a
            shard away. A student that gains as much from that has learned nothing from the teacher about its text.
        student: The model to train.
        loss: The loss.
        packing: Pack the sequences of each batch into rows; default: pad them.
        window_shards: Shards whose sequences are shuffled together; each loader worker keeps
            that many in memory, 260 to 320 bytes a position at k = 64, and the hidden states that
            the loss uses, as they are stored.
        training: Arguments of transformers' ``TrainingArguments``, by their own names; those without an effect here
            are refused. With ``eval_strategy`` the held-out split is measured on the way, as by ``logitcask
            evaluate``; of several teachers or caches, the first.
    """

    cache: CachePath | None = None
    encoding: str | None = None
    teacher: str | None = None
    teachers: tuple[MixedTeacher, ...] = ()
    mixture: MixtureConfig = MixtureConfig()
    caches: tuple[MixedCache, ...] = ()
    vocabulary: CachePath | None = None
    control: Literal["other_positions"] | None = None
    student: StudentModelConfig
    loss: LossConfig = LossConfig()
    packing: PackingConfig | None = None
    window_shards: PositiveInt = 4
    training: dict[str, Any]

    @model_validator(mode="after")
    def _output(self) -> "StudentConfig":
        if not self.training.get("output_dir"):
            raise ValueError("training needs an output_dir")
        return self

    @model_validator(mode="after")
    def _sources(self) -> "StudentConfig":
        if (self.cache is None) == (not self.caches):
            raise ValueError("give exactly one of cache and caches")
        if self.caches and (self.encoding or self.teacher or self.teachers):
            raise ValueError(
                "with caches, each of them names its own encoding and teacher; teachers are not mixed there"
            )
        if self.teachers and (self.vocabulary is not None or self.control):
            raise ValueError("vocabulary and control are for one teacher, or one of each cache")
        if self.teacher and self.teachers:
            raise ValueError("give one of teacher and teachers")
        if "mixture" in self.model_fields_set and not self.teachers:
            raise ValueError("mixture says how teachers are mixed, and there are no teachers")
        if len({teacher.name for teacher in self.teachers}) < len(self.teachers):
            raise ValueError("a teacher stands twice in teachers; raise its weight instead")
        if len({cache.share is None for cache in self.caches}) > 1:
            raise ValueError("give a share to every cache, or to none")
        return self

    @model_validator(mode="after")
    def _hidden_pairs(self) -> "StudentConfig":
        names: list[str | None] = [teacher.name for teacher in self.teachers] or [None]
        if any(pair.teacher not in names for pair in self.loss.hidden):
            raise ValueError(
                "with teachers, each pair of loss.hidden names one of them as teacher; otherwise none does"
            )
        return self
