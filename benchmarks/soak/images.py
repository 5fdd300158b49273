# SPDX-License-Identifier: Apache-2.0
"""The images of a soak, and their files' digests, which firstread does not compute.

A real image, the image with every feature, and one whose files are a sector each, for the
undisturbed mount. Sectors are small, so that there is always one in flight.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images.build import build
from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.record import Parameters
from firstread.oci.reference import parse_reference
from firstread.testing.images import feature_image, feature_tree, write_layout
from firstread.testing.plainimage import put_plain_image
from firstread.testing.registry import DockerRegistry
from firstread.units import KiB

SECTOR_BYTES, FRAME_BYTES = 256 * KiB, 64 * KiB
PLAIN_COUNT, PLAIN_BYTES = 400, 64 * KiB

Files = dict[bytes, tuple[int, str]]
"""Path to size and SHA-256 of each regular file."""


@dataclass(frozen=True)
class SoakImage:
    """An image in a registry.

    Args:
        name: repository and tag, without the host.
        expected: where its `Files` are, pickled.
        files: their number.
        size: of their content, in bytes.
    """

    name: str
    expected: Path
    files: int
    size: int


def publish_real(registry: DockerRegistry, image: str, folder: Path) -> SoakImage:
    """Convert one of the single-layer images of `benchmarks.images`."""
    (layout,) = build([image])
    _convert(f"oci:{layout}:latest", f"{registry.host}/soak/{image}:1")
    return _record(f"soak/{image}:1", files_of_layer(layout), folder / image)


def publish_features(registry: DockerRegistry, folder: Path) -> SoakImage:
    """Convert the image with every feature."""
    with tempfile.TemporaryDirectory() as scratch:
        write_layout(feature_image(), Path(scratch))
        _convert(f"oci:{scratch}:latest", f"{registry.host}/soak/features:1")
    tree = feature_tree()
    files = {path: (entry.size, entry.sha256) for path, entry in tree.items() if entry.sha256}
    return _record("soak/features:1", files, folder / "features")


def publish_plain(registry: DockerRegistry, folder: Path) -> SoakImage:
    """Convert an image of files that are one sector each."""
    image = put_plain_image(
        f"docker://{registry.host}/soak/plain:1",
        count=PLAIN_COUNT,
        sector_bytes=PLAIN_BYTES,
        frame_bytes=16 * KiB,
    )
    files = {
        f"f{number}".encode(): (len(content), hashlib.sha256(content).hexdigest())
        for number, content in enumerate(image.contents)
    }
    return _record("soak/plain:1", files, folder / "plain")


def publish_attacked(registry: DockerRegistry, count: int) -> str:
    """Convert an image that shares no sector with another; return its name without the host."""
    name = "soak/attacked:1"
    put_plain_image(
        f"docker://{registry.host}/{name}",
        count=count,
        first=PLAIN_COUNT,
        sector_bytes=PLAIN_BYTES,
        frame_bytes=16 * KiB,
    )
    return name


def files_of_layer(layout: Path) -> Files:
    """Return the content that Python's tarfile finds in the only layer of an OCI layout."""
    blobs = sorted((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    files: Files = {}
    with tarfile.open(blobs[-1], "r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix("./").encode("utf-8", "surrogateescape")
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                files[name] = (member.size, hashlib.sha256(content.read()).hexdigest())
            elif member.islnk():
                target = member.linkname.removeprefix("./").encode("utf-8", "surrogateescape")
                files[name] = files[target]
    return files


def _convert(source: str, target: str) -> None:
    options = ConvertOptions(parameters=Parameters(SECTOR_BYTES, FRAME_BYTES))
    convert(parse_reference(source), parse_reference(f"docker://{target}"), options)


def _record(name: str, files: Files, path: Path) -> SoakImage:
    path.write_bytes(pickle.dumps(files))
    return SoakImage(name, path, len(files), sum(size for size, _ in files.values()))
