# SPDX-License-Identifier: Apache-2.0
"""``firstread snapshotter`` removes a socket that an earlier process has left, and nothing else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from firstread.testing.command import firstread

PLACES = ("--root", "root", "--run-dir", "run")


@pytest.mark.parametrize("option", ["--address", "--image-service"])
def test_the_socket_of_containerd_stays(option: str) -> None:
    with socket.socket(socket.AF_UNIX) as containerd:
        containerd.bind("c.sock")
        ran = firstread("snapshotter", *PLACES, "--containerd", "c.sock", option, "./c.sock")
    assert (ran.code, ran.stdout) == (2, "")
    assert "--address, --containerd and --image-service have to be different sockets" in ran.stderr
    assert Path("c.sock").is_socket()


@pytest.mark.skipif(os.geteuid() != 0, reason="anybody else's directory may be replaced")
def test_a_file_that_is_no_socket_stays() -> None:
    Path("notes").write_text("mine")
    ran = firstread("snapshotter", *PLACES, "--address", "s.sock", "--image-service", "notes")
    assert ran.code == 5
    assert "notes is there, and is no socket" in ran.stderr
    assert Path("notes").read_text() == "mine"
