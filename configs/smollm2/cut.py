"""Make a smaller student from some layers of a model: ``python -m configs.smollm2.cut MODEL STUDENT --layers 0,1,29``.

The student keeps the embeddings, the final norm and the output matrix, and the named layers in their order, so it is an
ordinary model folder of the same architecture and the same tokenizer. Its predictions are useless until it is trained:
a layer that is taken out changes what every later layer reads. What it has is a start in which words already have
meanings.

Only safetensors folders of models whose layers are called ``model.layers.<number>``, as in Llama, Qwen and Mistral.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import click
from safetensors.torch import load_file, save_file
from torch import Tensor

from cache_tools.errors import ConfigError, LogitcaskError, ModelError

WEIGHTS, SETTINGS = "model.safetensors", "config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
COPIED = (*TOKENIZER, "generation_config.json")
LAYER = re.compile(r"^model\.layers\.(\d+)\.")


def cut_model(model: Path, student: Path, layers: Sequence[int]) -> None:
    """Write a folder with some of a model's layers; a folder that is finished already is left as it is.

    Args:
        model: Folder of the whole model.
        student: Folder to write.
        layers: Numbers of the layers to keep, from 0, in the order in which the student runs them.

    Raises:
        ConfigError: A layer is named that the model does not have.
        ModelError: The folder has no single safetensors file with numbered layers.
    """
    if (student / SETTINGS).exists():  # written last
        return
    if not (model / WEIGHTS).is_file():
        raise ModelError("only a model in one safetensors file can be cut", where=model, expected=WEIGHTS)
    settings, tensors = json.loads((model / SETTINGS).read_bytes()), load_file(model / WEIGHTS)
    depth = len({number for name in tensors if (number := layer_number(name)) is not None})
    if not layers or not all(0 <= layer < depth for layer in layers):
        raise ConfigError(
            "the model does not have these layers",
            where="--layers",
            expected=f"numbers from 0 to {depth - 1}",
            found=",".join(map(str, layers)),
        )
    student.mkdir(parents=True, exist_ok=True)
    save_file(renumbered(tensors, layers), student / WEIGHTS, metadata={"format": "pt"})
    for name in COPIED:
        if (model / name).exists():
            shutil.copy(model / name, student / name)
    settings["num_hidden_layers"] = len(layers)
    (student / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def renumbered(tensors: dict[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """Return the tensors outside all layers, and those of the named layers under their new numbers."""
    kept = {name: tensor for name, tensor in tensors.items() if layer_number(name) is None}
    for new, old in enumerate(layers):
        for name, tensor in tensors.items():
            if layer_number(name) == old:
                kept[LAYER.sub(f"model.layers.{new}.", name)] = tensor.clone()
    return kept


def layer_number(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to; None for the others."""
    match = LAYER.match(name)
    return int(match[1]) if match else None


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("student", type=click.Path(path_type=Path))
@click.option("--layers", required=True, help="Numbers of the layers to keep, from 0, such as 0,1,28,29.")
def main(model: Path, student: Path, layers: str) -> None:
    """Write the model in folder MODEL with some of its layers to folder STUDENT."""
    try:
        cut_model(model, student, [int(layer) for layer in layers.split(",")])
    except ValueError as error:
        raise click.BadParameter("give numbers with commas between them, such as 0,1,28,29") from error
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
