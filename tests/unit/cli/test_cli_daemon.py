# SPDX-License-Identifier: Apache-2.0
"""What ``firstread daemon --stop`` says of the mounts that it leaves behind."""

from __future__ import annotations

import pytest

from firstread.cli.daemon import fate
from firstread.config import DEVICES


def said(device: str, mounts: int = 1, **configuration: float) -> str:
    return fate(
        {"mounts": [{}] * mounts, "device": {"name": device}, "configuration": configuration}
    )


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("fanotify", "; 1 mount stays: start another before anybody reads absent data"),
        ("loop", "; 1 mount stays: reads fail until another starts"),
        ("nbd", "; 1 mount stays: reads fail until another starts"),
        ("flat", "; 1 mount is lost: unmount it, or mount the image again"),
        ("mixed", "; 1 mount is lost: unmount it, or mount the image again"),
        ("fuse", "; 1 mount is lost: unmount it, or mount the image again"),
    ],
)
def test_it_depends_on_the_device(device: str, words: str) -> None:
    assert said(device) == words


def test_a_daemon_may_let_reads_wait() -> None:
    for device in DEVICES:
        words = "; 2 mounts stay: reads wait for another daemon for 300 s"
        assert said(device, 2, waits_s=300.0) == words


def test_nothing_is_said_of_no_mounts() -> None:
    assert said("fuse", 0) == ""
    assert fate({}) == ""
