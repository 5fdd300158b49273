# SPDX-License-Identifier: Apache-2.0
"""The server of metrics over TCP, and clients that say nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import urllib.request

import pytest

from firstread.control import metricserver
from firstread.control.metricserver import MAX_CONNECTIONS
from firstread.testing.patience import PATIENCE_S
from firstread.testing.serving import serving


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_silent_clients_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metricserver._Handler, "timeout", 1.0)
    server = metricserver._Server(("127.0.0.1", 0), lambda: b"metrics 1\n")
    with serving(server), contextlib.ExitStack() as stack:
        idle = descriptors()
        address = "127.0.0.1", int(server.server_address[1])
        clients = [
            stack.enter_context(socket.create_connection(address, PATIENCE_S))
            for _ in range(10 * MAX_CONNECTIONS)
        ]
        for client in clients[MAX_CONNECTIONS:]:
            assert client.recv(1) == b""
        assert descriptors() <= idle + len(clients) + MAX_CONNECTIONS + 1
        assert clients[0].recv(1) == b""  # even after a while
        until = time.monotonic() + PATIENCE_S
        while descriptors() > idle + len(clients):
            assert time.monotonic() < until
            time.sleep(0.01)
        with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/metrics") as answer:
            assert answer.read() == b"metrics 1\n"


def test_clients_that_send_byte_by_byte_have_no_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metricserver._Handler, "timeout", 0.5)
    server = metricserver._Server(("127.0.0.1", 0), lambda: b"metrics 1\n")
    with serving(server):
        address = "127.0.0.1", int(server.server_address[1])
        with socket.create_connection(address, PATIENCE_S) as client:
            client.settimeout(0.1)
            until = time.monotonic() + PATIENCE_S
            while True:
                with contextlib.suppress(TimeoutError):
                    try:
                        client.sendall(b"G")
                        if client.recv(1) == b"":
                            break
                    except ConnectionError:
                        break
                assert time.monotonic() < until
