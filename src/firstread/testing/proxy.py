# SPDX-License-Identifier: Apache-2.0
"""A small HTTP proxy in this process: forwards requests, and tunnels (CONNECT) for TLS.

Owns the names it knows: a test maps made-up ones to servers of its own, so that whoever reaches
them came through here.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import select
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self
from urllib.parse import urlsplit

from firstread.testing.patience import PATIENCE_S
from firstread.testing.requestbody import RequestBody
from firstread.testing.serving import QuietHandler, QuietServer, serving

_OWN: Final = frozenset(
    {"proxy-authorization", "proxy-connection", "connection", "keep-alive", "transfer-encoding"}
)


class Proxy(contextlib.ExitStack):
    """The proxy; a context manager.

    Args:
        names: ``host:port`` by the ``host:port`` that clients ask for.
        login: ``user:password`` that clients must show; ``""``: none.
        tls: certificate and key to speak TLS with.

    Attributes:
        seen: ``"METHOD target"`` of each request.
        refused: how many came without the login.
    """

    def __init__(
        self, names: Mapping[str, str], *, login: str = "", tls: tuple[Path, Path] | None = None
    ) -> None:
        super().__init__()
        self.names = names
        self.login = f"Basic {base64.b64encode(login.encode()).decode()}" if login else ""
        self.seen: list[str] = []
        self.refused = 0
        self._tls = tls

    def __enter__(self) -> Self:
        server = _Server(("127.0.0.1", 0), _Handler)
        server.proxy = self
        if self._tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self._tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        self.enter_context(serving(server))
        self.host = f"127.0.0.1:{server.server_address[1]}"
        return self


class _Server(QuietServer):
    proxy: Proxy


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = PATIENCE_S

    def _admitted(self) -> bool:
        proxy = self.server.proxy
        proxy.seen.append(f"{self.command} {self.path}")
        if proxy.login in ("", self.headers.get("Proxy-Authorization", "")):
            return True
        proxy.refused += 1
        self.close_connection = True
        self.send_response(407)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def _forward(self) -> None:
        if not self._admitted():
            return
        parts = urlsplit(self.path)
        place = self.server.proxy.names.get(f"{parts.hostname}:{parts.port or 80}")
        if place is None:
            self.send_error(502)
            return
        body = RequestBody(self).whole()
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OWN}
        upstream = http.client.HTTPConnection(place, timeout=PATIENCE_S)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        upstream.request(self.command, target, body or None, headers)
        answer = upstream.getresponse()
        data = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in (*_OWN, "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        upstream.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _forward  # noqa: N815

    def do_CONNECT(self) -> None:  # noqa: N802
        if not self._admitted():
            return
        place = self.server.proxy.names.get(self.path)
        if place is None:
            self.send_error(502)
            return
        host, _, port = place.rpartition(":")
        self.close_connection = True
        with socket.create_connection((host, int(port)), PATIENCE_S) as upstream:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: upstream, upstream: self.connection}
            while ready := select.select(list(ends), [], [], PATIENCE_S)[0]:
                for end in ready:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)
