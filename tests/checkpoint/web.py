"""A web server on this machine whose connections can be made to break."""

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server does, and what it was asked.

    Attributes:
        files: content by path.
        cuts: bytes after which the next connections break, one entry each; None lets it through.
        knows_ranges: whether `Range` is honoured.
        only_agent: refuse others (by the start of User-Agent) with 403.
        status: answer everything with this error.
        headers: to send along, by path.
        requests: (path, first byte asked for) of each request of a file.
        url: where it is.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int | None] = field(default_factory=list)
    knows_ranges: bool = True
    only_agent: str = ""
    status: int | None = None
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    requests: list[tuple[str, int]] = field(default_factory=list)
    url: str = ""


def _handler(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            path = self.path.split("?")[0]
            if path not in site.files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(site.files[path])))
            for name, value in site.headers.get(path, {}).items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked.group(1)) if asked and site.knows_ranges else 0
            site.requests.append((path, int(asked.group(1)) if asked else 0))
            if site.status or path not in site.files:
                self.send_error(site.status or 404)
                return
            if not self.headers.get("User-Agent", "").startswith(site.only_agent):
                self.send_error(403)
                return
            content = site.files[path]
            self.send_response(206 if asked and site.knows_ranges else 200)
            if asked and site.knows_ranges:
                end = f"{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", f"bytes {start}-{end}")
            kind = "text/html" if path.endswith("/") else "application/octet-stream"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content) - start))
            for name, value in site.headers.get(path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            cut = site.cuts.pop(0) if site.cuts else None
            with contextlib.suppress(ConnectionError):  # the client may break off too
                self.wfile.write(content[start : None if cut is None else start + cut])
            self.close_connection = True

    return Handler


@contextlib.contextmanager
def serve(site: Site) -> Iterator[Site]:
    """Serve until the context ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(site))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
