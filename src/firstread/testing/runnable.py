# SPDX-License-Identifier: Apache-2.0
"""A real registry with images to run: converted ones, and one that is not.

Owns what is in them. Invariant: which file lies in which sector is known: each of `DATA_FILES` is a
sector of its own, so what a container reads says what has to be fetched.
"""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from firstread.testing.command import firstread
from firstread.testing.containers import make_rootfs
from firstread.testing.images import Image, Layer, write_layout
from firstread.testing.patience import PATIENCE_S
from firstread.testing.registry import DockerRegistry
from firstread.units import MiB

DATA_FILES = 6
CONFIG = {
    "Env": ["PATH=/bin", "FROM=image"],
    "User": "app",
    "WorkingDir": "/srv/empty",
    "Entrypoint": ["sh", "-c"],
    "Cmd": ["echo from the image"],
    "StopSignal": "SIGQUIT",
}

PAUSE = {
    "Env": ["PATH=/bin"],
    "Entrypoint": ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 3600 & wait; done"],
}


def data_file(number: int) -> bytes:
    """Return what is in ``/data/NUMBER`` of the image ``app``."""
    return random.Random(number).randbytes(4 * MiB)


def runnable_image(scratch: Path, busybox: str) -> Image:
    """Return an image with busybox, two users, and some files that fill a sector each.

    Args:
        scratch: an empty directory.
        busybox: of `find_busybox`.
    """
    rootfs = make_rootfs(scratch, busybox)
    (rootfs / "data").mkdir()
    for number in range(DATA_FILES):
        (rootfs / f"data/{number}").write_bytes(data_file(number))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(rootfs, arcname=".")
    return Image([Layer(archive.getvalue(), "none")], CONFIG)


def pause_image(scratch: Path, busybox: str) -> Image:
    """Return an image for the sandboxes of pods: it waits to be ended.

    Args:
        scratch: an empty directory.
        busybox: of `find_busybox`.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(make_rootfs(scratch, busybox), arcname=".")
    return Image([Layer(archive.getvalue(), "gzip")], PAUSE)


def push_pause(registry: DockerRegistry, busybox: str, name: str = "pause:1") -> str:
    """Put the image for sandboxes into a registry; return what it is called there."""
    target = f"{registry.host}/{name}"
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "rootfs").mkdir()
        image = pause_image(Path(scratch) / "rootfs", busybox)
        write_layout(image, Path(scratch) / "layout")
        options = ("-q", "--dest-tls-verify=false")
        copy = ("skopeo", "copy", *options, f"oci:{scratch}/layout:latest", f"docker://{target}")
        subprocess.run(copy, check=True, timeout=PATIENCE_S)
    return target


@contextlib.contextmanager
def runnable_registry(
    scratch: Path, busybox: str, layouts: Mapping[str, Path], storage: Path | None = None
) -> Iterator[DockerRegistry]:
    """Run a registry with ``app``, the same as ``ordinary``, not converted, and all of `layouts`.

    Args:
        scratch: an existing directory.
        busybox: of `find_busybox`.
        layouts: name to OCI layout; each is converted.
        storage: directory of its data, which stays; None for a temporary one.
    """
    layout = scratch / "layout"
    write_layout(runnable_image(scratch / "rootfs", busybox), layout)
    with DockerRegistry(storage=storage) as registry:
        for name, source in {"app": layout, **layouts}.items():
            ran = firstread(
                "convert", "--no-hot", f"oci:{source}:latest", f"{registry.host}/{name}"
            )
            assert ran.code == 0, ran
        to = f"docker://{registry.host}/ordinary:latest"
        copy = ("skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", to)
        subprocess.run(copy, check=True)
        yield registry
