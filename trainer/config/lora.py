"""The ``lora:`` block of a student: low-rank adapters, by the names of peft's ``LoraConfig``.

These are the keys with which everything that is learned is stored in the adapter, can be merged, and can be loaded by
both peft and transformers. Left out are the keys that train the pretrained weights themselves (``bias``,
``modules_to_save``), change them at the start (``init_lora_weights: pissa`` and its like), act on some tokens only,
or are not read back by transformers (``use_dora``).
"""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cache_tools.configuration import Config
from cache_tools.mappings import Arguments


class LoraKeys(Config):
    """Low-rank adapters (arXiv 2106.09685): to each chosen matrix W, ``lora_alpha / r * B @ A`` is added.

    Attributes:
        r: Rank: A is (r, in), B is (out, r).
        lora_alpha: Scale of the added product; divided by ``r``.
        lora_dropout: Probability with which an input of A is dropped.
        target_modules: Suffixes of module names, or one regular expression; ``all-linear``: all but the head.
        exclude_modules: Modules among these that get no adapter.
        layers_to_transform: Indices of the layers that get adapters; default: all.
        rank_pattern: Ranks that replace ``r``, by a pattern over module names.
        alpha_pattern: Scales that replace ``lora_alpha``, by a pattern over module names.
        use_rslora: Divide ``lora_alpha`` by the square root of ``r`` (arXiv 2312.03732).
        init_lora_weights: ``true``: A at random, B zero, so that the first step begins with the pretrained student.
    """

    r: PositiveInt = 16
    lora_alpha: PositiveFloat = 32
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    rank_pattern: dict[str, PositiveInt] = Field(default_factory=dict)
    alpha_pattern: dict[str, PositiveFloat] = Field(default_factory=dict)
    use_rslora: bool = False
    init_lora_weights: Literal[True, "gaussian"] = True

    @model_validator(mode="after")
    def _layers_of_names(self) -> "LoraKeys":
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform needs target_modules as a list of names")
        return self

    def arguments(self) -> Arguments:
        """Return all keys as ``LoraConfig`` takes them, lists for tuples."""
        return self.model_dump(mode="json")
