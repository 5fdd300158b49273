# SPDX-License-Identifier: Apache-2.0
"""The kernel's NBD client, asked by netlink: a device is connected, gets another socket, ends.

Owns the messages of the generic netlink family ``nbd``, and what sysfs says of a device. Serves
nothing. Invariant: a device is given another socket only if it has our name (`BACKEND`): others use
NBD devices, too, and their numbers come again.

Facts about NBD devices (Linux 6.1 to 7.3, drivers/block/nbd.c; tests/privileged/test_device_nbd.py
shows them):

* The kernel chooses a free number, or makes a new device; nobody else can get it then.
* The module is not loaded on demand: no alias has the name of the family. Where the family lacks
  ``netnsok``, only the host's network namespace sees it.
* ``timeout`` begins when a request is sent. It ends the connection, if that is still the one that
  the request was sent by, and has the request sent again; with 0 it would never be sent again.
* ``dead_timeout`` is how long requests wait for a socket once there is none; then they fail.
* DISCONNECT_ON_CLOSE works at the close that leaves nobody. Before the first open it is too early:
  whoever looks at new devices, such as udev, would end it.
* A device keeps the queue limits that its last user has set.

Source: include/uapi/linux/{netlink,genetlink,nbd-netlink,nbd}.h.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

MAJOR = 43
MODULE = Path("/sys/module/nbd")  # there if the client is, built in or loaded
BACKEND = "firstread "  # begins the name that a device of ours has
_TIMEOUT_S = 30  # for the kernel to answer
_MOST_BYTES = 64 * 1024  # of an answer

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_GENERIC = struct.Struct("=BBH")  # struct genlmsghdr: command, version, reserved
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ERROR = struct.Struct("=i")  # struct nlmsgerr: negative errno, and the request
_U16, _U32, _U64 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct("=Q")
_REQUEST, _ACK = 1, 4
_NLMSG_ERROR = 2

_CTRL_FAMILY, _CTRL_GETFAMILY, _CTRL_ID, _CTRL_NAME = 16, 3, 1, 2
_FAMILY, _VERSION = b"nbd\0", 1
_CONNECT, _DISCONNECT, _RECONFIGURE = 1, 2, 3
_INDEX, _SIZE, _BLOCK_SIZE, _TIMEOUT, _FLAGS, _CLIENT_FLAGS, _SOCKETS, _DEAD_TIMEOUT = range(1, 9)
_BACKEND = 10
_SOCK_ITEM = _SOCK_FD = 1
_HAS_FLAGS, _READ_ONLY = 1, 2
_DISCONNECT_ON_CLOSE = 2
_BLOCK_BYTES = 512  # the alignment that O_DIRECT asks for
_NETLINK_GENERIC = 16

_sequence = itertools.count(1)


def is_loaded() -> bool:
    """Return whether the kernel has its NBD client, in whatever namespace."""
    return MODULE.exists()


def connect(sock: int, size: int, backend: str, timeout_s: int, dead_timeout_s: int) -> int:
    """Connect a free device, for reading only.

    Args:
        sock: descriptor of a connected stream socket, whose other end serves.
        size: bytes, a multiple of 512.
        backend: name of what is served; begins with `BACKEND`.
        timeout_s: for a request to be answered; see the facts above.
        dead_timeout_s: that requests wait for another socket; likewise.

    Returns:
        the number of the device.

    Raises:
        OSError: ENOENT: the kernel has no NBD client, it is not loaded, or this network namespace
            does not see it; or another one.
    """
    answer = _ask(
        _CONNECT,
        _u64(_SIZE, size)
        + _u64(_BLOCK_SIZE, _BLOCK_BYTES)
        + _u64(_TIMEOUT, timeout_s)
        + _u64(_DEAD_TIMEOUT, dead_timeout_s)
        + _u64(_FLAGS, _HAS_FLAGS | _READ_ONLY)
        + _socket(sock)
        + _name(backend),
    )
    return int(_U32.unpack_from(answer[_INDEX])[0])


def reconnect(index: int, backend: str, sock: int, dead_timeout_s: int) -> None:
    """Give a device whose connection has ended another socket; arguments as those of `connect`.

    Raises:
        OSError: EINVAL: it is not connected, or not that one; or another one.
    """
    timeout = _u64(_DEAD_TIMEOUT, dead_timeout_s)
    _ask(_RECONFIGURE, _u32(_INDEX, index) + _name(backend) + timeout + _socket(sock))


def wait_no_longer(index: int, backend: str) -> None:
    """Have requests fail as soon as the connection has ended.

    Raises:
        OSError: as `reconnect`.
    """
    _ask(_RECONFIGURE, _u32(_INDEX, index) + _name(backend) + _u64(_DEAD_TIMEOUT, 0))


def disconnect_on_close(index: int, backend: str) -> None:
    """Have a device end with the last that has it open, or mounted: somebody must have now.

    Raises:
        OSError: as `reconnect`.
    """
    flags = _u64(_CLIENT_FLAGS, _DISCONNECT_ON_CLOSE)
    _ask(_RECONFIGURE, _u32(_INDEX, index) + _name(backend) + flags)


def disconnect(index: int) -> None:
    """End a device; what is read of it afterwards fails.

    Raises:
        OSError: there is no such device.
    """
    _ask(_DISCONNECT, _u32(_INDEX, index))


def index_of(number: int) -> int:
    """Return the index of the NBD device that has a device number; -1 if there is none."""
    try:
        link = os.readlink(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        return int(os.path.basename(link).removeprefix("nbd"))
    except (OSError, ValueError):
        return -1


def backend_of(index: int) -> str:
    """Return the name that a device was connected with; "" if it is not connected, or has none."""
    try:
        return Path(f"/sys/block/nbd{index}/backend").read_text().removesuffix("\n")
    except OSError:
        return ""


def connected() -> Iterator[tuple[int, str, int]]:
    """Yield index, name and device number of each device that is ours by its name."""
    for path in Path("/sys/block").glob("nbd*"):
        with contextlib.suppress(OSError, ValueError):
            index = int(path.name.removeprefix("nbd"))
            major, minor = map(int, (path / "dev").read_text().split(":"))
            if (backend := backend_of(index)).startswith(BACKEND):
                yield index, backend, os.makedev(major, minor)


# -- messages --------------------------------------------------------------------------------------


def attribute(kind: int, data: bytes) -> bytes:
    """Return one attribute of a message, padded to 4 bytes."""
    length = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes in a message, by kind.

    Raises:
        OSError: EBADMSG.
    """
    found: dict[int, bytes] = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise OSError(errno.EBADMSG, "netlink: an attribute has a wrong length")
        found[kind & 0x3FFF] = data[_ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]
    return found


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))


def _u64(kind: int, value: int) -> bytes:
    return attribute(kind, _U64.pack(value))


def _name(backend: str) -> bytes:
    return attribute(_BACKEND, os.fsencode(backend) + b"\0")


def _socket(sock: int) -> bytes:
    return attribute(_SOCKETS, attribute(_SOCK_ITEM, _u32(_SOCK_FD, sock)))


def message(kind: int, command: int, sequence: int, body: bytes) -> bytes:
    """Return a request of a generic netlink family, which asks for an acknowledgement."""
    length = _HEADER.size + _GENERIC.size + len(body)
    head = _HEADER.pack(length, kind, _REQUEST | _ACK, sequence, 0)
    return head + _GENERIC.pack(command, _VERSION, 0) + body


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield kind, sequence number and payload of each message in a datagram.

    Raises:
        OSError: EBADMSG.
    """
    while len(data) >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        if not _HEADER.size <= length <= len(data):
            raise OSError(errno.EBADMSG, "netlink: a message has a wrong length")
        yield kind, sequence, data[_HEADER.size : length]
        data = data[length + -length % 4 :]


def _ask(command: int, body: bytes) -> dict[int, bytes]:
    """Have the family ``nbd`` do something; return the attributes of its answer, if it has one."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_GENERIC) as link:
        link.settimeout(_TIMEOUT_S)
        link.bind((0, 0))
        return _call(link, _family(link), command, body)


def _family(link: socket.socket) -> int:
    try:
        named = _call(link, _CTRL_FAMILY, _CTRL_GETFAMILY, attribute(_CTRL_NAME, _FAMILY))
    except FileNotFoundError as exc:
        message = "the kernel has no NBD client, or it is not loaded"
        if is_loaded():
            message = "this network namespace does not see the kernel's NBD client"
        raise FileNotFoundError(errno.ENOENT, message) from exc
    return int(_U16.unpack_from(named[_CTRL_ID])[0])


def _call(link: socket.socket, family: int, command: int, body: bytes) -> dict[int, bytes]:
    number = next(_sequence)
    link.sendto(message(family, command, number, body), (0, 0))
    found: dict[int, bytes] = {}
    while True:
        for kind, sequence, payload in messages(link.recv(_MOST_BYTES)):
            if sequence != number:
                continue
            if kind != _NLMSG_ERROR:
                found |= attributes(payload[_GENERIC.size :])
                continue
            error = -_ERROR.unpack_from(payload)[0]
            if error:
                raise OSError(error, f"netlink: {os.strerror(error)}")
            return found
