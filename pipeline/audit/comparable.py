"""Refuse to compare what cannot be compared: other tokens, other shapes, or more than an engine gives."""

from cache_tools.errors import ConfigError, IdentityError
from cache_tools.format.fingerprint import differences
from cache_tools.store.teacher import CachedTeacher
from pipeline.config.engines import ServerConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.teachers.restriction import Restriction
from pipeline.teachers.teacher import AnyTeacher, Teacher


def check_restriction(cached: CachedTeacher, restriction: Restriction | None) -> None:
    """Refuse a capture file whose target is over other tokens than the captured one."""
    captured, configured = cached.manifest.target.settings.get("vocabulary"), restriction and restriction.vocabulary
    if captured != configured:
        raise IdentityError(
            f"teacher {cached.name!r} was captured over other tokens",
            where="target.vocabulary",
            expected=f"vocabulary {captured[:12]}…" if captured else "none",
            found=f"{configured[:12]}…" if configured else "none",
            fix="Audit with the capture file that the cache was made with",
        )


def check_layers(cached: CachedTeacher, config: TeacherConfig) -> None:
    """Refuse an engine that cannot give what the cache holds, before it is started."""
    if config.engine is None:
        return
    served, kind = isinstance(config.engine, ServerConfig), cached.manifest.target.kind
    lacking = [f"layer {layer}" for layer in cached.manifest.hidden if served or layer != "last"]
    if served and not kind.is_ranked:
        lacking.append(f"whole distributions, which a target of kind {kind} is made from")
    if served and "tokens" in cached.manifest.target.settings:
        lacking.append("distributions over a smaller vocabulary")
    if lacking:
        raise ConfigError(
            f"a {config.engine.kind} cannot give what the cache holds of teacher {cached.name!r}",
            where="engine",
            found=lacking[0],
            fix="Audit it with transformers: --engine transformers",
        )


def check_shapes(cached: CachedTeacher, teacher: AnyTeacher) -> None:
    """Refuse a teacher with other numbers of logits or layers: there is nothing to compare."""
    manifest = cached.manifest
    expected = {"vocabulary": manifest.vocabulary_size}
    live = {"vocabulary": teacher.vocabulary_size}
    for layer, spec in manifest.hidden.items():
        assert isinstance(teacher, Teacher)  # others are refused by ``check_layers``
        config = teacher.head.model.config.get_text_config()
        there = layer == "last" or int(layer) <= config.num_hidden_layers
        expected[f"hidden {layer}"], live[f"hidden {layer}"] = spec.width, config.hidden_size if there else 0
    if live != expected:
        raise IdentityError(
            f"the live teacher {cached.name!r} is another model than the cached one",
            where=cached.path,
            found="; ".join(differences(expected, live)),
            why="its predictions have other shapes, so nothing can be compared",
            fix="Point 'model' in the capture file to the model that was captured",
        )
