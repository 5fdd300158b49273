# SPDX-License-Identifier: Apache-2.0
"""The status of a node as Prometheus metrics, made when they are asked for.

Owns the server of them over TCP, which anybody may reach: invariant: whatever clients do, it has
few threads and descriptors of this process, and none for long.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from firstread.errors import UsageError, from_os_error

log = logging.getLogger("metrics")

FIRST_PORT = 1024  # that needs no CAP_NET_BIND_SERVICE
MAX_CONNECTIONS = 16  # at a time over TCP, a thread each; whoever comes then is hung up on
PATIENCE_S = 10.0  # with a client that sends or reads nothing

_COUNTERS = {
    "events": "Sectors that a read asked for while they were absent",
    "waited_reads": "Reads that came while their sector was not whole",
    "bytes_fetched": "Compressed bytes fetched",
    "failed_reads": "Reads that failed",
    "fetch_errors": "Fetches that failed",
}
_ENDPOINT_COUNTERS = {
    "requests": "Requests to an endpoint of a registry",
    "failures": "Those of them that failed, or broke off later",
    "hedges": "Those of them that doubled a late one of another endpoint",
}
_STORE_GAUGES = {
    "bytes": "Bytes of sectors",
    "sectors": "Sectors in the store",
    "limit_bytes": "What all sectors may take; 0: no limit",
    "min_free_bytes": "What the file system is to keep free; 0: no limit",
    "free_bytes": "What the file system has free",
}
_STORE_COUNTERS = {
    "evictions": "Sectors of mounted images that were emptied to make room",
    "evicted_bytes": "Bytes of them",
    "removals": "Sectors of other images that were removed to make room",
    "removed_bytes": "Bytes of them",
    "checked": "Sectors that were checked against their ids",
    "damaged": "Those of them that were damaged",
}
_GAUGES = {
    "sectors": "Sectors of the image",
    "present": "Sectors on this node",
    "wanted": "Sectors being fetched or queued",
    "first_read_p50_s": "Median wait of the last first reads",
    "first_read_p99_s": "99th percentile of it",
    "self_sufficient": "Whether the mount needs its registry no more",
}


def check_address(address: str) -> None:
    """Check that metrics can be served at ``HOST:PORT``, before anything is started.

    Raises:
        UsageError: it is not such an address.
        NodeError: it cannot be listened on.
    """
    host, port = _split(address)
    if 0 < port < FIRST_PORT:
        raise UsageError(
            f"metrics cannot be served at {address}: ports below {FIRST_PORT} need a privilege"
            " that the daemon gives up",
            hint="choose another port",
        )
    with _listening_at(address), socket.create_server((host, port)):
        pass


def _split(address: str) -> tuple[str, int]:
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{address!r} is not HOST:PORT")
    return host or "127.0.0.1", int(port)


@contextlib.contextmanager
def _listening_at(address: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, f"cannot serve metrics at {address}") from exc


class NodeMetrics(Collector):
    """Collects from `status`, the document of ``firstread status --json``."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """Return the metrics in the text format."""
        return generate_latest(self._registry)

    def listen(self, address: str) -> None:
        """Serve the metrics over TCP at ``HOST:PORT``.

        Raises:
            UsageError: `address` is not one.
            NodeError: it cannot be listened on.
        """
        host, port = _split(address)
        with _listening_at(address):
            server = _Server((host, port), self.text)
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        store, fetcher = status["store"], status["fetcher"]
        for name, text in _STORE_GAUGES.items():
            yield GaugeMetricFamily(f"firstread_store_{name}", text, value=store[name] or 0)
        for name, text in _STORE_COUNTERS.items():
            yield CounterMetricFamily(f"firstread_store_{name}", text, value=store[name])
        yield GaugeMetricFamily(
            "firstread_waiting_reads", "Reads that wait now", value=fetcher["waiting_reads"]
        )
        yield CounterMetricFamily(
            "firstread_fetcher_restarts", "Restarts of the fetcher", value=fetcher["restarts"]
        )
        mounts = status["mounts"]
        for name, text in _COUNTERS.items():
            yield _family(CounterMetricFamily, name, text, mounts)
        for name, text in _GAUGES.items():
            yield _family(GaugeMetricFamily, name, text, mounts)
        requests = CounterMetricFamily(
            "firstread_requests", "Requests by cause", labels=["image", "mountpoint", "cause"]
        )
        for mount in mounts:
            for cause, count in mount["requests_by_cause"].items():
                requests.add_metric([mount["image"], mount["mountpoint"], cause], count)
        yield requests
        yield from _of_endpoints(status["endpoints"])


class _Server(socketserver.ThreadingTCPServer):
    """Serves `text` over TCP to a few clients at a time."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], text: Callable[[], bytes]) -> None:
        self.text = text
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()  # there is no thread that would
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a connection broke", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = PATIENCE_S

    def do_GET(self) -> None:
        data = self.server.text()
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is inherited
        log.debug(format, *args)


def _of_endpoints(endpoints: list[dict[str, Any]]) -> Iterator[Metric]:
    labels = ["endpoint", "registry"]
    for name, text in _ENDPOINT_COUNTERS.items():
        family = CounterMetricFamily(f"firstread_endpoint_{name}", text, labels=labels)
        for endpoint in endpoints:
            family.add_metric([endpoint[label] for label in labels], endpoint[name])
        yield family
    healthy = GaugeMetricFamily(
        "firstread_endpoint_healthy", "Whether its last request did not fail", labels=labels
    )
    for endpoint in endpoints:
        state = float(endpoint["state"] == "healthy")
        healthy.add_metric([endpoint[label] for label in labels], state)
    yield healthy


def _family(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    text: str,
    mounts: list[dict[str, Any]],
) -> Metric:
    family = kind(f"firstread_{name}", text, labels=["image", "mountpoint"])
    for mount in mounts:
        if mount[name] is not None:
            family.add_metric([mount["image"], mount["mountpoint"]], float(mount[name]))
    return family
