"""How far two runs of the same weights are apart because they round differently.

A run rounds after every operation, and which operations there are depends on the software, the processor and the batch.
The roundings of two runs are independent, so the KL divergence between them is about the sum of what separates each
from exact arithmetic. ``FROM_EXACT_NATS`` holds these distances as they were measured; ``docs/results/engines.md`` says
of which model, on which text, and by which commands. Other models differ by a small factor: a toy of 2.4 M parameters
in bfloat16 is 1e-4 nats from exact. Whoever needs the figure of another model captures it a second time with
``dtype: float32`` and runs ``logitcask diff --reference`` on the two.

This is the only module that holds such figures. The limits of audits (``MOST_NATS``) stand beside them.
"""

from dataclasses import dataclass

from cache_tools.mappings import Identity

ENGINE = "engine"
"""Key of a teacher's identity that names the engine which read the tokens."""

TRANSFORMERS = "transformers"
"""What reads the tokens where no engine is named."""

MEASURED_ON = "SmolLM2-135M"
"""The model that the figures were measured on."""

FROM_EXACT_NATS = {
    "float32": {TRANSFORMERS: 1e-11, "vllm": 1e-11},
    "float16": {TRANSFORMERS: 2e-5, "vllm": 2e-5},
    "bfloat16": {TRANSFORMERS: 1.1e-3, "vllm": 1.0e-3},
}
"""Mean KL between a run and exact arithmetic, in nats, by dtype and by what reads the tokens. For bfloat16, exact means
float32, and the rows hold the 64 likeliest tokens. In float16 it was not measured: a rounding is an eighth of
bfloat16's, and the KL grows with its square. For another engine the larger figure of the dtype is used."""

MOST_NATS = {"float32": 3e-5, "float16": 1e-4, "bfloat16": 5e-3}
"""By dtype, the mean KL that an audit accepts between two engines, in nats. In bfloat16 it is twice what is expected
between two of them; in the other types it leaves room for processors that round products to fewer bits."""


@dataclass(frozen=True)
class Arithmetic:
    """How a teacher was computed.

    Attributes:
        software: What read the tokens: an engine with its version, or ``transformers``; empty if unknown.
        kind: The same without its version.
        dtype: Type of its activations; empty if unknown.
    """

    software: str
    kind: str
    dtype: str

    @classmethod
    def of(cls, identity: Identity) -> "Arithmetic":
        """Return what a teacher's identity says; predictions that were imported name neither software nor type."""
        dtype = str(identity.get("dtype") or "")
        engine = identity.get(ENGINE)
        if not dtype:
            return cls("", "", "")
        kind = str(engine.get("name")) if isinstance(engine, dict) else TRANSFORMERS
        return cls(engine_words(identity), kind, dtype)

    @property
    def from_exact_nats(self) -> float | None:
        """Expected mean KL between this run and exact arithmetic; None if the type is unknown."""
        figures = FROM_EXACT_NATS.get(self.dtype)
        return None if figures is None else figures.get(self.kind, max(figures.values()))

    def __str__(self) -> str:
        return f"{self.software}, {self.dtype}" if self.dtype else "unknown"


def engine_words(identity: Identity) -> str:
    """Return which engine a teacher's identity names, and its version; ``transformers`` if it names none."""
    engine = identity.get(ENGINE)
    return f"{engine.get('name')} {engine.get('version')}" if isinstance(engine, dict) else TRANSFORMERS


def rounding_nats(a: Arithmetic, b: Arithmetic) -> float | None:
    """Return the expected mean KL between two runs of the same weights, in nats; None if a type is unknown."""
    parts = (a.from_exact_nats, b.from_exact_nats)
    return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
