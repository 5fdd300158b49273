# SPDX-License-Identifier: Apache-2.0
"""Which certificates a connection trusts, and which it shows.

Owns the TLS contexts of endpoints. Invariant: what an endpoint states itself is never shared with
another.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable
from pathlib import Path

from firstread.errors import UsageError
from firstread.registry.calls import PacedTlsSocket
from firstread.registry.hosts import Endpoint
from firstread.registry.options import AccessOptions


class SystemTrust:
    """The TLS context of endpoints that state nothing of their own. Safe for threads.

    Loading the system's authorities takes 20 to 40 ms of a core, as long as all requests for a
    small layer. Invariant: an update of their file counts for the next connection. Of a directory
    OpenSSL reads what it needs when it needs it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] = ()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context; nobody may change it."""
        with self._lock:
            paths = ssl.get_default_verify_paths()
            stamp = changed(Path(path) for path in (paths.cafile, paths.capath) if path)
            if self._context is None or stamp != self._stamp:
                self._context, self._stamp = ssl.create_default_context(), stamp
                self._context.sslsocket_class = PacedTlsSocket
            return self._context


_system = SystemTrust()


def load_authorities() -> None:
    """Load the system's authorities, so that the first pull need not.

    Raises:
        OSError: they cannot be read, or are none.
    """
    _system.context()


def tls_context(endpoint: Endpoint, options: AccessOptions) -> ssl.SSLContext:
    """Return which certificates to trust and to show.

    Raises:
        UsageError: a file cannot be read, or is no certificate.
    """
    path: Path | None = options.ca_file
    insecure = options.insecure_tls or endpoint.skip_verify
    if not (path or endpoint.ca or endpoint.clients or insecure):
        return _system.context()
    try:
        context = ssl.create_default_context(cafile=path)
        for path in endpoint.ca:
            context.load_verify_locations(path)
        for path, key in endpoint.clients:
            context.load_cert_chain(path, key)
    except OSError as exc:
        raise UsageError(f"cannot read the certificates in {path}: {exc}") from exc
    context.sslsocket_class = PacedTlsSocket
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def changed(paths: Iterable[Path]) -> tuple[int, ...]:
    """Return the times of the last changes; 0 for a file that is not there."""
    times = []
    for path in paths:
        try:
            times.append(path.stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)
