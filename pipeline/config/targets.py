"""What is kept of a teacher: the ``target:`` and ``hidden:`` blocks."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from cache_tools.codecs.registry import DEFAULT_MAX_KL_NATS
from cache_tools.configuration import Config
from cache_tools.format.layout import MAX_TEMPERATURE, MIN_TEMPERATURE
from cache_tools.format.manifest import Kind
from cache_tools.storage import CachePath


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
