# SPDX-License-Identifier: Apache-2.0
"""A service manager for one daemon: what systemd does for a service with a descriptor store.

Owns the socket that the service talks to, and the descriptors that it leaves here. Behaves as
systemd.service(5) says of FileDescriptorStoreMax=: what is kept comes back at each start, named;
the same open file is kept once; a service that is stopped loses all of it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

from firstread.testing.patience import PATIENCE_S

_LAUNCH = """
import fcntl, os, sys
fds, names, command = sys.argv[1].split(), sys.argv[2], sys.argv[3:]
moved = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds]  # above where they go
for number, fd in enumerate(moved, 3):
    os.dup2(fd, number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names}
os.closerange(3 + len(fds), 1000)
os.execv(command[0], command)
"""


class ServiceManager:
    """A context manager.

    Args:
        directory: for its socket.
    """

    def __init__(self, directory: Path) -> None:
        self.messages: list[dict[str, str]] = []
        self.kept: list[tuple[str, int]] = []
        self._path = directory / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._path))
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"END=1", str(self._path))
        self._thread.join(timeout=PATIENCE_S)
        self._socket.close()
        self.drop()

    def environment(self) -> dict[str, str]:
        """Return the environment of the service."""
        return os.environ | {"NOTIFY_SOCKET": str(self._path)}

    def start(self, command: list[str], log: int) -> subprocess.Popen[bytes]:
        """Start the service with what is kept."""
        with self._lock:
            kept = list(self.kept)
        fds = [os.dup(fd) for _, fd in kept]
        launch = [sys.executable, "-c", _LAUNCH, " ".join(map(str, fds))]
        names = ":".join(name for name, _ in kept)
        try:
            return subprocess.Popen(
                [*launch, names, *command],
                pass_fds=fds,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        finally:
            for fd in fds:
                os.close(fd)

    def drop(self) -> None:
        """Close what is kept, as when a service is stopped."""
        with self._lock:
            for _, fd in self.kept:
                os.close(fd)
            self.kept = []

    def _listen(self) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(self._socket, 65536, 253)
            message = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "END" in message:
                return
            self.messages.append(message)
            with self._lock:
                if message.get("FDSTOREREMOVE") == "1":
                    gone = [pair for pair in self.kept if pair[0] == message["FDNAME"]]
                    self.kept = [pair for pair in self.kept if pair not in gone]
                    fds += [fd for _, fd in gone]
                elif message.get("FDSTORE") == "1":
                    self._keep(message["FDNAME"], fds)
            for fd in fds:
                os.close(fd)

    def _keep(self, name: str, fds: list[int]) -> None:
        for fd in list(fds):
            if not any(_is_same_file(fd, other) for _, other in self.kept):
                self.kept.append((name, fd))
                fds.remove(fd)


def _is_same_file(one: int, other: int) -> bool:
    """Return whether two descriptors are of one open file: a flag of the one is the other's too."""
    # kcmp(2) would say it at once, but not every kernel has it.
    before = os.get_blocking(other)
    os.set_blocking(one, not os.get_blocking(one))
    same = os.get_blocking(other) != before
    os.set_blocking(one, not os.get_blocking(one))
    return same
