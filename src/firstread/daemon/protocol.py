# SPDX-License-Identifier: Apache-2.0
"""Messages between supervisor and fetcher, and the numbers of the descriptors they share.

The channel is a SOCK_SEQPACKET pair: a message is whole or not there. Supervisor to fetcher: some
`Read`s, with the descriptors of their sector files beside them, or an `Order`. Fetcher to
supervisor: the numbers of events that are answered, and heartbeats (no numbers at all); ``~number``
of a read whose descriptor was lost, because the fetcher had no room for it: it is sent again.

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

from firstread.device.base import SECTOR_ID_BYTES, Read

# Both processes hold these under the same numbers. The kernel names an event by the number of its
# descriptor in the process that read it; a successor must be able to take that number for itself,
# so nothing that lives long may stand in the way.
GROUP_FD = 1000
LISTENER_FD = 1001
LOCK_FD = 1002
BUFFER_FD = 1003  # events that are being read, and those that wait: see `firstread.daemon.journal`
SECRETS_FD = 1004  # memory of `firstread.mounts.secrets`

WIRE_VERSION = 2

_REQUEST = struct.Struct("=iiQQ32s")  # number, pid, offset, length, sector id (zeros: not known)
_NOT_KNOWN = bytes(SECTOR_ID_BYTES)
_CLOEXEC = socket.MSG_CMSG_CLOEXEC
_ORDER = struct.pack("=i", -1)  # where a request has its number; JSON follows
_MESSAGE_BYTES = 4096  # longest; MOST_REQUESTS fit
_KEEP, _DROP = (struct.pack("=i", word - (1 << 31)) for word in range(2))  # likewise
_NUMBER = "i"
_NUMBER_BYTES = array.array(_NUMBER).itemsize
MOST_REQUESTS = 16  # in a message
_RIGHTS_BYTES = socket.CMSG_LEN(MOST_REQUESTS * _NUMBER_BYTES)


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


class Keep(NamedTuple):
    """Descriptors of a mount that the receiver is to hold from now on.

    Args:
        device: number of the mount.
        pair: of `firstread.daemon.kept`; None if the receiver had no room for them.
    """

    device: int
    pair: tuple[int, int] | None


class Drop(NamedTuple):
    """The mount of a device number has ended: its descriptors are to be closed."""

    device: int


def set_patience(channel: socket.socket, seconds: float) -> None:
    """Let a blocking channel wait so long: in the kernel, without a poll(2) for each message."""
    channel.setblocking(True)
    whole, part = divmod(round(seconds * 1_000_000), 1_000_000)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        channel.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", whole, part))


def send_order(channel: socket.socket, what: str, **details: Any) -> None:
    """Send an order."""
    channel.send(_ORDER + json.dumps({"order": what, **details}).encode())


def send_requests(channel: socket.socket, requests: Sequence[Read]) -> None:
    """Send up to `MOST_REQUESTS` requests with descriptors; the sender keeps its own copies."""
    data = b"".join(
        _REQUEST.pack(number, pid, offset, length, sector_id)
        for number, pid, offset, length, _, sector_id in requests
    )
    fds = array.array(_NUMBER, [request.fd for request in requests])
    channel.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])


def receive_requests(
    channel: socket.socket, *, waits: bool = True
) -> list[Read] | Order | Keep | Drop | None:
    """Return what comes next; None when the supervisor is gone and all it sent was received.

    A request whose descriptor found no room has a negative one.

    Args:
        channel: to the supervisor.
        waits: for something to come, as long as `set_patience` has said.

    Raises:
        TimeoutError: nothing comes.
        OSError: the channel does not work.
    """
    flags = _CLOEXEC if waits else _CLOEXEC | socket.MSG_DONTWAIT
    while True:
        try:
            data, rights, _, _ = channel.recvmsg(_MESSAGE_BYTES, _RIGHTS_BYTES, flags)
            break
        except ConnectionResetError:
            # It died before it had read all we sent. This is said once, and ahead of what it sent.
            continue
        except BlockingIOError:
            raise TimeoutError from None
    if not data:
        return None
    if data.startswith(_ORDER):
        details = json.loads(data[len(_ORDER) :])
        return Order(details.pop("order"), details)
    fds = array.array(_NUMBER)
    for _, _, more in rights:
        fds.frombytes(more[: len(more) // _NUMBER_BYTES * _NUMBER_BYTES])
    if (word := _held(data, fds)) is not None:
        return word
    requests = []
    for place, fields in enumerate(_REQUEST.iter_unpack(data)):
        number, pid, offset, length, sector_id = fields
        fd = fds[place] if place < len(fds) else -1
        known = sector_id if sector_id != _NOT_KNOWN else b""
        requests.append(Read(number, pid, offset, length, fd, known))
    return requests


def send_held(channel: socket.socket, word: Keep | Drop) -> None:
    """Have the other end hold descriptors of a mount, or no longer; the sender keeps its own."""
    what, fds = (_KEEP, word.pair or ()) if isinstance(word, Keep) else (_DROP, ())
    socket.send_fds(channel, [what + json.dumps(word.device).encode()], list(fds))


def _held(data: bytes, fds: Sequence[int]) -> Keep | Drop | None:
    """Return what a message says of a mount's descriptors; None if it is another message."""
    if data.startswith(_DROP):
        return Drop(json.loads(data[len(_DROP) :]))
    if not data.startswith(_KEEP):
        return None
    device = json.loads(data[len(_KEEP) :])
    if len(fds) == 2:
        return Keep(device, (fds[0], fds[1]))
    for fd in fds:
        os.close(fd)
    return Keep(device, None)


def send_answered(channel: socket.socket, numbers: Sequence[int] = ()) -> None:
    """Tell that events are answered; without numbers it is a heartbeat."""
    channel.send(array.array(_NUMBER, numbers).tobytes() or b"\0")


def receive_answered(channel: socket.socket) -> list[int] | Keep | Drop | None:
    """Return the numbers of answered events, [] for a heartbeat, None when the fetcher is gone.

    A fetcher that sends what is neither is as good as gone.
    """
    data, fds, _, _ = socket.recv_fds(channel, 65536, 2)
    for fd in fds:
        os.set_inheritable(fd, False)
    if (word := _held(data, fds)) is not None:
        return word
    if not data or (len(data) > 1 and len(data) % _NUMBER_BYTES):
        return None
    return [] if len(data) == 1 else array.array(_NUMBER, data).tolist()
