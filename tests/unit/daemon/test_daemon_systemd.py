# SPDX-License-Identifier: Apache-2.0
"""Messages to systemd over a real socket, and the descriptors that it returns."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from firstread.daemon import systemd
from firstread.testing.patience import PATIENCE_S


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """The socket that a service manager listens to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.settimeout(5)
    listener.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return listener


def test_a_descriptor_is_given_with_its_name(manager: socket.socket) -> None:
    with manager, open(os.memfd_create("x"), "r+b", buffering=0) as file:
        file.write(b"kept")
        systemd.keep("events", file.fileno())
        data, fds, _, _ = socket.recv_fds(manager, 1000, 5)
        assert data == b"FDSTORE=1\nFDPOLL=0\nFDNAME=events"
        assert os.pread(fds[0], 9, 0) == b"kept"
        os.close(fds[0])


def test_without_a_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not systemd.listens()
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    assert systemd.listens()
    systemd.notify("READY=1")


KEPT = """
import os
from firstread.daemon import systemd
for number, name in ((3, "a"), (4, "b"), (5, "c")):
    fd = os.memfd_create(name)
    os.write(fd, name.encode())
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)
    os.set_inheritable(number, True)
os.environ |= {"LISTEN_FDS": "3", "LISTEN_FDNAMES": <names>, "LISTEN_PID": str(os.getpid() + <add>)}
kept = systemd.kept()
print({name: os.pread(fd, 9, 0).decode() for name, fd in kept.items()}, systemd.kept())
print([name for name in os.environ if name.startswith("LISTEN")])
print(any(os.get_inheritable(fd) for fd in kept.values()))
"""


@pytest.mark.parametrize(
    ("names", "add", "expected"),
    [
        ("group:lock:events", 0, "{'group': 'a', 'lock': 'b', 'events': 'c'}"),
        ("group:group:events", 0, "{'group': 'b', 'events': 'c'}"),
        ("group", 0, "{'group': 'a', '': 'c'}"),
        ("group:lock:events", 1, "{}"),
    ],
    ids=["named", "twice", "unnamed", "for-another-process"],
)
def test_kept_descriptors_come_once(names: str, add: int, expected: str) -> None:
    code = KEPT.replace("<names>", repr(names)).replace("<add>", str(add))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.splitlines() == [f"{expected} {{}}", "[]", "False"]
