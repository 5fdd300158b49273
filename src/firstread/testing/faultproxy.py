# SPDX-License-Identifier: Apache-2.0
r"""A proxy in front of a registry, which fails exactly as a script says: a real server.

Owns one listening socket and the connections behind it; what can go wrong, and how it is ordered,
is `httpfaults`'. It passes everything else on as it is. Invariant: a request that no fault was
picked for is answered with the bytes of the registry.

::

    python -m firstread.testing.faultproxy --upstream http://127.0.0.1:5000 \
        --script 'GET /blobs/ flip p0.05' --script 'GET /blobs/ status 503 Retry-After=1 x3'

prints where it listens; clients name it as they would name the registry. Besides the faults of
`httpfaults` it knows::

    expired       401, with the address of a token server that gives a new token to anybody
    refuse S      the connection is reset, and for S seconds nobody listens

While it runs, ``PUT /faultproxy/script`` replaces what is left of the script by the body, and
``GET /faultproxy/injected`` says how often each fault was taken. Both end with the proxy; it is for
tests, and listens on loopback unless it is told otherwise.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Final, Self
from urllib.parse import SplitResult, urlsplit

from firstread.signals import ending_on_signals
from firstread.testing.httpfaults import (
    LOOP,
    Answer,
    Fault,
    HangUpError,
    Script,
    instead,
    plain,
    refusal,
    send,
)
from firstread.testing.patience import PATIENCE_S
from firstread.testing.requestbody import RequestBody
from firstread.testing.serving import QuietHandler, QuietServer
from firstread.units import KiB

CONTROL: Final = "/faultproxy/"
UPSTREAM_TIMEOUT_S: Final = 60.0
CHUNK_BYTES: Final = 256 * KiB
SAYS: Final = "as the script of the proxy says"

_MORE: Final = {"expired": (0, 0), "refuse": (1, 1)}
_TOKEN: Final = "of-the-faultproxy"
_OF_ONE_CONNECTION: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date", "host"}
)


class FaultProxy:
    """The proxy; a context manager.

    Args:
        upstream: URL of the registry, without a path.
        script: faults, see the module.
        seed: of the faults that happen by chance.
        address: ``HOST:PORT`` to listen on; port 0 takes a free one.
    """

    def __init__(
        self, upstream: str, script: str = "", *, seed: int = 0, address: str = "127.0.0.1:0"
    ) -> None:
        self._upstream = urlsplit(upstream)
        if self._upstream.scheme not in ("http", "https") or not self._upstream.netloc:
            raise ValueError(f"{upstream!r} is not the URL of a registry")
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"{address!r} is not HOST:PORT")
        self._address = (host, int(port))
        self._script = Script(script, seed=seed, more=_MORE)
        self._server: _Server | None = None
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._refusing: threading.Thread | None = None
        self.host = ""

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._refusing is not None:
            self._refusing.join(timeout=PATIENCE_S)
        self._stop()

    def script(self, text: str) -> None:
        """Replace what is left of the script."""
        self._script.replace(text)

    def unused(self) -> list[str]:
        """Return the faults that no request met, so that a test can insist."""
        return self._script.unused()

    @property
    def injected(self) -> Counter[str]:
        """The number of times that each fault occurred."""
        return Counter(self._script.injected)

    def refuse(self, seconds: float) -> None:
        """Stop listening for some seconds; open connections stay."""
        with self._lock:
            if self._refusing is None or not self._refusing.is_alive():
                self._refusing = threading.Thread(target=self._away, args=(seconds,), daemon=True)
                self._refusing.start()

    def _away(self, seconds: float) -> None:
        self._stop()
        self._closing.wait(seconds)
        if not self._closing.is_set():
            self._listen()

    def _listen(self) -> None:
        self._server = server = _Server(self._address, _Handler)
        server.proxy, server.upstream, server.script = self, self._upstream, self._script
        self._address = (self._address[0], server.server_address[1])
        self.host = f"{self._address[0]}:{self._address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


class _Server(QuietServer):
    request_queue_size = 128
    proxy: FaultProxy
    upstream: SplitResult
    script: Script


class _Handler(QuietHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    timeout = 120
    _connection: http.client.HTTPConnection | None = None  # to the registry
    _body: RequestBody

    def _serve(self) -> None:
        self._body = RequestBody(self)
        path = urlsplit(self.path).path
        try:
            if path.startswith(CONTROL):
                send(self, self._control(path.removeprefix(CONTROL)))
            elif path == LOOP:
                send(self, plain(307, {"Location": LOOP}))
            else:
                self._answer(self.server.script.pick(self.command, path))
        except (HangUpError, OSError, http.client.HTTPException):
            self.close_connection = True
        if self._body.unread:
            self.close_connection = True  # the rest would pass for the next request

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815

    def finish(self) -> None:
        if self._connection is not None:
            self._connection.close()
        super().finish()

    def _answer(self, fault: Fault | None) -> None:
        """Answer a request of a client."""
        if fault is not None and fault.action == "refuse":
            self._reset()
            self.server.proxy.refuse(fault.number())
            raise HangUpError
        if fault is not None and fault.action == "expired":
            realm = f"http://{self.headers['Host']}{CONTROL}token"
            challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="faultproxy"'}
            answer: Answer | None = refusal(401, "UNAUTHORIZED", "the token expired", challenge)
        else:
            answer = instead(fault, SAYS)
        if answer is not None:
            send(self, answer)
        else:
            send(self, self._ask(fault), fault)

    def _ask(self, fault: Fault | None) -> Answer:
        """Return the registry's answer."""
        headers = self._request_headers(fault)
        response = self._exchange(headers)
        passed = {k: v for k, v in response.getheaders() if k.lower() not in _OF_ONE_CONNECTION}
        self._point_here(passed)
        length = response.getheader("Content-Length")
        if length is None and response.status not in (204, 304):
            # Without a length the end of the connection is the end of the body.
            passed["Connection"] = "close"
            self.close_connection = True
        return Answer(response.status, passed, int(length) if length else None, _chunks(response))

    def _request_headers(self, fault: Fault | None) -> dict[str, str]:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_ONE_CONNECTION}
        if headers.get("Authorization") == f"Bearer {_TOKEN}":
            del headers["Authorization"]
        if fault is not None and fault.action == "ignore-range":
            headers.pop("Range", None)
        if fault is not None and fault.action == "wrong-range" and "Range" in headers:
            first, _, last = headers["Range"].removeprefix("bytes=").partition("-")
            headers["Range"] = f"bytes={int(first) + 1}-{max(int(first) + 1, int(last))}"
        return headers

    def _exchange(self, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send the request on; over a new connection, if the last one was closed meanwhile."""
        upstream = self.server.upstream
        fresh = self._connection is None
        if self._connection is None:
            kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
            self._connection = kind[upstream.scheme](upstream.netloc, timeout=UPSTREAM_TIMEOUT_S)
        connection, has_body = self._connection, self._body.unread
        try:
            if self.headers.get("Content-Length"):
                headers["Content-Length"] = self.headers["Content-Length"]
            body = iter(self._body) if has_body else None
            connection.request(self.command, self.path, body=body, headers=headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException):
            connection.close()
            self._connection = None
            if fresh or has_body:
                raise
        return self._exchange(headers)

    def _point_here(self, headers: dict[str, str]) -> None:
        """Lead a client that the registry sends to itself back to the proxy."""
        target = headers.get("Location", "")
        parts = urlsplit(target)
        if parts.netloc == self.server.upstream.netloc:
            here = parts._replace(scheme="http", netloc=self.headers["Host"])
            headers["Location"] = here.geturl()

    def _control(self, what: str) -> Answer:
        body = self._body.whole()
        if what == "token":
            return _json(200, {"token": _TOKEN, "expires_in": 3600})
        if what == "injected" and self.command == "GET":
            return _json(200, self.server.script.injected)
        if what == "script" and self.command == "PUT":
            try:
                self.server.script.replace(body.decode())
            except ValueError as exc:
                return refusal(400, "SCRIPT_INVALID", str(exc))
            return _json(200, {})
        return refusal(404, "UNSUPPORTED", "the proxy knows no such thing")

    def _reset(self) -> None:
        """End the connection as a closed port would: with RST."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()


def _json(status: int, document: object) -> Answer:
    return plain(status, {"Content-Type": "application/json"}, json.dumps(document).encode())


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read(CHUNK_BYTES):
        yield chunk


def main() -> int:
    """Serve until SIGTERM or SIGINT; then say what was injected."""
    parser = argparse.ArgumentParser(
        prog="python -m firstread.testing.faultproxy",
        description="A proxy in front of a registry, which fails exactly as a script says.",
        epilog="The language of scripts: firstread.testing.httpfaults, docs/testing.md.",
    )
    parser.add_argument("--upstream", required=True, metavar="URL", help="of the registry")
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="[%(default)s]"
    )
    parser.add_argument(
        "--script", action="append", default=[], metavar="LINE", help="a fault; may be repeated"
    )
    parser.add_argument("--script-file", metavar="FILE", help="more of them")
    parser.add_argument("--seed", type=int, default=0, help="of faults by chance [%(default)s]")
    options = parser.parse_args()
    try:
        lines = list(options.script)
        if options.script_file:
            with open(options.script_file) as file:
                lines.append(file.read())
        script = "\n".join(lines)
        proxy = FaultProxy(options.upstream, script, seed=options.seed, address=options.listen)
        with ending_on_signals() as await_end, proxy:
            print(f"listening on http://{proxy.host}", flush=True)
            await_end()
    except (ValueError, OSError) as exc:
        parser.error(str(exc))
    for action, count in sorted(proxy.injected.items()):
        print(f"{action:20} {count:8}")
    print(f"{'all':20} {proxy.injected.total():8}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
