"""A teacher's block of the capture file, resolved: the folder of its model, and its sparse target.

A block names a model, perhaps by a hub id, and a target, perhaps with the folder of a smaller vocabulary, which may
lie in a bucket. :func:`resolve_teacher` looks both up once; from then on the value is passed, so nothing is read twice
and no two readings can differ.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from cache_tools.codecs.registry import Codec, codec_for
from cache_tools.format.layout import GOLD_LOGPROB, TAIL_SCALARS
from cache_tools.format.manifest import TargetSpec
from cache_tools.mappings import JsonObject
from cache_tools.store.predictions import SCALAR_STEP_NATS
from pipeline.capture.keep import Keep
from pipeline.config.engines import ServerConfig
from pipeline.config.targets import TargetConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.teachers.loading import computes_in_half_precision, resolve_model
from pipeline.teachers.restriction import read_restriction


@dataclass(frozen=True)
class SparseTarget:
    """What is kept of each distribution, and how exactly.

    Attributes:
        keep: The entries and scalars of a row.
        max_kl_nats: Mean KL divergence that quantising a shard's rows may cost; lossless kinds ignore it.
        exact: Store every bit of the float32 log-probabilities instead of quantising.
        ranked: Store ids by rank tables.
        earlier: Other values of ``exact`` and ``ranked`` that the block may have meant when a cached teacher was begun.
        half_precision: The teacher computes in bfloat16 or float16.
        float_scalars: Store the scalars as float32 instead of steps: where ``exact`` was asked for, and where exact
            rows will be used at other temperatures, whose log-normalisers are scalars.
    """

    keep: Keep
    max_kl_nats: float
    exact: bool
    ranked: bool = False
    earlier: tuple[tuple[bool, bool], ...] = ()
    half_precision: bool = False
    float_scalars: bool = False

    def scalar_step_nats(self, vocabulary_size: int) -> float:
        """Return the step in which scalars are stored, in nats; 0 for float32."""
        exact = self.codec(vocabulary_size).exact_scalars or (self.exact and self.float_scalars)
        return 0.0 if exact else SCALAR_STEP_NATS

    def codec(self, vocabulary_size: int) -> Codec:
        """Return the codec that stores rows over this many logits; draws and dense rows are lossless by nature."""
        kind = self.keep.kind
        return codec_for(
            self.keep.slots(vocabulary_size),
            vocabulary_size,
            draws_only=not kind.has_exact_part,
            all_classes=kind.is_whole,
            exact=self.exact,
            ranked=self.ranked,
            max_kl_nats=self.max_kl_nats,
            temperatures=self.keep.temperatures,
        )

    def spec(self, vocabulary_size: int) -> TargetSpec:
        """Return the manifest's description of the target."""
        codec = self.codec(vocabulary_size)
        return TargetSpec(kind=self.keep.kind, k=codec.k, codec=codec.to_dict(), settings=_settings(self.keep))

    def as_stored(self, stored: TargetSpec, vocabulary_size: int) -> "SparseTarget":
        """Return this target, in the codec that the cache has it in if that is another one that it may have.

        A capture goes on as it began: the defaults of an earlier version chose other codecs.

        Args:
            stored: The cached teacher's description of its target.
            vocabulary_size: Width of the teacher's logits.
        """
        choices = (self, *(replace(self, exact=exact, ranked=ranked) for exact, ranked in self.earlier))
        return next((choice for choice in choices if choice.spec(vocabulary_size) == stored), self)


def read_target(config: TargetConfig, half_precision: bool = False) -> SparseTarget:
    """Resolve a ``target:`` block; the only place that reads the smaller vocabulary.

    Args:
        config: The block.
        half_precision: The teacher computes in bfloat16 or float16, so its logits lie on a grid.

    Raises:
        FormatError: the vocabulary cannot be read.
        DamageError: its bytes are not those that were written.
        IdentityError: it was made from several tokenizers.
    """
    keep = Keep(
        kind=config.kind,
        k=config.k,
        p=1.0 if config.p is None else config.p,
        draws=config.draws or 0,
        seed=config.seed,
        temperatures=config.temperatures,
        scalars=config.scalars,
        restriction=read_restriction(config.vocabulary),
    )
    gridded = half_precision and config.kind.is_ranked and "max_kl_nats" not in config.model_fields_set
    exact = gridded if config.exact is None else config.exact
    ranked = exact and config.kind.is_ranked if config.rank_ids is None else config.rank_ids
    earlier = [(exact, False)] if config.rank_ids is None else []
    earlier += [(False, bool(config.rank_ids))] if config.exact is None and exact else []
    float_scalars = bool(config.exact) or bool(config.temperatures)
    return SparseTarget(keep, config.max_kl_nats, exact, ranked, tuple(earlier), half_precision, float_scalars)


@dataclass(frozen=True)
class ResolvedTeacher:
    """A teacher of the capture file, ready to be checked and loaded.

    Attributes:
        config: Its block of the capture file.
        folder: The local folder of its model.
        target: Its target.
    """

    config: TeacherConfig
    folder: Path
    target: SparseTarget


def resolve_teacher(config: TeacherConfig, weights: bool = True) -> ResolvedTeacher:
    """Find a teacher's model, downloading a hub id if need be, and read its target.

    Args:
        config: The teacher's block of the capture file.
        weights: Download the weights too, and not the configuration and tokenizer alone.

    Raises:
        ModelError: the model is neither a folder nor a hub id that can be reached.
        LogitcaskError: the target cannot be read, see :func:`read_target`.
    """
    folder = resolve_model(config, weights and not isinstance(config.engine, ServerConfig))
    target = read_target(config.target, computes_in_half_precision(config, folder))
    if isinstance(config.engine, ServerConfig):
        target = replace(target, keep=replace(target.keep, common=(GOLD_LOGPROB,)))
    return ResolvedTeacher(config, folder, target)


def _settings(keep: Keep) -> JsonObject:
    """Return the manifest's settings: what defines a target besides its kind and k, as plain JSON."""
    settings: JsonObject = {"p": keep.p} if keep.kind.has_mass else {}
    if keep.draws:
        settings |= {"draws": keep.draws, "seed": keep.seed}
    if (keep.kind.has_head and keep.kind.is_drawn) or set(TAIL_SCALARS) & set(keep.scalars):
        settings["head"] = keep.k
    return settings | ({} if keep.restriction is None else keep.restriction.settings)
