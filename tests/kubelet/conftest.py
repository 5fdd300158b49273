# SPDX-License-Identifier: Apache-2.0
"""A kubelet's node for each test, in a mount namespace of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kubelet.kubelet import version
from tests.privileged.conftest import app_registry, own_cache, own_mount_namespace

from firstread.testing.containerdconfig import containerd_version
from firstread.testing.containers import find_busybox
from firstread.testing.patience import PATIENCE_S

__all__ = ["app_registry", "own_cache", "own_mount_namespace"]

_DEVICES = Path("/var/lib/kubelet")  # where every kubelet keeps the sockets of device plugins


@pytest.fixture(scope="session", autouse=True)
def own_devices(own_mount_namespace: None) -> Iterator[None]:
    """Keep a kubelet of this machine out of it; say why nothing can run."""
    needed = {"root": os.geteuid() == 0, "busybox-static": find_busybox(), "a kubelet": version()}
    needed["containerd 2.1"] = shutil.which("containerd") and containerd_version() >= (2, 1)
    if missing := [name for name, there in needed.items() if not there]:
        pytest.skip(f"it needs {', '.join(missing)} in PATH")
    _DEVICES.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", _DEVICES], check=True, timeout=PATIENCE_S)
    yield
    subprocess.run(["umount", "--lazy", _DEVICES], check=True, timeout=PATIENCE_S)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="frk-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
