# SPDX-License-Identifier: Apache-2.0
"""Images that these tests share."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.images.build import build, default_cache

from firstread.testing.command import firstread
from firstread.testing.containers import find_busybox
from firstread.testing.daemon import Daemon
from firstread.testing.images import feature_image, write_layout
from firstread.testing.machine import Machine
from firstread.testing.once import made_once
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.testing.runnable import push_pause, runnable_registry
from firstread.units import KiB

_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | 0x40000


@pytest.fixture(scope="session", autouse=True)
def own_mount_namespace() -> None:
    """Hide the mounts of this process from other tests.

    Each new mount namespace, such as a container's, has a copy of every mount of the namespace that
    it comes from. A copy outlives umount, and a daemon serves an image for as long as one stands.
    """
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.unshare(_CLONE_NEWNS) or libc.mount(None, b"/", None, _MS_REC_PRIVATE, None)
        assert not failed, os.strerror(ctypes.get_errno())


@pytest.fixture(scope="session")
def debian() -> Path:
    """The OCI layout of the real image ``debian``: built, or taken from the cache. Read only."""
    (layout,) = build(["debian"], default_cache())
    return layout


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OCI layout of the image with every feature. Read only."""

    def make(place: Path) -> None:
        write_layout(feature_image(), place / "layout")

    return made_once(tmp_path_factory.getbasetemp(), "features", make) / "layout"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the records of packed layers out of the developer's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIRSTREAD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def app_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    """A registry with ``app`` converted, ``ordinary`` the same not converted, and ``pause``."""
    if not (busybox := find_busybox()):
        pytest.skip("needs busybox-static")

    def make(place: Path) -> None:
        with runnable_registry(place, busybox, {}, storage=place / "storage") as registry:
            push_pause(registry, busybox)

    made = made_once(tmp_path_factory.getbasetemp(), "app", make) / "storage"
    storage = shutil.copytree(made, tmp_path_factory.mktemp("registry") / "storage")
    with DockerRegistry(storage=storage) as registry:
        yield registry


# For tests of the node.


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="frc-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon for one test, with the device that is its parameter, if there is one."""
    device = getattr(request, "param", "")
    with Daemon(tmp_path, *(("--device", device) if device else ())) as running:
        yield running


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for tests that leave it as it was, and to which its past does not matter."""
    with Daemon(tmp_path_factory.mktemp("standing")) as running:
        yield running


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, PlainImage]:
    """A converted image with one sector per file, in an OCI layout, and its content."""
    reference = f"oci:{tmp_path_factory.mktemp('plain')}/layout:latest"
    return reference, put_plain_image(reference, first=100)


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, PlainImage]:
    """An image of 400 small sectors, one per file, so that there is always one in flight."""
    reference = f"oci:{tmp_path_factory.mktemp('many')}/layout:latest"
    return reference, put_plain_image(
        reference, count=400, sector_bytes=64 * KiB, frame_bytes=4 * KiB
    )


@pytest.fixture(scope="session")
def lazy_debian(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image ``debian``, converted, in an OCI layout."""
    return _converted(debian, tmp_path_factory, "lazy-debian")


@pytest.fixture(scope="session")
def lazy_features(features: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image with every feature, converted, in an OCI layout."""
    return _converted(features, tmp_path_factory, "lazy-features")


def _converted(layout: Path, tmp_path_factory: pytest.TempPathFactory, name: str) -> str:
    def make(place: Path) -> None:
        ran = firstread("convert", "--no-hot", f"oci:{layout}:latest", f"oci:{place}/layout:latest")
        assert ran.code == 0, ran

    made = made_once(tmp_path_factory.getbasetemp(), name, make)
    return f"oci:{made}/layout:latest"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A node with its own daemon, on which containers run."""
    if os.geteuid() or not find_busybox():
        pytest.skip("needs root and busybox-static")
    with Machine(tmp_path_factory.mktemp("machine")) as machine:
        yield machine
