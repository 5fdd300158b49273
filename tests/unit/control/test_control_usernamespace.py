# SPDX-License-Identifier: Apache-2.0
"""The ids of a user namespace, and what a user hears who gets none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from firstread.control import usernamespace
from firstread.control.usernamespace import mapping, refusal, subordinate_ids

SUBUID = """\
# comment
alice:100000:65536
bob:200000:65536
1000:300000:10
alice:400000:0
alice:minus:5
alice
"""


def test_subordinate_ids_go_by_name_and_by_number() -> None:
    assert subordinate_ids(SUBUID, ["1000", "alice"]) == [(100000, 65536), (300000, 10)]
    assert subordinate_ids(SUBUID, ["1001", "carol"]) == []


def test_ranges_are_bounded() -> None:
    assert len(subordinate_ids("alice:1:1\n" * 1000, ["alice"])) == 64


def test_the_user_is_root_and_ranges_follow_one_another() -> None:
    assert mapping(1000, [(100000, 65536), (300000, 10)]) == [
        *(0, 1000, 1),
        *(1, 100000, 65536),
        *(65537, 300000, 10),
    ]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "raise sysctl user.max_user_namespaces"),
        (errno.EPERM, "an administrator can allow it"),
        (errno.EINVAL, "CONFIG_USER_NS"),
    ],
)
def test_a_refusal_says_what_helps(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usernamespace, "_SWITCHES", {})
    error = refusal(OSError(number, os.strerror(number)))
    assert "this host gives none" in error.message
    assert words in (error.hint or "")


def test_a_refusal_names_the_setting_that_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "off").write_text("0\n")
    monkeypatch.setattr(usernamespace, "_SWITCHES", {f"{tmp_path}/on": "0", f"{tmp_path}/off": "0"})
    hint = refusal(OSError(errno.EPERM, "no")).hint or ""
    assert hint.startswith("it is off by sysctl ")
    assert "off: an administrator can allow it" in hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_needs_no_namespace(tmp_path: Path) -> None:
    usernamespace.enter(tmp_path / "root", tmp_path / "run")
    assert not usernamespace.join(tmp_path / "run")
    assert not (tmp_path / "run").exists()
