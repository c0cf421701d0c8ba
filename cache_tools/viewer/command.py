"""``logitcask view``: a cache in a browser, served by default to this machine only."""

import secrets
import socket
import threading
import webbrowser
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from cache_tools.cli_options import CacheType

if TYPE_CHECKING:
    from cache_tools.storage import StorePath

SHUTDOWN_SECONDS = 3
TOKEN_BYTES = 24


@click.command("view")
@click.argument("cache", type=CacheType())
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; any but the default requires a token."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8008,
    show_default=True,
    help="Port to listen on; 0 for any free port.",
)
@click.option(
    "--open/--no-open",
    "open_page",
    default=None,
    help="Open the page in a browser; the default is to open it unless a token is required.",
)
def view_command(cache: "StorePath", host: str, port: int, open_page: bool | None) -> None:
    """View CACHE in a browser: sequences as heat maps, distributions side by side.

    The page is served to this machine only. With another --host, visitors need the token in the
    address that is printed. The connection is not encrypted, so prefer a tunnel.

    \b
    Example:
        logitcask view runs/demo/cache
    """
    from cache_tools.errors import ConfigError

    try:
        import uvicorn

        from cache_tools.viewer.app import make_app
        from cache_tools.viewer.guard import is_loopback
    except ImportError as problem:
        raise ConfigError(
            "the viewer's libraries are not installed",
            found=str(problem),
            fix="Install them: pip install 'logitcask[view]'",
        ) from problem
    token = None if is_loopback(host) else secrets.token_urlsafe(TOKEN_BYTES)
    app = make_app(cache, host, token)
    listening = _listen(host, port)
    address = _address(host, listening.getsockname()[1], token)
    click.echo(address)
    click.echo("Press Ctrl-C to stop.", err=True)
    if open_page or (open_page is None and token is None):
        threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    with suppress(KeyboardInterrupt), listening:
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that accepts connections.

    Raises:
        ConfigError: the address is not this machine's, or the port is taken.
    """
    from cache_tools.errors import ConfigError

    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family)
    except OSError as error:
        raise ConfigError(
            "the viewer cannot listen on this address",
            where=f"{host}:{port}",
            found=error.strerror,
            fix="Choose another --host or --port",
        ) from error


def _address(host: str, port: int, token: str | None) -> str:
    """Return the address to open in a browser; for a wildcard, it contains this machine's name."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")
