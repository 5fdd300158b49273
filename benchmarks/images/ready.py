# SPDX-License-Identifier: Apache-2.0
"""Defines when a container is ready, and waits for it.

Owns the two ways in which the benchmark images show that their workload answers. Does not start or
stop anything. Invariant: `wait_ready` returns only after it has seen the described answer.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

POLL_S = 0.005
ANSWER_S = 60.0  # a server that has accepted may load its model first


@dataclass(frozen=True)
class Prints:
    """Ready when standard output has this line, without its newline, as its first."""

    line: str


@dataclass(frozen=True)
class Answers:
    """Ready when bytes sent to a TCP port of the loopback get an answer that begins like this.

    An empty `send` waits for a server that speaks first.
    """

    port: int
    send: bytes
    begins: bytes


Ready = Prints | Answers


def wait_ready(process: subprocess.Popen[bytes], ready: Ready, timeout_s: float = 60) -> float:
    """Wait until the workload in `process` answers; return the duration of this call in seconds.

    Args:
        process: for `Prints`, started with ``stdout=PIPE``.
        ready: the answer to wait for.
        timeout_s: limit of the wait. It does not interrupt a silent `Prints`.

    Raises:
        RuntimeError: the workload ended, or gave another answer, or none in time.
    """
    start = time.monotonic()
    if isinstance(ready, Prints):
        assert process.stdout is not None
        line = process.stdout.readline().decode(errors="replace").rstrip("\n")
        if line != ready.line:
            raise RuntimeError(f"printed {line!r} instead of {ready.line!r}")
        return time.monotonic() - start
    while not answers(ready):
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode} before it answered")
        if time.monotonic() - start > timeout_s:
            raise RuntimeError(f"no answer on port {ready.port} within {timeout_s:.0f} s")
        time.sleep(POLL_S)
    return time.monotonic() - start


def answers(ready: Answers) -> bool:
    """Ask once and return whether the answer is right.

    A server that is still starting refuses, hangs up or says something else.
    """
    try:
        with socket.create_connection(("127.0.0.1", ready.port), timeout=ANSWER_S) as connection:
            connection.sendall(ready.send)
            answer = b""
            while len(answer) < len(ready.begins):
                data = connection.recv(4096)
                if not data:
                    break
                answer += data
    except OSError:
        return False
    return answer.startswith(ready.begins)
