"""A teacher's block of the capture file, resolved: the folder of its model, and its sparse target.

A block names a model, perhaps by a hub id, and a target, perhaps with the folder of a smaller vocabulary, which may
lie in a bucket. :func:`resolve_teacher` looks both up once; from then on the value is passed, so nothing is read twice
and no two readings can differ.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_tools.codecs.registry import Codec, codec_for
from cache_tools.format.layout import TAIL_SCALARS
from cache_tools.format.manifest import TargetSpec
from pipeline.capture.keep import Keep
from pipeline.config import TargetConfig, TeacherConfig
from pipeline.teachers.loading import resolve_model
from pipeline.teachers.restriction import read_restriction


@dataclass(frozen=True)
class SparseTarget:
    """What is kept of each distribution, and how exactly.

    Attributes:
        keep: The entries and scalars of a row.
        max_kl_nats: Mean KL divergence that quantising a shard's rows may cost; lossless kinds ignore it.
        exact: Store float32 instead of quantising.
    """

    keep: Keep
    max_kl_nats: float
    exact: bool

    def codec(self, vocabulary_size: int) -> Codec:
        """Return the codec that stores rows over this many logits; draws and dense rows are lossless by nature."""
        kind = self.keep.kind
        return codec_for(
            self.keep.slots(vocabulary_size),
            vocabulary_size,
            draws_only=not kind.has_exact_part,
            all_classes=kind.is_whole,
            exact=self.exact,
            max_kl_nats=self.max_kl_nats,
            temperatures=self.keep.temperatures,
        )

    def spec(self, vocabulary_size: int) -> TargetSpec:
        """Return the manifest's description of the target."""
        codec = self.codec(vocabulary_size)
        return TargetSpec(kind=self.keep.kind, k=codec.k, codec=codec.to_dict(), settings=_settings(self.keep))


def read_target(config: TargetConfig) -> SparseTarget:
    """Resolve a ``target:`` block; the only place that reads the smaller vocabulary.

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
    return SparseTarget(keep, config.max_kl_nats, config.exact)


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
    return ResolvedTeacher(config, resolve_model(config, weights), read_target(config.target))


def _settings(keep: Keep) -> dict[str, Any]:
    """Return the manifest's settings: what defines a target besides its kind and k, as plain JSON."""
    settings: dict[str, Any] = {"p": keep.p} if keep.kind.has_mass else {}
    if keep.draws:
        settings |= {"draws": keep.draws, "seed": keep.seed}
    if (keep.kind.has_head and keep.kind.is_drawn) or set(TAIL_SCALARS) & set(keep.scalars):
        settings["head"] = keep.k
    return settings | ({} if keep.restriction is None else keep.restriction.settings)
