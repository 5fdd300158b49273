# SPDX-License-Identifier: Apache-2.0
"""Connections to one endpoint, and to where it redirects: TLS and proxies.

Owns urllib3's pools, whose sockets a call can cancel; knows neither authorization nor the meaning
of an answer. Invariants: however a request ends, it leaves no unused connection open; no exception
of urllib3 leaves `request`.

Facts about urllib3:

* At the level DEBUG it logs every URL with its query, which may be a signature. We raise its level.
* It does not look at user and password in the URL of a proxy.
* It limits the time of each read of a socket, but not of a whole head or a whole answer.
  `firstread.registry.calls` does, in the sockets that this module hands to it.
* http.client below it takes a chunk of -1 bytes for all that will ever come, into memory, and reads
  trailers without end.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InsecureRequestWarning,
    LocationParseError,
    NameResolutionError,
    NewConnectionError,
)
from urllib3.util import make_headers

from firstread import __version__
from firstread.errors import UsageError
from firstread.registry.calls import (
    CancelledCallError,
    Pace,
    PacedSocket,
    PacedTlsSocket,
    connect,
    current,
    paced,
)
from firstread.registry.endpoint import origin
from firstread.registry.faults import from_exception
from firstread.registry.hosts import Endpoint
from firstread.registry.options import AccessOptions
from firstread.registry.proxies import Proxies
from firstread.registry.trust import changed, tls_context
from firstread.units import KiB

_SEND_SIZE: Final = 256 * KiB  # bytes
IDLE: Final = 16  # connections kept per host; more threads open more
_COMMON_HEADERS: Final = {"User-Agent": f"firstread/{__version__}"}
_MOST_TRAILERS: Final = 100  # lines, as http.client takes of headers
_MOST_LINE: Final = 4 * KiB  # bytes of a line of the chunked coding; real ones have ten
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?\r?\n", re.DOTALL)
_IDENTITY: Final = {"Accept-Encoding": "identity"}  # a digest is that of the bytes on the wire

logging.getLogger("urllib3").setLevel(logging.WARNING)


_here = threading.local()


class _Received(HTTPResponse):
    """An answer whose chunked coding is bounded (RFC 9112, 7.1): the methods replace those."""

    def _read_next_chunk_size(self) -> int:
        line = self._line()
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise ValueError("no size of a chunk")  # which http.client takes for a broken answer
        return int(match[1], 16)

    def _read_and_discard_trailer(self) -> None:
        for _ in range(_MOST_TRAILERS):
            if self._line() in (b"\r\n", b"\n", b""):
                return
        raise HTTPException(f"there are more than {_MOST_TRAILERS} trailers")

    def _line(self) -> bytes:
        line: bytes = self.fp.readline(_MOST_LINE + 1)
        if len(line) > _MOST_LINE:
            raise HTTPException(f"a line of the chunked coding has more than {_MOST_LINE} bytes")
        return line


class _Announced(HTTPConnection):
    """A connection whose waits end with the call of its thread, and keep to a pace.

    Attributes:
        received: the last answer, below what urllib3 makes of it.
    """

    received: HTTPResponse | None = None

    def response_class(self, *args: Any, **kwargs: Any) -> HTTPResponse:  # type: ignore[override]
        self.received = _Received(*args, **kwargs)
        return self.received

    def _new_conn(self) -> PacedSocket:
        try:
            address = self._dns_host.strip("[]"), self.port
            sock = connect(address, self.timeout, tuple(self.socket_options or ()))
        except UnicodeError:
            raise LocationParseError("a label of the host is empty or too long") from None
        except socket.gaierror as exc:
            raise NameResolutionError(self.host, self, exc) from exc
        except TimeoutError as exc:
            raise ConnectTimeoutError(self, "the connection timed out") from exc
        except CancelledCallError:
            raise
        except OSError as exc:
            raise NewConnectionError(self, f"cannot connect: {exc}") from exc
        sock.pace = _here.pace  # what a proxy says before there is a tunnel
        return sock

    def request(self, *args: Any, **kwargs: Any) -> None:
        if (sock := paced(self.sock)) is not None:
            if (call := current()) is not None:
                call.uses(sock)
            sock.pace = _here.pace
        super().request(*args, **kwargs)

    def connect(self) -> None:
        super().connect()
        if (sock := paced(self.sock)) is not None:
            sock.pace = _here.pace

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        _here.pace.begin_head()
        return super().getresponse()


class _AnnouncedTls(_Announced, HTTPSConnection):
    @property
    def is_connected(self) -> bool:
        """Whether nothing has come unasked: the tickets behind a handshake of TLS 1.3 may have."""
        sock = self.sock
        if super().is_connected:
            return True
        if not isinstance(sock, PacedTlsSocket):
            return False
        timeout = sock.gettimeout()
        try:
            sock.settimeout(0)
            ssl.SSLSocket.recv(sock, 1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        finally:
            sock.settimeout(timeout)
        return False


def read_body(response: urllib3.BaseHTTPResponse, buffer: memoryview) -> int:
    """Read the next bytes of an answer to the beginning of `buffer`; return how many, 0 at its end.

    urllib3 reads into memory of its own first, and copies it.

    Raises:
        OSError, HTTPError: it broke off.
    """
    connection = response.connection
    plain = connection.received if isinstance(connection, _Announced) else None
    if plain is None or plain.chunked:
        return response.readinto(buffer)
    count = plain.readinto(buffer)
    if response.length_remaining is not None:
        if not count and response.length_remaining:
            raise ConnectionError("the peer hung up")
        response.length_remaining -= count
    return count


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Announced

    def connect_ahead(self) -> None:
        """Have one more idle connection.

        Raises:
            HTTPError, OSError: there is none.
        """
        connection = self._get_conn()
        try:
            if connection.is_closed:
                connection.connect()
        finally:
            self._put_conn(connection)


class _TlsPool(HTTPSConnectionPool, _Pool):
    ConnectionCls = _AnnouncedTls


class Connections:
    """Connections to an endpoint and to where it redirects. Safe for threads.

    Reads certificates again when their files change, so a renewal needs no restart.

    Args:
        endpoint: where most of them go.
        options: time limits, and what to trust.

    Raises:
        UsageError: certificates cannot be read.
    """

    def __init__(self, endpoint: Endpoint, options: AccessOptions) -> None:
        self._endpoint, self._options = endpoint, options
        self._first_byte = options.first_byte_timeout or options.read_timeout
        ca_file = (options.ca_file,) if options.ca_file else ()
        pairs = [path for pair in endpoint.clients for path in pair if path]
        self._files = (*ca_file, *endpoint.ca, *pairs)
        self._insecure = options.insecure_tls or endpoint.skip_verify
        self._managers: dict[str, urllib3.PoolManager] = {}  # by proxy
        self._proxies = Proxies.of_environment()
        self._lock = threading.Lock()
        self._stamp = changed(self._files)
        self._context: ssl.SSLContext | None = None
        self._manager(endpoint.base)  # now: later a file may not be opened in time

    def request(
        self, method: str, url: str, headers: Mapping[str, str], body: Any
    ) -> urllib3.BaseHTTPResponse:
        """Do one exchange; the body of the answer is unread.

        Raises:
            SourceError: it fails.
        """
        options = self._options
        _here.pace = pace = Pace(self._first_byte, self._first_byte)
        try:
            if (call := current()) is not None:
                call.check()
            response = self._manager(url).request(
                method,
                url,
                headers=_COMMON_HEADERS | dict(headers) | _IDENTITY,
                body=body,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
        except (HTTPError, OSError) as exc:
            raise from_exception(exc, url) from exc
        pace.begin_body(options.read_timeout, options.least_rate)
        return response

    def connect_ahead(self) -> None:
        """Have one more idle connection to the endpoint; not if that fails, or through a proxy."""
        _here.pace = Pace(self._first_byte, self._first_byte)
        with self._lock:
            manager = self._managers.get("")
        if manager is None:  # a proxy leads there, or all have been closed
            return
        pool = manager.connection_from_url(self._endpoint.base)
        with contextlib.suppress(HTTPError, OSError):
            if isinstance(pool, _Pool):
                pool.connect_ahead()
        with self._lock:
            if self._managers.get("") is not manager:
                pool.close()  # so were those that were idle meanwhile

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            self._forget()

    def _manager(self, url: str) -> urllib3.PoolManager:
        origin(url)
        proxy = self._proxies.of(url)
        with self._lock:
            if self._files and (stamp := changed(self._files)) != self._stamp:
                self._forget()
                self._stamp, self._context = stamp, None
            if (manager := self._managers.get(proxy)) is None:
                manager = self._managers[proxy] = self._make(proxy)
            return manager

    def _make(self, proxy: str) -> urllib3.PoolManager:
        if self._context is None:
            self._context = tls_context(self._endpoint, self._options)
        options = self._options
        connect = self._endpoint.dial_timeout or options.connect_timeout
        settings: dict[str, Any] = {
            "num_pools": 8,
            "maxsize": IDLE,
            "timeout": urllib3.Timeout(connect=connect, read=self._first_byte),
            "blocksize": _SEND_SIZE,
            "ssl_context": self._context,
            "socket_options": [
                *HTTPConnection.default_socket_options,
                # In milliseconds. The kernel notices a connection that died while idle after this
                # time, not after minutes.
                (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(connect * 1000)),
            ],
        }
        if self._insecure:
            settings["cert_reqs"] = "CERT_NONE"
            urllib3.disable_warnings(InsecureRequestWarning)  # the user has decided
        manager: urllib3.PoolManager
        if proxy:
            manager = _through(proxy, settings, options.ca_file)
        else:
            manager = urllib3.PoolManager(**settings)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager

    def _forget(self) -> None:
        for manager in self._managers.values():
            # clear() alone only drops the pools: their sockets stay until they are collected.
            for key in manager.pools.keys():  # noqa: SIM118  (a mapping that cannot be iterated)
                if (pool := manager.pools.get(key)) is not None:
                    pool.close()
            manager.clear()
        self._managers.clear()


def _through(proxy: str, settings: dict[str, Any], ca_file: Path | None) -> urllib3.ProxyManager:
    """Return a manager whose connections go through `proxy`, and show it its user and password.

    Args:
        proxy: its URL.
        settings: of urllib3's pools.
        ca_file: certificates to trust besides the system's, if the proxy itself speaks TLS.
    """
    try:
        parts = urlsplit(proxy)
        login = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UsageError("the environment names a proxy that is not an address of HTTP")
    headers = make_headers(proxy_basic_auth=login) if parts.username else None
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    context = ssl.create_default_context()
    context.sslsocket_class = PacedTlsSocket
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return urllib3.ProxyManager(
        address, proxy_headers=headers, proxy_ssl_context=context, **settings
    )
