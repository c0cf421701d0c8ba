"""Take the pictures of ``docs/images`` in headless Chromium: ``python docs/screenshots.py [CACHE] [REPORT]``.

CACHE is a demo's, by default runs/demo/cache; with two teachers in it the pictures show both. REPORT is a
``report.html`` to take a picture of, too; ``--aligned`` names a cache with an alignment, for its picture alone. Each
picture is the viewer as a visitor has it, served by ``logitcask view`` itself. One shows a set of DistillKit's, which
is made here: the last teacher of CACHE is exported as exact rows and in DistillKit's recommended preset, and both are
imported as teachers of one cache.
"""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from cache_tools.alignments.stored import Alignment
from cache_tools.exchange.exporting import export_rows
from cache_tools.exchange.importing import import_rows
from cache_tools.exchange.plan import ImportOptions
from cache_tools.progress.reporter import Reporter
from cache_tools.row_files.distillkit import PackedCodec
from cache_tools.store.reader import Cache, Encoding
from cache_tools.viewer.alignments import worst_aligned

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WIDE, NARROW = (1360, 820), (400, 800)
COLOURS = 128
MASS_TOLERANCE = 0.05
"""How far the curve of the recommended preset may exceed a mass of 1."""
LONG_POSITIONS = 100
"""Positions of a sequence that fills a picture."""
SURPRISING = 2
"""The picture shows the first token, from a quarter of the sequence on, in this band of the heat map."""


@contextlib.contextmanager
def viewer(cache: Path) -> Iterator[str]:
    """Serve a cache while the block runs; yields the address."""
    place = cache if not cache.is_absolute() else cache.name
    command = [sys.executable, str(ROOT / "logitcask.py"), "view", str(place), "--port", "0", "--no-open"]
    started_in = cache.parent if cache.is_absolute() else None  # pictures show no folder of this machine
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=started_in)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def page(browser: Browser, size: tuple[int, int], scheme: str) -> Iterator[Page]:
    """Open an empty page of a size in a colour scheme, ``light`` or ``dark``."""
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    with contextlib.closing(context):
        yield context.new_page()


def shoot(opened: Page, name: str) -> None:
    """Save what a page shows, when its animations are over, in as many colours as it takes to look the same."""
    path = IMAGES / f"{name}.png"
    taken = Image.open(io.BytesIO(opened.screenshot(animations="disabled")))
    taken.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    click.echo(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


def show_sequence(opened: Page, address: str) -> None:
    """Open a sequence, coloured by the last teacher: by name, a demo's ``toy`` comes after its students."""
    opened.goto(address)
    opened.locator(".text .heat").first.wait_for()
    opened.locator("#list li").first.wait_for()
    if opened.locator("input[name=of]").count():
        opened.locator("input[name=of]").last.check()


def choose_token(opened: Page) -> None:
    """Click a token that surprised the teacher a little: some of its rivals stand before it."""
    tokens = opened.locator(".text .token")
    surprising = opened.locator(f".text .token.heat-{SURPRISING}")
    later = [i for i in surprising.evaluate_all("nodes => nodes.map(n => +n.dataset.index)") if i > tokens.count() // 4]
    tokens.nth(later[0] if later else 1).click()
    opened.mouse.move(0, 0)
    opened.locator(".panel .bars").first.wait_for()


def take(browser: Browser, address: str, sequence: int) -> None:
    """Take the viewer's pictures."""
    with page(browser, WIDE, "light") as opened:
        opened.goto(address)
        opened.locator("main .card").first.wait_for()
        opened.locator("#list li").first.wait_for()
        opened.locator(".passage").first.wait_for()
        shoot(opened, "overview")
        opened.locator(".charts").evaluate("node => node.scrollIntoView({ block: 'start' })")
        shoot(opened, "statistics")
        encoding = opened.locator("#encoding option").first.text_content()
        start = f"{address}#/{encoding}/{sequence}"
        show_sequence(opened, start)
        shoot(opened, "heat-map")
        choose_token(opened)
        shoot(opened, "distribution")
        if opened.locator("input[value=disagreement]").count():
            opened.keyboard.press("Escape")
            opened.locator("input[value=disagreement]").check()
            shoot(opened, "disagreement")
    with page(browser, WIDE, "dark") as opened:
        show_sequence(opened, start)
        choose_token(opened)
        shoot(opened, "dark")
    with page(browser, NARROW, "light") as opened:
        show_sequence(opened, start)
        choose_token(opened)
        shoot(opened, "narrow")


def import_sets(cache: Path, folder: Path) -> Path:
    """Export a cache's last teacher for DistillKit, exactly and in the recommended preset; import both; return it."""
    encoding = Cache(cache).encoding()
    teacher = encoding.teacher(encoding.teachers[-1])
    k, size = teacher.codec.k, teacher.manifest.vocabulary_size
    terms = (0, 1, 2, 3, 4, "sqrt")
    preset = PackedCodec(
        d=size,
        k=k,
        exact_k=k // 4,
        exact_dtype="bfloat16",
        polynomial_terms=terms,
        delta_encoding=False,
        normalize_t=True,
    )
    for name, codec in {"exact": None, "recommended": preset}.items():
        export_rows(teacher, folder / name, "distillkit", Reporter(), codec=codec)
        options = ImportOptions(
            str(cache / "encodings" / encoding.name / "tokenizer"),
            teacher=name,
            first_token=1,
            vocabulary_size=size,
            mass_tolerance=MASS_TOLERANCE,
        )
        import_rows(folder / name, folder / "cache", options, Reporter())
    return folder / "cache"


def take_imported(browser: Browser, address: str, sequence: int) -> None:
    """Take a picture of one token of an imported set."""
    with page(browser, WIDE, "light") as opened:
        show_sequence(opened, f"{address}#/imported/{sequence}")
        choose_token(opened)
        shoot(opened, "imported")


def take_alignment(browser: Browser, address: str, encoding: Encoding) -> None:
    """Take a picture of the long sequence that the first alignment covers least, as both tokenizers cut it."""
    alignment = Alignment(encoding, encoding.alignments[0])
    found = worst_aligned(alignment, 0).found
    worst = next((one for one in found if one.coverage.positions >= LONG_POSITIONS), found[0])
    with page(browser, WIDE, "light") as opened:
        path = [encoding.name, "alignments", alignment.name, str(worst.sequence_id), str(worst.worst_byte)]
        opened.goto(f"{address}#/{'/'.join(path)}")
        opened.locator(".segment.worst").wait_for()
        opened.locator("#list li").first.wait_for()
        shoot(opened, "alignment")


def take_report(browser: Browser, report: Path) -> None:
    """Take a picture of the top of a report."""
    with page(browser, WIDE, "light") as opened:
        opened.goto(report.resolve().as_uri())
        shoot(opened, "report")


@click.command()
@click.argument("cache", type=click.Path(path_type=Path), default=Path("runs/demo/cache"))
@click.argument("report", type=click.Path(exists=True, path_type=Path), required=False)
@click.option(
    "--aligned",
    type=click.Path(exists=True, path_type=Path),
    help="A cache with alignments, to take a picture of the first, and no other picture.",
)
@click.option("--sequence", type=click.IntRange(0), default=3, show_default=True, help="Which sequence to show.")
@click.option("--imported-sequence", type=click.IntRange(0), default=8, show_default=True, help="Which of the import.")
def main(cache: Path, report: Path | None, aligned: Path | None, sequence: int, imported_sequence: int) -> None:
    """Take all pictures, but that of an alignment; with --aligned, that one."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise click.ClickException(f"no browser is installed; one of {', '.join(BROWSERS)} is needed")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=OPTIONS) as browser:
        if aligned:
            encoding = Cache(aligned).encoding()
            with viewer(aligned) as address:
                take_alignment(browser, address, encoding)
            return
        with viewer(cache) as address:
            take(browser, address, sequence)
        with tempfile.TemporaryDirectory() as folder, viewer(import_sets(cache, Path(folder))) as address:
            take_imported(browser, address, imported_sequence)
        if report:
            take_report(browser, report)


if __name__ == "__main__":
    main()
