# SPDX-License-Identifier: Apache-2.0
"""Users and groups by name and number, from files that an attacker wrote."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstread.errors import UsageError
from firstread.run.users import User, find_user, open_in_root, read_in_root, resolve_user

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
broken line
app:x:1000:1001:App:/home/app:/bin/sh
2000:x:3000:3001::/number:/bin/sh
short:x:7
bad:x:99999999999:1::/bad:
"""
GROUP = b"""root:x:0:
app:x:1001:
staff:x:50:other,app
audio:x:29:app
88:x:0:
"""


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", User(0, 0, (0,), "/root")),
        ("root", User(0, 0, (0,), "/root")),
        ("app", User(1000, 1001, (1001, 50, 29), "/home/app")),
        ("1000", User(1000, 1001, (1001, 50, 29), "/home/app")),
        ("app:staff", User(1000, 50, (50,), "/home/app")),
        ("app:50", User(1000, 50, (50,), "/home/app")),
        ("1234", User(1234, 0, (0,), "/")),
        ("1234:77", User(1234, 77, (77,), "/")),
        ("2000", User(2000, 0, (0,), "/")),
        ("3000", User(3000, 3001, (3001,), "/number")),
        ("1234:88", User(1234, 88, (88,), "/")),
        ("short", User(7, 0, (0,), "/")),
        (":staff", User(0, 50, (50,), "/root")),
    ],
)
def test_rules(spec: str, expected: User) -> None:
    assert find_user(spec, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nobody", "unable to find user nobody: no matching entries in passwd file"),
        ("app:none", "unable to find group none: no matching entries in group file"),
        ("bad", "unable to find user bad: no matching entries in passwd file"),
        ("2147483648", "uids and gids must be in range 0-2147483647: 2147483648"),
        ("-1", "uids and gids must be in range 0-2147483647: -1"),
        ("99999999999999", "uids and gids must be in range 0-2147483647: 99999999999999"),
    ],
)
def test_refused(spec: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_user(spec, PASSWD, GROUP)
    assert caught.value.message == words


@given(passwd=st.binary(max_size=200), group=st.binary(max_size=200), spec=st.text(max_size=12))
def test_any_bytes_give_numbers_or_a_usage_error(passwd: bytes, group: bytes, spec: str) -> None:
    try:
        user = find_user(spec, passwd, group)
    except UsageError:
        return
    assert all(0 <= number < 2**31 for number in (user.uid, user.gid, *user.groups))
    user.home.encode()


def test_links_stay_in_the_image(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "real").write_text("app:x:5:6::/a:")
    (tmp_path / "secret").write_text("app:x:0:0::/s:")
    (root / "etc/passwd").symlink_to("/real")
    assert resolve_user("app", root).uid == 5
    for target in ("../../secret", str(tmp_path / "secret"), "/proc/self/root/etc/passwd"):
        (root / "etc/passwd").unlink()
        (root / "etc/passwd").symlink_to(target)
        assert read_in_root(root, "/etc/passwd") == b""


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    os.mkfifo(tmp_path / "etc/group")
    assert resolve_user("12:13", tmp_path) == User(12, 13, (13,), "/")


def test_files_are_read_up_to_a_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 5000)
    assert len(read_in_root(tmp_path, "file", limit_bytes=4096)) == 4096


def test_open_in_root_raises_the_errno(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_in_root(tmp_path, "/none", os.O_PATH)
