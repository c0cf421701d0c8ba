"""The capture file as a whole, and what its blocks demand of one another."""

from pydantic import Field, model_validator

from cache_tools.configuration import Config
from cache_tools.storage import CachePath
from pipeline.config.audit import AuditConfig
from pipeline.config.encoding import EncodingConfig
from pipeline.config.teacher import TeacherConfig
from pipeline.corpus.config import CorpusConfig


class CaptureConfig(Config):
    """The whole capture file.

    Attributes:
        cache: Folder or URL (``s3://…``) of the cache; created if absent, continued if present.
        corpus: Which documents to read.
        encoding: How documents become sequences.
        teachers: Teachers to run, one after another, with different names.
        audit: How ``logitcask audit`` compares the capture with the live teachers.
    """

    cache: CachePath
    corpus: CorpusConfig
    encoding: EncodingConfig = EncodingConfig()
    teachers: tuple[TeacherConfig, ...] = Field(min_length=1)
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _together(self) -> "CaptureConfig":
        names = [teacher.name for teacher in self.teachers]
        if len(set(names)) < len(names):
            raise ValueError("teachers need different names")
        if len({teacher.tensor_parallel for teacher in self.teachers}) > 1:
            raise ValueError("teachers of one capture file need the same tensor_parallel; others go into a second file")
        return self

    @model_validator(mode="after")
    def _something_to_predict(self) -> "CaptureConfig":
        masked, masking = self.encoding.objective == "masked", self.encoding.masking
        if self.corpus.label_field and not masked:
            raise ValueError("corpus.label_field needs encoding.objective: masked")
        if self.corpus.context is not None and masked:
            raise ValueError("corpus.context is for encoding.objective: causal")
        engines = [teacher.name for teacher in self.teachers if teacher.engine is not None]
        if masked and engines:
            raise ValueError(f"teacher {engines[0]!r}: an engine predicts next tokens only; leave engine out")
        if self.encoding.segments and self.teachers[0].tensor_parallel > 1:
            raise ValueError("encoding.segments and tensor_parallel cannot be used together; set tensor_parallel: 1")
        if masked and masking.probability == 0 and masking.keep == "slots" and not self.corpus.label_field:
            raise ValueError("encoding.masking.probability: 0 leaves nothing to predict; set keep: all, or use labels")
        return self
