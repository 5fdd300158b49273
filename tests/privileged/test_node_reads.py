# SPDX-License-Identifier: Apache-2.0
"""Every way to read a cold file gets the right bytes with one fetch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.testing.command import firstread
from firstread.testing.daemon import Daemon
from firstread.testing.entries import File
from firstread.testing.images import Image, Layer, write_layout
from firstread.testing.lazymount import output
from firstread.testing.plainimage import PlainImage, put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB

pytestmark = pytest.mark.privileged

SECTOR = 256 * KiB
EINVAL = "errno 22"


@pytest.fixture(scope="module")
def registry() -> Iterator[DockerRegistry]:
    with DockerRegistry() as running:
        yield running


@pytest.fixture(scope="module")
def image(registry: DockerRegistry) -> tuple[str, PlainImage]:
    reference = f"{registry.host}/lazy/plain:1"
    return reference, put_plain_image(f"docker://{reference}")


@pytest.mark.parametrize("how", ["read", "random", "mmap", "sendfile"])
def test_a_cold_file(daemon: Daemon, image: tuple[str, PlainImage], how: str) -> None:
    place = daemon.mount(image[0])
    for number, (offset, count) in enumerate([(0, SECTOR), (SECTOR - 100, 100), (77_777, 99_999)]):
        reader = daemon.reading(place / f"f{number}", offset, count, how)
        assert output(reader) == image[1].summary(number, offset, count)
    assert daemon.mounted(place)["failed_reads"] == 0


def test_sixty_four_readers_of_one_cold_sector_make_one_request(
    daemon: Daemon, image: tuple[str, PlainImage], registry: DockerRegistry
) -> None:
    place = daemon.mount(image[0])
    registry.forget()
    parts = [(number * (SECTOR // 64), 4096) for number in range(64)]
    readers = [daemon.reading(place / "f6", offset, count, "random") for offset, count in parts]
    for reader, (offset, count) in zip(readers, parts, strict=True):
        assert output(reader) == image[1].summary(6, offset, count)
    assert registry.counts.requests_of("/blobs/") == 1
    status = daemon.mounted(place)
    assert (status["events"], status["present"], status["requests"]) == (1, 1, 1)


def test_o_direct_is_refused_as_the_kernel_does_for_a_file_backed_mount(
    daemon: Daemon, image: tuple[str, PlainImage]
) -> None:
    place = daemon.mount(image[0])
    assert output(daemon.reading(place / "f0", how="direct")) == EINVAL
    assert daemon.mounted(place)["waited_reads"] == 0


def test_programs_run_and_libraries_are_loaded(daemon: Daemon, tmp_path: Path) -> None:
    """The image's own interpreter runs, so that the mount also serves its loader."""
    program = Path(shutil.which("true") or "/bin/true").resolve()
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    libraries = {Path(word).resolve() for word in listed.split() if word.startswith("/")}
    loader = next(path for path in libraries if path.name.startswith("ld-"))
    libc = next(path for path in libraries if path.name.startswith("libc"))
    files = [
        File("true", program.read_bytes(), mode=0o4755),
        File("loader", loader.read_bytes(), mode=0o755),
        File("lib/libc.so.6", libc.read_bytes(), mode=0o755),
    ]
    write_layout(Image([Layer(files)]), tmp_path / "layout")
    source, reference = f"oci:{tmp_path}/layout:latest", f"oci:{tmp_path}/lazy:latest"
    assert firstread("convert", source, reference).code == 0

    place = daemon.mount(reference)
    command = [str(place / "loader"), "--library-path", str(place / "lib"), str(place / "true")]
    # A shell starts it: Popen itself waits for the exec, and must not wait for this test's mount.
    assert subprocess.run(["sh", "-c", '"$@"', "sh", *command], check=False).returncode == 0
    load = f"import ctypes; print(ctypes.CDLL({str(place / 'lib/libc.so.6')!r}).getpid() > 0)"
    loaded = subprocess.run([sys.executable, "-c", load], capture_output=True, check=True)
    assert loaded.stdout == b"True\n"
    assert daemon.mounted(place)["failed_reads"] == 0
