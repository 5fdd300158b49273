# SPDX-License-Identifier: Apache-2.0
"""A converted image, mounted by the kernel, compared with its source, unpacked by other programs.

The test takes the image apart as docs/format.md says, with zstd(1). Of firstread's readers it uses
only the sector index.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstread.device.erofsmount import mount_erofs, unmount
from firstread.oci.model import Manifest, parse_manifest
from firstread.sectors.format import BLOCK_SIZE
from firstread.sectors.image import open_image
from firstread.testing.command import firstread
from firstread.testing.images import Expected, feature_tree
from firstread.testing.observe import differences, observe
from firstread.testing.starts import put_trace, trace_of
from firstread.traces.tracefile import Trace

pytestmark = pytest.mark.privileged


@dataclass(frozen=True)
class Apart:
    """A converted image in pieces.

    Args:
        config: the image's config.
        layers: what ``zstd -dc`` prints of each layer.
        sectors: a file for each device slot.
        expected: the observed tree of the source.
    """

    config: dict[str, Any]
    layers: list[Path]
    sectors: list[Path]
    expected: dict[bytes, Expected]

    @property
    def metadata(self) -> Path:
        return self.layers[0]


@dataclass(frozen=True)
class Converted:
    """A converted image in a layout.

    Args:
        layout: its directory.
        digest: of its manifest.
        expected: the observed tree of the source.
    """

    layout: Path
    digest: str
    expected: dict[bytes, Expected]


@pytest.fixture(scope="module")
def converted_features(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    layout = tmp_path_factory.mktemp("converted") / "out"
    return Converted(layout, convert(features, layout), feature_tree())


@pytest.fixture(scope="module")
def converted_debian(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("converted")
    layout = folder / "out"
    return Converted(layout, convert(debian, layout), unpacked(debian, folder))


def convert(source: Path, layout: Path) -> str:
    ran = firstread("convert", f"oci:{source}", f"oci:{layout}:latest", "--no-cache", "--json")
    assert ran.code == 0, ran
    digest: str = ran.json["digest"]
    return digest


@pytest.fixture(scope="module", params=["features", "debian", "hot"])
def apart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Apart:
    is_hot = request.param == "hot"
    name = "debian" if is_hot else request.param
    image: Converted = request.getfixturevalue(f"converted_{name}")
    folder = tmp_path_factory.mktemp(request.param)
    out, digest = image.layout, image.digest
    if is_hot:
        out = shutil.copytree(out, folder / "out")
        put_trace(folder / "trace.jsonl", start_of(image.expected))
        ran = firstread("optimize", f"oci:{out}:latest", f"--trace={folder}", "--json")
        assert ran.code == 0, ran
        assert ran.json["hot"]["files"] > 300
        digest = ran.json["digest"]
    manifest = parse_manifest(blob(out, digest).read_bytes())
    assert isinstance(manifest, Manifest)
    layers = [folder / f"layer{number}" for number in range(len(manifest.layers))]
    for layer, raw in zip(manifest.layers, layers, strict=True):
        with raw.open("wb") as file:
            subprocess.run(["zstd", "-dcq", blob(out, layer.digest)], stdout=file, check=True)
    return Apart(
        json.loads(blob(out, manifest.config.digest).read_bytes()),
        layers,
        cut(manifest, layers, folder),
        image.expected,
    )


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def cut(manifest: Manifest, layers: list[Path], folder: Path) -> list[Path]:
    """Cut the raw blobs into sector files, following the index in the metadata."""
    index = open_image(manifest, layers[0].read_bytes()).index
    files = [folder / f"sector{slot}" for slot in range(len(index.sectors))]
    for number, raw in enumerate(layers[1:]):
        slots = [slot for slot, sector in enumerate(index.sectors) if sector.blob == number]
        with raw.open("rb") as file:
            for slot in sorted(slots, key=lambda slot: index.sectors[slot].offset):
                files[slot].write_bytes(file.read(index.sectors[slot].size))
            assert not file.read(1), "the tree uses every sector of these images"
    return files


def start_of(tree: dict[bytes, Expected]) -> Trace:
    """Return a trace that reads parts of many files, large and small, and some as a whole."""
    numbers = random.Random(1)
    sizes = {path: node.size for path, node in sorted(tree.items()) if stat.S_ISREG(node.mode)}
    reads = []
    for path in numbers.sample(list(sizes), len(sizes) // 10):
        blocks = -(-sizes[path] // BLOCK_SIZE)
        first = numbers.randrange(blocks) if blocks else 0
        reads.append((os.fsdecode(path), first, numbers.randint(1, 8)))
    return trace_of(*reads)


def unpacked(layout: Path, folder: Path) -> dict[bytes, Expected]:
    """Return the tree that umoci unpacks."""
    bundle = folder / "bundle"
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:latest", bundle], check=True, capture_output=True
    )
    tree = observe(bundle / "rootfs")
    shutil.rmtree(bundle)
    return tree


@pytest.fixture(params=["devices", "flat"])
def mounted(request: pytest.FixtureRequest, apart: Apart, tmp_path: Path) -> Iterator[Path]:
    """The mountpoint of the image: over its sector files, or from one flat file."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    if request.param == "flat":
        mount_erofs(flat(apart, tmp_path), [], mountpoint)
    else:
        mount_erofs(apart.metadata, apart.sectors, mountpoint)
    yield mountpoint
    unmount(mountpoint)


def flat(apart: Apart, folder: Path) -> Path:
    """Return one file with the metadata followed by the sectors."""
    path = folder / "flat"
    with path.open("wb") as out:
        for part in (apart.metadata, *apart.sectors):
            out.write(part.read_bytes())
    return path


def test_the_mounted_tree_is_that_of_the_source(mounted: Path, apart: Apart) -> None:
    assert not differences(apart.expected, observe(mounted))


def test_the_mount_is_read_only(mounted: Path) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        (mounted / "new").touch()


def test_fsck_erofs_accepts_it_and_reads_every_file(apart: Apart) -> None:
    devices = [f"--device={sector}" for sector in apart.sectors]
    ran = subprocess.run(
        ["fsck.erofs", "--extract", *devices, apart.metadata],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran


def test_diff_ids_are_the_digests_of_what_zstd_prints(apart: Apart) -> None:
    found = [hashlib.sha256(layer.read_bytes()).hexdigest() for layer in apart.layers]
    assert apart.config["rootfs"]["diff_ids"] == [f"sha256:{digest}" for digest in found]
