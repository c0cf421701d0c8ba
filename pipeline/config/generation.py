"""The generation file: which model completes which prompts, and how tokens are drawn."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from cache_tools.configuration import Config
from pipeline.config.engines import ELSEWHERE, WritingServerConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.corpus.config import CorpusConfig


class PolicyConfig(Config):
    """The model that writes: a teacher, or a student's ``final`` folder.

    Attributes:
        model: Local folder or hub id of the model. Of a model that a server runs, the tokenizer and the configuration
            suffice.
        revision: Branch, tag or commit of a hub id.
        dtype: Type in which the forward pass computes; ``auto`` is the type of the checkpoint. Of a server it is what
            you know of it, and ``auto`` is recorded as unknown.
        trust_remote_code: Run Python code that comes with the model. Only for models you trust.
        device: Device of the model; ``auto`` takes a GPU when there is one.
        device_map: For a model larger than one device, instead of ``device``; as of a teacher.
        attention: Attention implementation, by its name in transformers; default: the choice of transformers.
        engine: A server that runs the model; default: transformers, in this process.
    """

    model: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    trust_remote_code: bool = False
    device: str = "auto"
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | dict[str, int | str] | None = None
    attention: str | None = None
    engine: WritingServerConfig | None = None

    @model_validator(mode="after")
    def _one_placement(self) -> "PolicyConfig":
        self.as_teacher()
        return self

    @model_validator(mode="after")
    def _left_to_the_server(self) -> "PolicyConfig":
        given = [key for key in ("device", "device_map", "attention") if key in self.model_fields_set]
        if self.engine is not None and given:
            raise ValueError(f"engine and {given[0]} exclude each other: {ELSEWHERE}")
        return self

    def as_teacher(self) -> TeacherConfig:
        """Return the block of a teacher that is loaded in the same way."""
        return TeacherConfig(name="policy", **self.model_dump(exclude={"engine"}))


class SamplingConfig(Config):
    """How tokens are drawn. With the defaults, completions are samples of the model's own distribution.

    Attributes:
        temperature: The logits are divided by it; 0 takes the likeliest token each time.
        top_p: Draw only from the likeliest tokens that together reach this mass; 1 draws from all.
        top_k: Draw only from so many of the likeliest tokens; 0 draws from all.
        max_new_tokens: Length at which a completion is cut.
        samples_per_prompt: Completions of each prompt; more than one need a temperature above 0.
        seed: Seed of the draws; each draw depends on (seed, id of the prompt, number of the sample, position) alone. A
            server gets a seed for each completion, made from the first three.
    """

    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_new_tokens: PositiveInt = 256
    samples_per_prompt: PositiveInt = 1
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _something_to_draw(self) -> "SamplingConfig":
        if self.temperature == 0:
            unused = [key for key in ("top_p", "top_k", "seed") if key in self.model_fields_set]
            if unused:
                raise ValueError(f"temperature: 0 draws nothing and does not use {', '.join(unused)}; remove it")
            if self.samples_per_prompt > 1:
                raise ValueError("temperature: 0 writes the same completion each time; set samples_per_prompt: 1")
        return self


class GenerateConfig(Config):
    """The whole generation file.

    Attributes:
        output: Local folder of the completions; created if absent, continued if present.
        policy: The model that writes.
        prompts: What it completes, read as a corpus is: texts are continued, and chats are answered. Assistant turns
            at the end of a chat are left out: the model writes another one. It also reads a ``context``; the
            completions keep the fields of it, so that a capture file with the same block reads it again.
        sampling: How tokens are drawn.
        batch_prompts: Completions that transformers writes together; 1 pads nothing.
        part_completions: Completions in each file of the output, the unit of work that a stop can lose.
    """

    output: Path
    policy: PolicyConfig
    prompts: CorpusConfig
    sampling: SamplingConfig = SamplingConfig()
    batch_prompts: PositiveInt = 16
    part_completions: PositiveInt = 256

    @model_validator(mode="after")
    def _batches_are_formed_here(self) -> "GenerateConfig":
        if self.policy.engine is not None and "batch_prompts" in self.model_fields_set:
            raise ValueError("policy.engine and batch_prompts exclude each other: set engine.requests_in_flight")
        return self

    @model_validator(mode="after")
    def _prompts_are_read_whole(self) -> "GenerateConfig":
        given = [
            key for key in ("mask_field", "label_field", "held_out_fraction") if key in self.prompts.model_fields_set
        ]
        if given:
            raise ValueError(f"prompts do not use {', '.join(given)}; set it where the completions are captured")
        return self

    @model_validator(mode="after")
    def _context_fields_are_kept(self) -> "GenerateConfig":
        context = self.prompts.context
        names = () if context is None else (*context.text_fields, *filter(None, [context.messages_field]))
        taken = [name for name in names if name in WRITTEN_FIELDS]
        if taken:
            raise ValueError(f"prompts.context uses the field {taken[0]!r}, which a completion has itself; rename it")
        return self


WRITTEN_FIELDS = (
    *("id", "group", "ids", "mask", "completion", "text", "messages", "tools"),
    *("stop", "prompt_tokens", "completion_tokens"),
)
"""Fields of a completion. The fields that a context is made from are written beside them."""
