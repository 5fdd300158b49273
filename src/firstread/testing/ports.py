# SPDX-License-Identifier: Apache-2.0
"""A port for a server that cannot choose one itself and say which."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Return a port of the loopback address that nobody has now; another process may take it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
