"""Serve a report on this machine alone, for browsers that open no files; Ctrl-C ends it."""

import argparse
import functools
import http.server
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runtime.option_types import at_least
from .output import say, tell

ADDRESS = "127.0.0.1"  # never another: what is in a report is nobody else's business


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, for who knows the token: /TOKEN/index.html. Everything else is not there."""

    def __init__(self, *args: object, token: str, **options: object):
        self.token = token
        super().__init__(*args, **options)  # type: ignore[arg-type]

    def send_head(self) -> Any:
        prefix = f"/{self.token}/"
        if not self.path.startswith(prefix):
            self.send_error(404)
            return None
        self.path = self.path[len(prefix) - 1 :]
        return super().send_head()

    def list_directory(self, path: object) -> None:
        """No folder is listed."""
        self.send_error(404)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged: names of volumes are in the addresses' answers, not in a terminal."""


def server(folder: Path, port: int) -> tuple[http.server.ThreadingHTTPServer, str]:
    """A server of a report's folder on a port of this machine (0: any that is free), and the address to open."""
    token = secrets.token_urlsafe(16)
    handler = functools.partial(Handler, token=token, directory=str(folder))
    serving = http.server.ThreadingHTTPServer((ADDRESS, port), handler)
    return serving, f"http://{ADDRESS}:{serving.server_address[1]}/{token}/index.html"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mood-submission view", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what 'report' or 'predict --html' wrote")
    parser.add_argument(
        "--port", type=at_least(0), default=0, help="of this machine (default: any that is free)"
    )
    args = parser.parse_args(argv)
    if not (args.folder / "index.html").is_file():
        say(f"mood-submission view: {args.folder}: expected a report's folder, found no index.html")
        return 1
    try:
        serving, address = server(args.folder, args.port)
    except OSError as error:
        say(f"mood-submission view: port {args.port}: {error.strerror}")
        return 1
    try:
        tell(address, "Ctrl-C ends it")
        serving.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        serving.server_close()
    return 0
