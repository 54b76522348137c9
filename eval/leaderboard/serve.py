"""`hybridzoo leaderboard serve`: the page and the files it links to, from this machine's own web server."""

from __future__ import annotations

import functools
import http.server
import tempfile
from collections.abc import Callable
from pathlib import Path

from hybridzoo.errors import ConfigError
from hybridzoo.eval.leaderboard.build import bundle_board


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Quiet: a reader of the page is no news."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")  # the page is built anew each time
        super().end_headers()


def make_server(
    results: Path | None, folder: Path, *, host: str, port: int, repository: str | None = None
) -> http.server.ThreadingHTTPServer:
    """Build the board into `folder` and bind a server to it.

    Raises:
        ConfigError: the address cannot be bound.
        ResultError: a result is invalid.
    """
    bundle_board(results, folder, repository=repository)
    try:
        return http.server.ThreadingHTTPServer((host, port), functools.partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise ConfigError(f"cannot serve on {host}:{port} ({error.strerror or error}); give another --port") from error


def serve(results: Path | None, *, host: str, port: int, repository: str | None, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="hybridzoo-board-") as folder:
        server = make_server(results, Path(folder), host=host, port=port, repository=repository)
        with server:
            say(f"http://{host}:{server.server_address[1]}/  (Ctrl-C ends it)")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                say("")
