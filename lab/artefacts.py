"""The lab's download server: what a school fetches from upstream comes from here."""

from __future__ import annotations

import functools
import os
import signal
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from lab import places
from lab.builds import Artefacts


class Handler(SimpleHTTPRequestHandler):
    """Serves files below one directory, following links out of it."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    """Seconds a client may be silent."""

    def log_message(self, format: str, *args: object) -> None:
        """Say who asked for what, without the control characters that a client may send."""
        text = (format % args).translate(dict.fromkeys(range(32)))
        print(f"{self.log_date_time_string()} {self.address_string()} {text}", flush=True)


class Server(ThreadingHTTPServer):
    """One thread a download; a client that goes away is no error."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Say in one line why a download ended early."""
        print(f"{client_address}: {sys.exc_info()[1]}", flush=True)


def lay_out(directory: Path, artefacts: Artefacts) -> None:
    """Make links in ``directory`` to the artefacts, as the program's configuration asks for them."""
    links = {
        f"templates/{places.TEMPLATE_NAME}": artefacts.template,
        "k3s/k3s": artefacts.k3s,
        "charts": artefacts.charts,
    }
    for name, target in links.items():
        link = directory / name
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() and Path(os.readlink(link)) == target:
            continue
        fresh = link.with_name(f".{link.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)


def main() -> None:
    """Serve until told to end."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    handler = functools.partial(Handler, directory=str(places.ARTEFACTS))
    Server((places.GATEWAY, places.ARTEFACT_PORT), handler).serve_forever()


if __name__ == "__main__":
    main()
