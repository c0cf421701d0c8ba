"""The student file: which cache, which student, which loss, and how to train."""

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from cache_tools.configuration import Config
from cache_tools.storage import CachePath

TailPolicy = Literal["renormalise", "ghost"]


class StudentModelConfig(Config):
    """The student: exactly one of ``pretrained`` and ``config``.

    Attributes:
        pretrained: Local folder or hub id of weights to start from.
        revision: Branch, tag or commit of a hub id.
        config: Keys of a transformers configuration, ``model_type`` among them, for a student
            from random weights; ``vocab_size`` defaults to the teacher's.
        dtype: Type of the weights.
        trust_remote_code: Run Python code that comes with the model. Only for models you trust.
    """

    pretrained: str | None = None
    revision: str | None = None
    config: dict[str, Any] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> "StudentModelConfig":
        if (self.pretrained is None) == (self.config is None):
            raise ValueError("give exactly one of pretrained and config")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config needs a model_type, such as llama")
        return self


class LossConfig(Config):
    """What the student minimises: ``kd_weight * KL(teacher || student) + (1 - kd_weight) * cross-entropy``.

    Attributes:
        kd_weight: Share of the distillation loss; 0 trains on the text alone.
        tail: What becomes of the mass outside the kept tokens. ``ghost``: one more outcome,
            matched by whatever the student gives to all other tokens. ``renormalise``: the
            kept probabilities are scaled to sum to 1, which pushes the student's tail to zero.
    """

    kd_weight: float = Field(default=1.0, ge=0, le=1)
    tail: TailPolicy = "ghost"


class StudentConfig(Config):
    """The whole student file.

    Attributes:
        cache: Folder of the cache.
        encoding: Name of the encoding; may be left out if there is one.
        teacher: Name of the teacher; may be left out if there is one.
        student: The model to train.
        loss: The loss.
        window_shards: Shards whose sequences are shuffled together; each loader worker keeps
            that many in memory, 260 to 320 bytes a position at k = 64.
        training: Arguments of transformers' ``TrainingArguments``, by their own names.
    """

    cache: CachePath
    encoding: str | None = None
    teacher: str | None = None
    student: StudentModelConfig
    loss: LossConfig = LossConfig()
    window_shards: PositiveInt = 4
    training: dict[str, Any]

    @model_validator(mode="after")
    def _output(self) -> "StudentConfig":
        if not self.training.get("output_dir"):
            raise ValueError("training needs an output_dir")
        return self
