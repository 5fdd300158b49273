# SPDX-License-Identifier: Apache-2.0
"""A converted image of files that are one sector each, for tests of what fetches sectors.

Invariant: the same numbers give the same image; file ``f3`` is the sector at slot 3.
"""

from __future__ import annotations

import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

from firstread.convert.conversion import ConvertOptions, convert
from firstread.convert.record import Parameters
from firstread.oci.reference import parse_reference
from firstread.oci.resolve import resolve
from firstread.registry.open import open_destination, open_source
from firstread.sectors.image import HOT
from firstread.testing.entries import File
from firstread.testing.images import Image, Layer, write_layout
from firstread.testing.lazymount import summary
from firstread.units import KiB


@dataclass(frozen=True)
class PlainImage:
    """The contents of a plain image.

    Args:
        contents: of the files ``f0``, ``f1`` …, each as long as a sector.
    """

    contents: list[bytes]

    def summary(self, number: int, offset: int = 0, count: int = 4096) -> str:
        """Return the output of a reader that has read this part of a file."""
        return summary(self.contents[number][offset : offset + count])


def put_plain_image(
    destination: str,
    *,
    count: int = 8,
    first: int = 0,
    sector_bytes: int = 256 * KiB,
    frame_bytes: int = 16 * KiB,
) -> PlainImage:
    """Convert a plain image to `destination`; return its contents.

    Args:
        destination: reference.
        count: files.
        first: seed of the first file's content; overlapping ranges give images that share sectors.
        sector_bytes: size of each file.
        frame_bytes: size of a frame.
    """
    contents = [random.Random(first + number).randbytes(sector_bytes) for number in range(count)]
    files = [File(f"f{number}", content) for number, content in enumerate(contents)]
    _put(destination, [files], Parameters(sector_bytes, frame_bytes))
    return PlainImage(contents)


def put_hot_image(
    destination: str,
    *,
    cold: int = 4,
    hot: int = 8,
    sector_bytes: int = 256 * KiB,
    frame_bytes: int = 16 * KiB,
    annotations: dict[str, str] | None = None,
) -> PlainImage:
    """Convert an image whose files behind the first `cold` ones are hot; return its contents.

    Args:
        destination: reference.
        cold: files of the first layer.
        hot: files of the second one, whose sector blob says that it is hot.
        sector_bytes: size of each file.
        frame_bytes: size of a frame.
        annotations: of the manifest, more.
    """
    contents = [random.Random(number).randbytes(sector_bytes) for number in range(cold + hot)]
    files = [File(f"f{number}", content) for number, content in enumerate(contents)]
    _put(destination, [files[:cold], files[cold:]], Parameters(sector_bytes, frame_bytes))
    reference = parse_reference(destination)
    with open_source(reference) as source:
        found = resolve(source)
    manifest = json.loads(found.manifest_bytes)
    manifest["annotations"] |= annotations or {}
    manifest["layers"][-1].setdefault("annotations", {})[HOT] = "1"
    with open_destination(reference) as repository:
        data, kind = json.dumps(manifest).encode(), found.descriptor.media_type
        repository.put_manifest(data, kind, reference.tag)
    return PlainImage(contents)


def put_one_file(
    destination: str, size: int, *, seed: int = 1, sector_bytes: int, frame_bytes: int
) -> bytes:
    """Convert an image of one file, ``big``, to `destination`; return the file's content.

    Args:
        destination: reference.
        size: of the file, in bytes.
        seed: of its content.
        sector_bytes: size of a sector.
        frame_bytes: size of a frame.
    """
    content = random.Random(seed).randbytes(size)
    _put(destination, [[File("big", content)]], Parameters(sector_bytes, frame_bytes))
    return content


def _put(destination: str, layers: list[list[File]], parameters: Parameters) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        layout = Path(scratch) / "layout"
        write_layout(Image([Layer(files) for files in layers]), layout)
        source = parse_reference(f"oci:{layout}:latest")
        convert(source, parse_reference(destination), ConvertOptions(parameters=parameters))
