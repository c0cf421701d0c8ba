"""Take the pictures of ``docs/images`` in headless Chromium: ``python docs/screenshots.py [CACHE] [REPORT]``.

CACHE is a demo's, by default runs/demo/cache; with two teachers in it the pictures show both. REPORT is a
``report.html`` to take a picture of, too. Each picture is the viewer as a visitor has it, served by
``logitcask view`` itself.
"""

import contextlib
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
WIDE, NARROW = (1360, 820), (400, 800)
COLOURS = 128
SURPRISING = 2
"""The picture shows the first token, from a quarter of the sequence on, in this band of the heat map."""


@contextlib.contextmanager
def viewer(cache: Path) -> Iterator[str]:
    """Serve a cache while the block runs; yields the address."""
    command = [sys.executable, str(ROOT / "logitcask.py"), "view", str(cache), "--port", "0", "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
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


def take_report(browser: Browser, report: Path) -> None:
    """Take a picture of the top of a report."""
    with page(browser, WIDE, "light") as opened:
        opened.goto(report.resolve().as_uri())
        shoot(opened, "report")


@click.command()
@click.argument("cache", type=click.Path(exists=True, path_type=Path), default=Path("runs/demo/cache"))
@click.argument("report", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--sequence", type=click.IntRange(0), default=3, show_default=True, help="Which sequence to show.")
def main(cache: Path, report: Path | None, sequence: int) -> None:
    """Take all pictures."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise click.ClickException(f"no browser is installed; one of {', '.join(BROWSERS)} is needed")
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=OPTIONS) as browser:
        with viewer(cache) as address:
            take(browser, address, sequence)
        if report:
            take_report(browser, report)


if __name__ == "__main__":
    main()
