"""The student file: which cache, which student, which loss, and how to train."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from cache_tools.configuration import Config
from cache_tools.format.layout import MAX_TEMPERATURE, MIN_TEMPERATURE, NAME_PATTERN
from cache_tools.mappings import JsonObject
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
        dtype: Data type of the weights.
        attention: Implementation, by transformers' name (``sdpa``, ``eager``, ``flash_attention_2``, …);
            default: what transformers chooses.
        trust_remote_code: Run Python code that comes with the model. Only for models you trust.
        lora: Train only low-rank adapters on top of ``pretrained``; needs ``logitcask[lora]``.
    """

    pretrained: str | None = None
    gguf_file: str | None = Field(default=None, pattern=r"\.gguf$")
    revision: str | None = None
    config: JsonObject | None = None
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
            raise ValueError("lora adapts pretrained weights: set pretrained")
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
    """A layer of the student that is trained to match a layer of the teacher, through a learned projection.

    Attributes:
        student_layer: Index into the student's hidden states; 0 is the embeddings.
        teacher_layer: Index into the teacher's hidden states, or ``last``; the cache must hold this layer.
        teacher: Name of the teacher whose layer it is; required with ``teachers``, and only used there.
        project: Side that the learned matrix maps to the width of the other side. With ``teacher``, a small matrix and
            small states of the student make ``mse`` small without any learning, so use it beside another loss.
        kind: ``mse``, the mean square over channels, or ``cosine``, 1 - cos.
        start: What the matrix is before the first step. ``identity``: that, between layers of one width, else random
            numbers. ``ridge``: the best linear map between the states as they are, see
            ``trainer/loop/projection_start.py``; for a teacher that the student was not cut from.
        weight: Factor of this term, which is added to the rest of the loss.
    """

    student_layer: int = Field(ge=0)
    teacher_layer: int | Literal["last"]
    teacher: str | None = None
    project: Literal["student", "teacher"] = "student"
    kind: Literal["mse", "cosine"] = "mse"
    start: Literal["identity", "ridge"] = Field(default="identity", exclude_if=lambda start: start == "identity")
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


class RankConfig(Config):
    """A loss between sorted probabilities, for a student with its own tokenizer.

    Attributes:
        of: ``all``: the teacher's probabilities against the student's, both sorted, whatever the tokens are, in place
            of the divergence (Universal Logit Distillation). ``unmapped``: the same for the tokens that only one of the
            two vocabularies has, beside the divergence on the tokens that both have (the hybrid of GOLD).
        weight: Factor of the sum of absolute differences, rank by rank.
        mapped_weight: Factor of the divergence; needed with ``unmapped``, and only used there.
    """

    of: Literal["all", "unmapped"]
    weight: float = Field(default=1.0, gt=0)
    mapped_weight: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _weights(self) -> "RankConfig":
        if (self.mapped_weight is None) != (self.of == "all"):
            raise ValueError("mapped_weight is needed with of: unmapped, and used by nothing else")
        return self


class LossConfig(Config):
    """What the student minimises: ``kd_weight * divergence + (1 - kd_weight) * cross-entropy + hidden terms``.

    Not every combination is exact or unbiased on every cache; ``logitcask train --explain`` shows which are.

    Attributes:
        kd_weight: Weight of the distillation loss; 0 trains on the text alone.
        source: ``targets``: the sparse targets. ``hidden``: the whole distribution, rebuilt from the stored layer
            ``last``; exact, and costs the memory of the teacher's output matrix and a product with it.
        divergence: ``forward_kl``, ``reverse_kl``, ``jensen_shannon`` or ``total_variation``.
        beta: Weight of the teacher in the mixture of ``jensen_shannon``; 0.5 is usual.
        tail: How the left-out mass is treated. ``ghost``: as one more outcome, compared with the mass that the
            student gives to all other tokens. ``renormalise``: the kept probabilities are scaled to sum to 1, which
            pushes the student's tail to zero. ``gold``: the mass is added to the gold token. ``uniform``: it is spread
            evenly over the other tokens. ``minimum``: each other token gets the logit of the least likely one (scalar
            ``tail_minimum``), and the distribution is normalised again. ``none``: only the kept tokens are compared.
        temperature: Both sides' logits are divided by it. The loss is multiplied by its square (by
            itself for ``total_variation``), so that ``kd_weight`` keeps its meaning.
        hidden: Layers that are trained to match layers of the teacher.
        ranks: Compare sorted probabilities where no map connects the tokens; needs ``alignment`` and temperature 1.
        label_weight: Weight of the mean over labels, in an encoding with labels; see
            ``trainer/data/position_weights.py``. If neither this nor ``token_weight`` is given, all positions have the
            same weight.
        token_weight: Weight of the mean over all other kept positions, in an encoding with labels.
        allow_biased: Accept a combination whose minimum is not the teacher.
    """

    kd_weight: float = Field(default=1.0, ge=0, le=1)
    source: Literal["targets", "hidden"] = "targets"
    divergence: Divergence = "forward_kl"
    beta: float = Field(default=0.5, gt=0, lt=1)
    tail: TailPolicy = "ghost"
    temperature: float = Field(default=1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    hidden: tuple[HiddenPair, ...] = ()
    # left out of run.json at its default, so that runs which began before this key existed continue
    ranks: RankConfig | None = Field(default=None, exclude_if=lambda ranks: ranks is None)
    label_weight: float | None = Field(default=None, ge=0)
    token_weight: float | None = Field(default=None, ge=0)
    allow_biased: bool = False

    @model_validator(mode="after")
    def _used_keys(self) -> "LossConfig":
        if "beta" in self.model_fields_set and self.divergence != "jensen_shannon":
            raise ValueError(f"beta is used by jensen_shannon only; divergence is {self.divergence}")
        if "tail" in self.model_fields_set and self.source == "hidden":
            raise ValueError("tail is not used with source: hidden, which leaves no mass out")
        if self.ranks is not None and self.temperature != 1:
            raise ValueError("ranks compares probabilities at temperature 1")
        if self.ranks is not None and self.ranks.of == "all" and {"divergence", "tail"} & self.model_fields_set:
            raise ValueError("with ranks of all tokens there is no divergence: leave divergence and tail out")
        if self.label_weight == self.token_weight == 0:
            raise ValueError("label_weight and token_weight are both 0, so nothing would be learned")
        return self

    def of_teacher(self, name: str) -> "LossConfig":
        """Return the loss as far as it concerns one of several teachers: with the hidden pairs of that one."""
        return self.model_copy(update={"hidden": tuple(pair for pair in self.hidden if pair.teacher == name)})


class PackingConfig(Config):
    """Packing: the sequences of a batch are laid out one after another in rows, without padding. Causal students only.

    Attributes:
        row_tokens: Tokens that a row may hold; a longer sequence gets a row of its length. The length of the cache's
            longest sequence works well, see ``trainer/data/packing.py``. ``null``: all sequences in one row, which
            flash attention needs and which is slow with other implementations.
    """

    row_tokens: PositiveInt | None


class DistillationConfig(Config):
    """What a student learns from: cached teachers, and a loss. The part of a student file that any training loop needs.

    Attributes:
        cache: Folder of the cache.
        encoding: Name of the encoding; may be left out if there is one.
        teacher: Name of the teacher; may be left out if there is one.
        teachers: Several teachers of the encoding, instead of ``teacher``; see ``mixture``.
        mixture: How ``teachers`` are mixed.
        caches: Several caches, instead of ``cache``.
        vocabulary: Folder that ``logitcask vocabulary`` wrote for all these caches: the student's vocabulary, instead
            of the caches' own. Not with ``teachers``.
        alignment: Name of an alignment that ``logitcask align`` made with the student's tokenizer: the student reads
            the text with its own tokens, and learns from predictions where both have read the same bytes. With
            ``cache`` and one teacher.
        control: ``other_positions``: a negative control. Each position gets the teacher's prediction of a position half
            a shard away, of several teachers each one's, with its scalars. If a student gains as much from that, it has
            not learned from predictions about its own text.
        require_policy: ``teacher``: refuse text unless the model that scored it wrote all of it, with
            ``logitcask generate``.
        loss: The loss.
        packing: Pack the sequences of each batch into rows; by default they are padded.
        window_shards: Shards whose sequences are shuffled together. Each loader worker keeps that many in memory: 260
            to 320 bytes per position at k = 64, and the stored bytes of the hidden states that the loss uses.
    """

    cache: CachePath | None = None
    encoding: str | None = None
    teacher: str | None = None
    teachers: tuple[MixedTeacher, ...] = ()
    mixture: MixtureConfig = MixtureConfig()
    caches: tuple[MixedCache, ...] = ()
    vocabulary: CachePath | None = None
    alignment: str | None = Field(default=None, pattern=NAME_PATTERN)
    control: Literal["other_positions"] | None = None
    require_policy: Literal["teacher"] | None = None
    loss: LossConfig = LossConfig()
    packing: PackingConfig | None = None
    window_shards: PositiveInt = 4

    @model_validator(mode="after")
    def _sources(self) -> "DistillationConfig":
        if (self.cache is None) == (not self.caches):
            raise ValueError("give exactly one of cache and caches")
        if self.caches and (self.encoding or self.teacher or self.teachers):
            raise ValueError(
                "with caches, set encoding and teacher in each of them; teachers cannot be used together with caches"
            )
        if self.teachers and self.vocabulary is not None:
            raise ValueError("vocabulary cannot be used together with teachers")
        if self.alignment is not None and (self.caches or self.teachers or self.vocabulary is not None):
            raise ValueError("alignment cannot be used together with caches, teachers or vocabulary")
        if self.loss.ranks is not None and self.alignment is None:
            raise ValueError("loss.ranks is for a student with its own tokenizer: set alignment")
        if self.teacher and self.teachers:
            raise ValueError("give either teacher or teachers")
        if "mixture" in self.model_fields_set and not self.teachers:
            raise ValueError("mixture needs teachers")
        if len({teacher.name for teacher in self.teachers}) < len(self.teachers):
            raise ValueError("a teacher is listed twice in teachers; raise its weight instead")
        if len({cache.share is None for cache in self.caches}) > 1:
            raise ValueError("give a share to every cache, or to none")
        return self

    @model_validator(mode="after")
    def _hidden_pairs(self) -> "DistillationConfig":
        names: list[str | None] = [teacher.name for teacher in self.teachers] or [None]
        if any(pair.teacher not in names for pair in self.loss.hidden):
            raise ValueError(
                "with teachers, each pair of loss.hidden must name one of them as teacher; without, none may"
            )
        return self


class StudentConfig(DistillationConfig):
    """The whole student file: what a student learns from, the student, and how it is trained.

    Attributes:
        student: The model to train.
        training: Arguments of transformers' ``TrainingArguments``, by their own names; those without an effect here
            are refused. With ``eval_strategy`` the held-out split is measured during training, as by ``logitcask
            evaluate``; with several teachers against the first, with several caches over the positions of all that
            have the split, and with ``alignment`` per byte of text.
    """

    student: StudentModelConfig
    training: JsonObject

    @model_validator(mode="after")
    def _output(self) -> "StudentConfig":
        if not self.training.get("output_dir"):
            raise ValueError("training.output_dir is missing")
        return self
