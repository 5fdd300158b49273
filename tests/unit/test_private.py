# SPDX-License-Identifier: Apache-2.0
"""Sockets that are ours alone, and ways that nobody else can change.

tests/privileged/test_node_private.py has the directories.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from firstread.errors import NodeError
from firstread.private import bind_private, is_ours, private_directory
from firstread.testing.command import firstread
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


STRANGER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give directories away")


def given(path: Path) -> Path:
    """Give a directory or a symbolic link to another user."""
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    return path


def made(path: Path, mode: int = 0o755) -> Path:
    path.mkdir()
    path.chmod(mode)
    return path


def linked(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path


def direct(top: Path) -> Path:
    return given(made(top / "other"))


def sticky(top: Path) -> Path:
    """A link of another user, where everybody may make one: its target is ours, but for now."""
    return given(linked(made(top / "sticky", 0o1777) / "link", str(top / "good")))


def in_two_steps(top: Path) -> Path:
    linked(given(made(top / "other")) / "second", str(top / "good"))
    return linked(top / "first", f"{top}/other/second")


def and_back(top: Path) -> Path:
    given(made(top / "other"))
    return linked(top / "link", "other/../good")


def with_list(top: Path) -> Path:
    """One of root's group, but with an access control list: user 65534 may write to it."""
    place = made(top / "list", 0o775)
    entries = ((0x01, 7, -1), (0x02, 7, STRANGER), (0x04, 5, -1), (0x10, 7, -1), (0x20, 5, -1))
    content = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(place, "system.posix_acl_access", content)
    return place


@needs_root
@pytest.mark.parametrize("way", [direct, sticky, in_two_steps, and_back, with_list])
def test_a_way_that_another_user_can_change(tmp_path: Path, way: Callable[[Path], Path]) -> None:
    made(tmp_path / "good")
    place = way(tmp_path) / "root"
    with pytest.raises(NodeError, match=f"could replace {place}|and replace {place}"):
        private_directory(place)
    assert not place.exists()


@needs_root
def test_a_command_follows_no_link_that_another_user_can_change(tmp_path: Path) -> None:
    made(tmp_path / "good")
    link = sticky(tmp_path)
    for places in (("--root", link), ("--run-dir", link / "run")):
        ran = firstread("ps", *places)
        assert (ran.code, ran.stdout) == (5, "")
        assert f"user {STRANGER}, the owner of {link}, could replace" in ran.stderr


def test_a_file_system_without_attributes_has_no_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_: Path) -> list[str]:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "listxattr", unsupported)
    private_directory(tmp_path / "root")
    assert (tmp_path / "root").is_dir()


def test_ways_of_ours(tmp_path: Path) -> None:
    good = made(tmp_path / "good")
    absolute = linked(tmp_path / "absolute", f"{tmp_path}//./good/../good/")
    relative = linked(made(tmp_path / "sticky", 0o1777) / "relative", "../absolute")
    for place in (good, absolute, relative, tmp_path / "sticky"):
        private_directory(place / "root")
        assert (place / "root").is_dir()


@pytest.mark.parametrize(
    ("name", "mode"),
    [("somebody's", 0o755), ("format.json", 0o700), ("lost+found", 0o700), ("start.lock", 0o700)],
)
def test_a_directory_of_another_purpose_stays_as_it_is(
    tmp_path: Path, name: str, mode: int
) -> None:
    place = made(tmp_path / "srv")
    (place / name).touch()
    with nullcontext() if mode == 0o700 else pytest.raises(NodeError, match="is not firstread's"):
        private_directory(place)
    assert place.stat().st_mode & 0o777 == mode


def test_a_store_is_private_if_its_run_directory_is_made_first(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        private_directory(tmp_path / "home" / "store" / "run")
        private_directory(tmp_path / "home" / "store")
    finally:
        os.umask(mask)
    assert (tmp_path / "home" / "store").stat().st_mode & 0o777 == 0o700


def test_a_way_in_circles(tmp_path: Path) -> None:
    link = linked(tmp_path / "link", "link")
    with pytest.raises(NodeError, match="too many symbolic links"):
        private_directory(link / "root")
