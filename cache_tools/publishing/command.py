"""``logitcask publish`` and ``logitcask card``."""

from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.storage import StorePath

LICENCE = click.option(
    "--license",
    "licence",
    metavar="ID",
    help="The Hub's identifier of a licence for the card, such as cc-by-4.0. Without it the card says that none is "
    "stated: which one applies follows from the text and the teacher, and only you can know it.",
)


@click.command("publish")
@click.argument("cache", type=CacheType())
@click.argument("repository", metavar="hf://datasets/OWNER/NAME")
@click.option("--revision", default="main", show_default=True, metavar="BRANCH", help="Branch to commit to.")
@click.option("--private", is_flag=True, help="Make a new repository private, and refuse one that is public.")
@click.option("--message", default="Publish a logitcask cache", show_default=True, help="Summary of the commits.")
@LICENCE
def publish_command(
    cache: "StorePath", repository: str, revision: str, private: bool, message: str, licence: str | None
) -> None:
    """Send CACHE to a dataset repository on the Hugging Face hub, with a card that says what it holds.

    A published cache contains the text of its corpus. The repository is made if there is none. If the command
    is stopped, run it again to continue; if CACHE has grown since, only what is new is sent. 'logitcask card'
    shows the card beforehand. The token is that of 'hf auth login', or HF_TOKEN.

    \b
    Example:
        logitcask publish runs/demo/cache hf://datasets/OWNER/NAME --private
    """
    from cache_tools.progress.lines import open_reporter
    from cache_tools.progress.stage import quantity
    from cache_tools.publishing.publish import Request, publish, repository_of
    from cache_tools.quantities import counted
    from cache_tools.store.reader import Cache

    request = Request(repository_of(repository), revision, private, message, licence)
    with open_reporter() as reporter:
        result = publish(Cache(cache), request, reporter)
    sent = f"{counted(result.sent_files, 'file')} ({quantity(result.sent_bytes, 'bytes')})"
    click.echo(f"sent {sent} of {result.files:,} in {counted(result.commits, 'commit')}", err=True)
    if result.other_files:
        click.echo(f"left alone: {counted(result.other_files, 'file')} that are no part of the cache", err=True)
    click.echo(result.url)


@click.command("card")
@click.argument("cache", type=CacheType())
@LICENCE
def card_command(cache: "StorePath", licence: str | None) -> None:
    """Print the card that 'logitcask publish' would send with CACHE.

    \b
    Example:
        logitcask card runs/demo/cache
    """
    from cache_tools.progress.lines import open_reporter
    from cache_tools.publishing.card import card_text
    from cache_tools.publishing.facts import card_facts, receipts_to_read
    from cache_tools.store.reader import Cache

    opened = Cache(cache)
    with open_reporter() as reporter:
        reporter.stage("reading receipts and a sample", receipts_to_read(opened), "receipts")
        facts = card_facts(opened, reporter.advance)
    click.echo(card_text(facts, "OWNER/NAME", licence), nl=False)
