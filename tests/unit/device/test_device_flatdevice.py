# SPDX-License-Identifier: Apache-2.0
"""What a flat device does beside an unmount that does not return."""

from __future__ import annotations

import errno
import os
import threading
from types import SimpleNamespace
from typing import cast

import pytest

from firstread.device import flatdevice
from firstread.device.flatdevice import FlatDevice
from firstread.mountinfo import MountLine


def test_a_shortage_beside_an_unmount_ends_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the thread the fetcher would end."""
    done, looks, denied = threading.Event(), list[int](), list[int]()
    number = os.makedev(7, 1)

    def look() -> list[MountLine]:
        looks.append(number)
        if len(looks) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        done.set()
        return []

    monkeypatch.setattr(flatdevice, "read_mountinfo", look)
    monkeypatch.setattr(flatdevice, "GRACE_S", 0.001)
    device = SimpleNamespace(
        _lock=threading.Lock(),
        _pairs={"connection": (number, None)},
        _waiting={5: ("connection", None), 6: ("other", None)},
        answer=lambda read, *, allow: denied.append(read if not allow else -1),
    )
    FlatDevice._deny_left(cast(FlatDevice, device), number, done)
    assert len(looks) == 2
    assert denied == [5]
