# SPDX-License-Identifier: Apache-2.0
"""Mounts that have left their place."""

from __future__ import annotations

import threading
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
