# SPDX-License-Identifier: Apache-2.0
"""A kubelet's node for each test, in a mount namespace of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kubelet.kubelet import version
from tests.privileged.conftest import app_registry, own_cache, own_mount_namespace

from firstread.run.overlay import unmount_below
from firstread.testing.containerdconfig import containerd_version
from firstread.testing.containers import find_busybox
from firstread.testing.patience import PATIENCE_S

__all__ = ["app_registry", "own_cache", "own_mount_namespace"]

# Where every kubelet keeps the sockets of device plugins, and links to the logs of containers.
_FIXED = (Path("/var/lib/kubelet"), Path("/var/log/containers"))


@pytest.fixture(scope="session", autouse=True)
def own_directories(own_mount_namespace: None) -> Iterator[None]:
    """Keep a kubelet of this machine out of it; say why nothing can run."""
    needed = {"root": os.geteuid() == 0, "busybox-static": find_busybox(), "a kubelet": version()}
    needed["containerd 2.1"] = shutil.which("containerd") and containerd_version() >= (2, 1)
    if missing := [name for name, there in needed.items() if not there]:
        pytest.skip(f"it needs {', '.join(missing)} in PATH")
    for path in _FIXED:
        path.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True, timeout=PATIENCE_S)
    yield
    for path in _FIXED:
        subprocess.run(["umount", "--lazy", path], check=True, timeout=PATIENCE_S)
        with contextlib.suppress(OSError):  # of a kubelet of this machine
            path.rmdir()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="frk-"))
    yield path
    unmount_below(path)  # a kubelet mounts its directory on itself
    shutil.rmtree(path)
