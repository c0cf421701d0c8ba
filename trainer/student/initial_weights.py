"""The weights that a student starts from: a part of a run's identity, also recorded in its finished folder.

A name is not enough: the weights in a folder can change, and a branch on the hub moves. A run that is continued from
other weights, above all with adapters, would be a mixture of two runs.
"""

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from cache_tools.errors import ModelError
from cache_tools.models.files import weights_sha256, why_not_found
from trainer.config.student_file import StudentModelConfig


def initial_weights(config: StudentModelConfig) -> dict[str, str]:
    """Identify the weights that a pretrained student starts from.

    Returns:
        ``sha256`` of a local folder, at the cost of reading its weights once, a minute per 100 GB; ``commit`` of a
        hub id, at the cost of its configuration.

    Raises:
        ModelError: there are no such weights.
    """
    assert config.source is not None
    assert config.pretrained is not None
    folder = Path(config.source)
    try:
        if folder.is_dir() or folder.is_file():
            return {"sha256": weights_sha256(folder)}
        configuration = hf_hub_download(config.pretrained, config.gguf_file or "config.json", revision=config.revision)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ModelError(
            "the student cannot be made",
            where=config.source,
            expected="a folder with config.json and safetensors, or a hub id that can be reached",
            found=why_not_found(error),
        ) from error
    return {"commit": Path(configuration).parent.name}  # …/snapshots/<commit>/config.json
