# SPDX-License-Identifier: Apache-2.0
"""What a service says to systemd, and what it leaves with it.

Owns sd_notify(3) and both directions of the file descriptor store: a descriptor that systemd keeps
is there again when the service is started next, whatever became of its processes. Does nothing when
nobody has asked to be told.

Facts about the descriptor store (systemd.service(5), FileDescriptorStoreMax=):

* What is sent with FDSTORE=1 is kept while the service restarts, by hand or after a crash, and is
  closed when the service is stopped.
* At a start all that is kept comes as descriptors from 3 on, named by LISTEN_FDNAMES; the store
  keeps its own. Sending the same open file again changes nothing.
* FDPOLL=0: else systemd would drop what it cannot poll, or what shows an error.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence

_FIRST_FD = 3  # sd_listen_fds(3)
_PATIENCE_S = 1.0


def listens() -> bool:
    """Return whether a service manager has asked to be told."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(*lines: str, fds: Sequence[int] = ()) -> None:
    """Tell systemd about our state, and give it descriptors, if it asked to be told."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PATIENCE_S)  # whoever listens may have hung
        sock.connect(address)
        socket.send_fds(sock, ["\n".join(lines).encode()], list(fds))


def keep(name: str, fd: int) -> None:
    """Have systemd keep a descriptor under a name, until the service is stopped."""
    notify("FDSTORE=1", "FDPOLL=0", f"FDNAME={name}", fds=[fd])


def kept() -> dict[str, int]:
    """Return the descriptors that systemd has given to this process, by name: once.

    Of several with one name the last is returned, and the others are closed.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, int] = {}
    for number in range(int(count)):
        fd = _FIRST_FD + number
        os.set_inheritable(fd, False)
        name = names[number] if number < len(names) else ""
        if name in found:
            os.close(found[name])
        found[name] = fd
    return found
