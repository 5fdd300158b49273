# SPDX-License-Identifier: Apache-2.0
"""Sockets that are ours alone; tests/privileged/test_node_private.py has the directories."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from firstread.private import bind_private, is_ours
from firstread.testing.patience import PATIENCE_S

ASK = """
import os, socket, sys
peer = socket.socket(socket.AF_UNIX)
if len(sys.argv) > 2:
    os.setuid(int(sys.argv[2]))
peer.connect(sys.argv[1])
peer.recv(1)
"""


def asked_by(path: Path, *user: str) -> bool:
    """Have a process connect to a socket at `path`; return whether it counts as ours."""
    with socket.socket(socket.AF_UNIX) as listener:
        bind_private(listener, path)
        path.chmod(0o777)
        listener.listen(1)
        listener.settimeout(20)
        peer = subprocess.Popen([sys.executable, "-c", ASK, str(path), *user])
        try:
            connection, _ = listener.accept()
            with connection:
                return is_ours(connection)
        finally:
            peer.wait(timeout=PATIENCE_S)


def test_it_is_private_from_the_first_moment(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            bind_private(listener, tmp_path / "s")
            assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)


def test_the_mask_is_restored_when_it_fails(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError):
            bind_private(listener, tmp_path / "none" / "s")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(mask)


def test_this_user_is_ours(tmp_path: Path) -> None:
    assert asked_by(tmp_path / "s")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_another_user_is_not_whatever_the_mode() -> None:
    with tempfile.TemporaryDirectory() as place:  # no directory above it is of this user alone
        Path(place).chmod(0o755)
        assert not asked_by(Path(place, "s"), "65534")
