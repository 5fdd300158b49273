# SPDX-License-Identifier: Apache-2.0
"""A port on loopback that leads to a server at the far end of a link.

``python -m benchmarks.near HOST PORT`` prints the port, and ends with its standard input.
containerd and others speak plain HTTP only to loopback; through this port they need no
configuration that would differ between the compared sides. Rate and delay are those of the link
behind it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

CHUNK_BYTES = 1 << 18
END_S = 10.0


@contextlib.contextmanager
def near(host: str) -> Iterator[str]:
    """Yield ``HOST:PORT`` on loopback for a distant one."""
    address, _, port = host.rpartition(":")
    command = (sys.executable, "-m", "benchmarks.near", address, port)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()
            process.wait(END_S)


def main() -> None:
    far = sys.argv[1], int(sys.argv[2])
    server = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(server.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(server, far), daemon=True).start()
    sys.stdin.read()


def _accept(server: socket.socket, far: tuple[str, int]) -> None:
    while True:
        client, _ = server.accept()
        threading.Thread(target=_join, args=(client, far), daemon=True).start()


def _join(client: socket.socket, far: tuple[str, int]) -> None:
    """Forward bytes both ways until both ends have closed."""
    try:
        upstream = socket.create_connection(far)
    except OSError:
        client.close()
        return
    for end in (client, upstream):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    back = threading.Thread(target=_copy, args=(upstream, client), daemon=True)
    back.start()
    _copy(client, upstream)
    back.join()
    client.close()
    upstream.close()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
