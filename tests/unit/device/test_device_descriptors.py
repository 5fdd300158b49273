# SPDX-License-Identifier: Apache-2.0
"""Which descriptors an anchor keeps for the next daemon, and which it must close."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from firstread.device.descriptors import is_connection


def test_a_socket_without_names_is_kept_also_when_its_other_end_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            assert is_connection(ours.fileno())
        assert is_connection(ours.fileno())


def test_a_command_that_waits_for_an_answer_is_not_kept(tmp_path: Path) -> None:
    """It would never hear that the daemon is dead."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as command:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        command.connect(str(tmp_path / "control"))
        accepted, _ = listener.accept()
        with accepted:
            held = [fd.fileno() for fd in (listener, command, accepted)]
            assert not any(map(is_connection, held))


def test_other_sockets_and_files_are_no_connections(tmp_path: Path) -> None:
    channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, other, socket.socket() as network, (tmp_path / "file").open("wb") as file:
        held = [each.fileno() for each in (channel, network, file)]
        assert not any(map(is_connection, held))
    assert not is_connection(held[0])  # it is closed
    source, sink = os.pipe()
    assert not is_connection(source)
    os.close(source)
    os.close(sink)
