"""Serve a page to look at trajectories, of one run or of two side by side.

python -m research.viewer RUN_OR_FILE [OTHER_RUN_OR_FILE]
"""

import errno
import logging
import socket
from pathlib import Path

import click
from waitress.server import create_server

from research.viewer.app import viewer_app
from research.viewer.catalogue import Catalogue
from research.viewer.files import Source

THREADS = 4
EXAMPLES = """
\b
Examples:
  python -m research.viewer runs/my-run
  python -m research.viewer runs/my-run runs/another-run
  python -m research.viewer runs/my-run/trajectories/test_step_0.jsonl \\
                            runs/my-run/trajectories/test_step_60.jsonl
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
@click.argument("path", metavar="RUN_OR_FILE", type=click.Path(path_type=Path))
@click.argument("other", metavar="[OTHER]", required=False, type=click.Path(path_type=Path))
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. There is no password: whoever reaches it can read.",
)
def main(path: Path, other: Path | None, port: int, host: str) -> None:
    """Show the trajectories of a training run (also while it runs), of an evaluation, or of one file.

    With OTHER, those of two side by side.
    """
    try:
        sources = [_source(each) for each in (path, other) if each is not None]
        listener = _listen(host, port)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    app = viewer_app(Catalogue(sources), host)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # waiting requests are normal
    server = create_server(app, sockets=[listener], threads=THREADS, ident="viewer")
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"trajectories at http://{shown}:{listener.getsockname()[1]}/ (ctrl-C ends)")
    server.run()


def _source(path: Path) -> Source:
    """The source of a path. Raises ValueError for a file of something else, as far as one second shows."""
    source = Source(path)
    if path.is_file():
        source.refresh(seconds=1)
    if source.faults and not source.rows:
        raise ValueError(f"{path}: {source.faults[0]}")
    return source


def _listen(host: str, port: int) -> socket.socket:
    """A socket on one address of ``host``, preferably IPv4, so that port 0 is one port. Raises OSError."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(addresses, key=lambda entry: entry[0] != socket.AF_INET)
    try:
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"port {port} on {host} is in use: choose another --port (0: a free one)"
            ) from error
        raise


if __name__ == "__main__":
    main(prog_name="python -m research.viewer")
