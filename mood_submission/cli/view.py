"""Serve a report on this machine, for browsers that do not open files. Ctrl-C ends it."""

import argparse
import functools
import http.server
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.option_types import port_option
from ..runtime.options import option
from .command import run_command
from .output import tell

# Only this machine can reach the report, since it may show patients.
ADDRESS = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Options of `view`."""

    folder: Path = option("folder that 'report' or 'predict --html' wrote", "folder", metavar="FOLDER")
    port: int = option("port of this machine (default: any free one)", type=port_option, default=0)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder's files under /TOKEN/, such as /TOKEN/index.html. All else is not found."""

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
        """Folders are not listed."""
        self.send_error(404)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged, so that no names of volumes appear in a terminal."""


def server(folder: Path, port: int) -> tuple[http.server.ThreadingHTTPServer, str]:
    """A server of a report's folder, and the address to open. port: of this machine; 0 for any free one."""
    token = secrets.token_urlsafe(16)
    handler = functools.partial(Handler, token=token, directory=str(folder))
    serving = http.server.ThreadingHTTPServer((ADDRESS, port), handler)
    return serving, f"http://{ADDRESS}:{serving.server_address[1]}/{token}/index.html"


def view(options: ViewOptions) -> list[str]:
    """Serve the report until Ctrl-C. Raises ValueError for a folder without a report, and for a port that is taken."""
    if not (options.folder / "index.html").is_file():
        raise ValueError(f"{options.folder}: expected a report's folder, found no index.html")
    try:
        serving, address = server(options.folder, options.port)
    except OSError as error:
        raise ValueError(f"port {options.port}: {error.strerror}") from None
    try:
        tell(address, "Ctrl-C ends it")
        serving.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        serving.server_close()
    return []


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="mood-submission view", description=__doc__)
    return run_command(parser, ViewOptions, view, argv)
