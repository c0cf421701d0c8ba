"""Which quantisation a model has, wherever it comes from: a GGUF file or the configuration of a folder.

How a model computes belongs to its name. transformers unpacks the weights of some methods where it finds no GPU with
their kernels; the same files then give other numbers, since the kernels round activations too. So a loaded model is
asked whether that happened.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from cache_tools.models.files import is_gguf
from cache_tools.models.quantised import quantised_weights
from cache_tools.torch_models.gguf import output_head_type, quantisation

DEQUANTISED = ", dequantised when loaded"


@dataclass(frozen=True)
class Quantisation:
    """How a model's weights are stored, as manifests and evaluations state it.

    Attributes:
        weights: Types of the tensors of a GGUF file, or method, bits and groups; None for ordinary weights.
        output_head: The same of the output matrix; None if that is stored as an ordinary one.
    """

    weights: str | None = None
    output_head: str | None = None

    @property
    def words(self) -> str | None:
        """Both as one phrase; None for ordinary weights."""
        return self.weights if self.output_head is None else f"{self.weights}; output head {self.output_head}"


def quantisation_of(source: Path, model: PreTrainedModel | None = None) -> Quantisation:
    """Return how the weights of a model are stored.

    Args:
        source: A model folder or a GGUF file.
        model: The model that was loaded from it; None if it is not loaded. GGUF files are always dequantised, which
            their words do not repeat.

    Raises:
        FormatError: A weight file is damaged.
        OSError: The configuration cannot be read.
        ValueError: The file is no GGUF file, or the configuration is not JSON.
    """
    if is_gguf(source):
        return Quantisation(quantisation(source), output_head_type(source))
    if not (source / "config.json").is_file():
        return Quantisation()
    stored = quantised_weights(source)
    if stored is None:
        return Quantisation()
    unpacked = model is not None and not getattr(model.config, "quantization_config", None)  # transformers removes it
    return Quantisation(stored.words + (DEQUANTISED if unpacked else ""), stored.output_head)
