"""One entry of ``teachers:``: the model, where and how it runs, and what is kept of its predictions."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from cache_tools.configuration import Config
from pipeline.config.engines import ServerConfig, VllmConfig
from pipeline.config.names import FolderName
from pipeline.config.targets import HiddenConfig, TargetConfig


class TeacherConfig(Config):
    """One teacher.

    Attributes:
        name: Name of the teacher, and of the folder of its predictions in the cache.
        model: Local folder or hub id of the model. Of a teacher that a server reads, only the configuration and the
            tokenizer are needed.
        gguf_file: Name of a GGUF file in that folder or under that id, instead of safetensors: weights, configuration
            and tokenizer come from it. Weights are dequantised to ``dtype``, by default float32, and take the memory
            of that; needs ``logitcask[gguf]``.
        revision: Branch, tag or commit of a hub id.
        engine: What reads the tokens: a serving engine in a process of its own, or a server that already runs;
            default: transformers, in this process.
        dtype: Type in which the forward pass computes; ``auto`` is the type of the checkpoint. Of a server it is what
            you know of it: given as ``bfloat16`` or ``float16``, rows are kept bit for bit as of any such teacher.
        trust_remote_code: Run Python code that comes with the model. Only for models you trust.
        target: What is kept of each distribution.
        hidden: Which hidden states are kept.
        device: Device of the teacher; ``auto`` takes a GPU when there is one.
        device_map: For a teacher larger than one device, instead of ``device``: ``auto`` or another strategy of
            accelerate, or a mapping of modules to devices, with ``cpu`` and ``disk`` for modules that fit no GPU.
        tensor_parallel: For a teacher larger than one device: number of processes, each with a GPU, that hold a part
            of every matrix and run each batch together. torchrun starts them.
        gpus: Number of GPUs that a worker of a Ray cluster takes for this teacher; more than 1 needs ``device_map``
            or ``engine``. Default: 1, or 0 if the cluster has no GPU.
        batch_tokens: Tokens per forward pass, padding included; 1 reads each sequence alone.
        attention: Attention implementation, by its name in transformers (``sdpa``, ``eager``, ``flash_attention_2``,
            …); default: the choice of transformers.
        packing: Whether the sequences of a batch are put into one row, kept apart by their positions, instead of
            being padded; causal only. Default: only with flash attention, which then reads no padding.
        compile: Compile the teacher with ``torch.compile``. Compilation takes minutes, and rounding changes.
        nan_rows: What happens at a position whose logits are not numbers: the capture ends (``fail``), or the
            position is kept as an empty row, which is counted in the receipt and ignored by students (``skip``).
    """

    name: FolderName
    model: str
    gguf_file: str | None = Field(default=None, pattern=r"\.gguf$")
    revision: str | None = None
    engine: VllmConfig | ServerConfig | None = Field(default=None, discriminator="kind")
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
        if self.device_map is None and self.engine is None and self.gpus > 1:
            raise ValueError(f"gpus: {self.gpus} needs device_map: auto; without it all GPUs but one stay idle")
        return self

    @model_validator(mode="after")
    def _left_to_the_engine(self) -> "TeacherConfig":
        if self.engine is None:
            return self
        settings = self._given("", self) | self._given("hidden.", self.hidden) | self._given("target.", self.target)
        for key, reason in self.engine.refused(settings).items():
            raise ValueError(f"engine and {key} exclude each other: {reason}")
        if isinstance(self.engine, ServerConfig) and not self.target.kind.is_ranked:
            raise ValueError(f"target.kind: {self.target.kind} needs whole distributions; a server gives only topk")
        return self

    @staticmethod
    def _given(prefix: str, block: Config) -> dict[str, object]:
        """Return the keys of a block that the file gives a value other than the default, with that value."""
        fields = type(block).model_fields
        values = {name: getattr(block, name) for name in block.model_fields_set}
        return {prefix + name: value for name, value in values.items() if value != fields[name].default}
