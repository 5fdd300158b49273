# SPDX-License-Identifier: Apache-2.0
"""A slow and distant network on one machine: a second network namespace, a rate and a delay.

Owns the namespace, the two devices and the process between them; a `Link` leaves nothing behind.
The rate is tbf(8) on both devices, the delay a relay in user space (`benchmarks.relay`),
because many kernels, such as the one of small virtual machines, have no netem. Invariant: reported
figures of a link are measured (`Link.measure`), never only requested.

Start a server under `Link.far` to put it on the far side.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

CLONE_NEWNET = 0x40000000
NETWORK = "10.217.{}"
BURST_BYTES, BURST_S = 16_000, 0.001  # tbf lets pass at once the larger of both
WIDE_MBIT_S = 10_000.0  # more than the relay carries
QUEUE_S = 0.1  # packets that tbf keeps, as time on the wire, before it drops
PROBE_BYTES, PROBE_S = 12_000_000, 1.0  # the larger of both is a download's length
PINGS = 10


@dataclass(frozen=True)
class Measured:
    """The measured speed of a link.

    Args:
        rtt_s: from one byte to its echo, median.
        connect_s: of a TCP connection, median.
        bytes_per_s: of one TCP connection from the far side, slow start included.
    """

    rtt_s: float
    connect_s: float
    bytes_per_s: float

    def __str__(self) -> str:
        return (
            f"{self.bytes_per_s * 8 / 1e6:.0f} Mbit/s, round trip {self.rtt_s * 1000:.1f} ms,"
            f" connection {self.connect_s * 1000:.1f} ms (measured)"
        )


class Link:
    """A link to a separate namespace; a context manager, for one at a time in a process.

    Args:
        mbit_s: rate of each direction, in 10^6 bits per second.
        rtt_s: round trip time, in seconds.
    """

    def __init__(self, mbit_s: float, rtt_s: float) -> None:
        self.mbit_s, self.rtt_s = mbit_s, rtt_s
        network = NETWORK.format(os.getpid() % 256)  # links of several processes stay apart
        self._address, self.address = f"{network}.1", f"{network}.2"
        tag = f"fr{os.getpid()}"
        self._namespace, self._near, self._far = f"{tag}-far", f"{tag}n", f"{tag}f"
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def __str__(self) -> str:
        return f"{self.mbit_s:g} Mbit/s, {self.rtt_s * 1000:g} ms"

    @contextlib.contextmanager
    def far(self) -> Iterator[None]:
        """Put this thread, and the processes that it starts, on the far side for a while."""
        with open("/proc/thread-self/ns/net") as home, open(self._path) as away:
            _enter(away.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    @contextlib.contextmanager
    def wide(self) -> Iterator[None]:
        """Let through as much as it can towards the near side for a while; the delay stays."""
        self._shape_far(WIDE_MBIT_S)
        try:
            yield
        finally:
            self._shape_far(self.mbit_s)

    def received_bytes(self) -> int:
        """Return how many bytes have come to the near side, headers of IP and TCP included."""
        return int(Path(f"/sys/class/net/{self._near}/statistics/rx_bytes").read_text())

    def measure(self) -> Measured:
        """Measure the link, which takes a second or more and fills it."""
        with self.far():
            server = socket.create_server((self.address, 0))
        with server:
            probe = max(PROBE_BYTES, int(self.mbit_s * 125_000 * PROBE_S))
            # A daemon: after an error nobody connects, and closing a socket wakes no accept.
            thread = threading.Thread(target=_serve_probe, args=(server, probe), daemon=True)
            thread.start()
            connects, echoes = [], []
            for _ in range(PINGS):
                started = time.perf_counter()
                with socket.create_connection(server.getsockname()) as connection:
                    connects.append(time.perf_counter() - started)
                    started = time.perf_counter()
                    connection.sendall(b"?")
                    connection.recv(1)
                    echoes.append(time.perf_counter() - started)
            with socket.create_connection(server.getsockname()) as connection:
                started = time.perf_counter()
                connection.sendall(b"!")
                while connection.recv(1 << 20):
                    pass
                seconds = time.perf_counter() - started
            thread.join()
        middle = PINGS // 2
        return Measured(sorted(echoes)[middle], sorted(connects)[middle], probe / seconds)

    @property
    def _path(self) -> str:
        return f"/run/netns/{self._namespace}"

    def _set_up(self) -> None:
        _ip("netns", "add", self._namespace)
        self._cleanup.callback(_ip, "netns", "delete", self._namespace)
        relay = subprocess.Popen(
            (sys.executable, "-m", "benchmarks.relay", self._near, self._far, str(self.rtt_s / 2)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._cleanup.callback(_end, relay)
        assert relay.stdout is not None
        if relay.stdout.readline() != b"ready\n":
            raise RuntimeError("the relay does not start")
        _ip("link", "set", self._far, "netns", self._namespace)
        self._configure(self._near, self._address, self.address)
        with self.far():
            _ip("link", "set", "lo", "up")
            self._configure(self._far, self.address, self._address)

    def _shape_far(self, mbit_s: float) -> None:
        with self.far():
            _shape("change", self._far, mbit_s)

    def _configure(self, device: str, own: str, peer: str) -> None:
        _ip("address", "add", own, "peer", peer, "dev", device)
        _ip("link", "set", device, "up")
        _shape("add", device, self.mbit_s)


def _shape(action: str, device: str, mbit_s: float) -> None:
    """Add or change the rate of a device, of 10^6 bits per second."""
    burst = max(BURST_BYTES, int(mbit_s * 125_000 * BURST_S))
    shape = f"tbf rate {mbit_s}mbit burst {burst} latency {QUEUE_S * 1000:.0f}ms"
    subprocess.run(("tc", "qdisc", action, "dev", device, "root", *shape.split()), check=True)


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


def _enter(namespace: int) -> None:
    """setns(2) of the calling thread; `os.setns` comes with Python 3.12."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


def _serve_probe(server: socket.socket, probe_bytes: int) -> None:
    """Echo single bytes; at ``!`` send `probe_bytes` and end."""
    while True:
        connection, _ = server.accept()
        with connection:
            word = connection.recv(1)
            if word == b"!":
                connection.sendall(bytes(probe_bytes))
                return
            connection.sendall(word)
