# SPDX-License-Identifier: Apache-2.0
"""Messages between supervisor and fetcher, and the numbers of the descriptors they share.

The channel is a SOCK_SEQPACKET pair: a message is whole or not there. Supervisor to fetcher: one
`Request` each, with the descriptor of the sector file beside it, or an `Order`. Fetcher to
supervisor: the numbers of events that are answered, and heartbeats (no numbers at all).

After an upgrade a supervisor speaks for a while with the fetcher of the version before. If what is
here changes so that they would misunderstand each other, `WIRE_VERSION` changes too: then the new
supervisor ends that fetcher and starts its own at once, while reads wait.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

# Both processes hold these under the same numbers. The kernel names an event by the number of its
# descriptor in the process that read it; a successor must be able to take that number for itself,
# so nothing that lives long may stand in the way.
GROUP_FD = 1000
LISTENER_FD = 1001
LOCK_FD = 1002
BUFFER_FD = 1003  # events that are being read, and those that wait: see `firstread.node.journal`
SECRETS_FD = 1004  # memory of `firstread.node.secrets`

WIRE_VERSION = 1

_REQUEST = struct.Struct("=iiQQ")  # number, pid, offset, length
_ORDER = struct.pack("=i", -1)  # where a request has its number; JSON follows
_ORDER_BYTES = 4096
_NUMBER = "i"
_NUMBER_BYTES = array.array(_NUMBER).itemsize
MOST_ANSWERED = 4096  # numbers in a message


class Request(NamedTuple):
    """An event that waits for its answer.

    Args:
        number: what the kernel calls it.
        pid: of the reader.
        offset: first byte of the sector file that is wanted.
        length: bytes that are wanted.
        fd: the sector file, writable without raising events, owned by the receiver; negative if
            too many files are open.
    """

    number: int
    pid: int
    offset: int
    length: int
    fd: int


class Order(NamedTuple):
    """What a supervisor tells a fetcher.

    Args:
        what: ``start``: another fetcher has ended, go on from what you have loaded ·
            ``retire``: end, once the commands that you have are answered · ``inform``: you have
            another supervisor. An unknown one is ignored.
        details: of it.
    """

    what: str
    details: dict[str, Any]


def send_order(channel: socket.socket, what: str, **details: Any) -> None:
    """Send an order."""
    channel.send(_ORDER + json.dumps({"order": what, **details}).encode())


def send_request(channel: socket.socket, request: Request) -> None:
    """Send a request and its descriptor; the sender keeps its own copy."""
    data = _REQUEST.pack(request.number, request.pid, request.offset, request.length)
    socket.send_fds(channel, [data], [request.fd])


def receive_request(channel: socket.socket) -> Request | Order | None:
    """Return what comes next; None when the supervisor is gone and all it sent was received.

    Raises:
        TimeoutError: nothing comes.
        OSError: there is no room for the file that may come with it, which would be lost; what
            comes next can still be received.
    """
    os.close(os.dup(channel.fileno()))
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(channel, _ORDER_BYTES, 1)
            break
        except ConnectionResetError:
            # It died before it had read all we sent. This is said once, and ahead of what it sent.
            continue
    if not data:
        return None
    for fd in fds:
        os.set_inheritable(fd, False)
    if data.startswith(_ORDER):
        details = json.loads(data[len(_ORDER) :])
        return Order(details.pop("order"), details)
    number, pid, offset, length = _REQUEST.unpack(data)
    return Request(number, pid, offset, length, fds[0] if fds else -1)


def send_answered(channel: socket.socket, numbers: Sequence[int] = ()) -> None:
    """Tell that up to `MOST_ANSWERED` events are answered; without numbers it is a heartbeat."""
    channel.send(array.array(_NUMBER, numbers).tobytes() or b"\0")


def receive_answered(channel: socket.socket) -> list[int] | None:
    """Return the numbers of answered events, [] for a heartbeat, None when the fetcher is gone.

    A fetcher that sends what is neither is as good as gone.
    """
    data = channel.recv(65536)
    if not data or (len(data) > 1 and len(data) % _NUMBER_BYTES):
        return None
    return [] if len(data) == 1 else array.array(_NUMBER, data).tolist()
