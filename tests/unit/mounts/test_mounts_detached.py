# SPDX-License-Identifier: Apache-2.0
"""Mounts that have left their place."""

from __future__ import annotations

import threading
import weakref
from typing import cast

import pytest

from firstread.fetch.served import Served
from firstread.mounts import detached
from firstread.mounts.detached import DetachedMounts
from firstread.mounts.table import Mount
from firstread.testing.patience import PATIENCE_S

DIGEST = "sha256:" + "0" * 64


def test_their_end_is_seen_though_no_thread_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory can be short when the first of them comes, which would then be served for ever."""
    monkeypatch.setattr(detached, "SWEEP_S", 0.01)
    ended, done = list[str](), threading.Event()

    def on_end(mount: Mount, _: Served) -> None:
        ended.append(mount.mountpoint)
        done.set()

    mounts = DetachedMounts(threading.RLock(), on_end)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for name in ("/mnt/a", "/mnt/b"):  # nobody uses them: they have no file system
        mounts.add(Mount(name, "oci:/x:1", DIGEST), cast(Served, None))
        assert done.wait(PATIENCE_S)
        done.clear()
    assert ended == ["/mnt/a", "/mnt/b"]
    assert not list(mounts)


def test_the_image_of_the_last_one_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has no room for what is removed while somebody has it open."""
    monkeypatch.setattr(detached, "SWEEP_S", 0.01)
    mounts, gone = DetachedMounts(threading.RLock(), lambda *_: None), threading.Event()
    image = threading.Event()  # anything that can be observed
    weakref.finalize(image, gone.set)
    mounts.add(Mount("/mnt/a", "oci:/x:1", DIGEST), cast(Served, image))
    del image
    assert gone.wait(PATIENCE_S)
