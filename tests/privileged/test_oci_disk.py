# SPDX-License-Identifier: Apache-2.0
"""Destinations on disks that refuse: full, and read-only."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firstread.errors import FirstreadError, NodeError, TransportError
from firstread.oci.model import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Manifest, describe, encode
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Destination
from firstread.registry.open import open_destination
from firstread.registry.options import AccessOptions
from firstread.testing.registry import DockerRegistry

pytestmark = pytest.mark.privileged

SMALL = b"small"
LARGE = bytes(3 << 20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def files(disk: Path) -> list[str]:
    return sorted(path.name for path in disk.rglob("*") if path.is_file())


def put_image(place: Destination) -> None:
    place.put_blob(describe(SMALL, OCI_LAYER), io.BytesIO(SMALL))
    document = Manifest(config=describe(b"{}", OCI_CONFIG), layers=[describe(SMALL, OCI_LAYER)])
    place.put_manifest(encode(document), OCI_MANIFEST, "x")


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_a_full_disk(disk: Path, kind: str) -> None:
    reference = parse_reference(f"{kind}:{disk}/x:x")
    with open_destination(reference) as place:
        put_image(place)
    before = files(disk)
    with pytest.raises(NodeError, match="No space left") as caught:  # noqa: SIM117
        with open_destination(reference) as place:
            place.put_blob(describe(LARGE, OCI_LAYER), io.BytesIO(LARGE))
    assert caught.value.image == str(reference)
    assert "free some space" in (caught.value.hint or "")
    assert files(disk) == before


def test_a_full_disk_when_the_archive_is_closed(disk: Path) -> None:
    reference = parse_reference(f"oci-archive:{disk}/x:x")
    place = open_destination(reference)
    put_image(place)
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize))
    with pytest.raises(NodeError, match="No space"):
        place.close()
    place.close()
    assert files(disk) == ["filler"]


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_a_read_only_disk(disk: Path, kind: str) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    reference = parse_reference(f"{kind}:{disk}/x:x")
    with pytest.raises(NodeError, match="Read-only") as caught:
        open_destination(reference)
    assert caught.value.image == str(reference)
    assert "choose another directory" in (caught.value.hint or "")


def test_a_registry_whose_disk_is_full(disk: Path) -> None:
    options = AccessOptions(retries=1, retry_base=0.01)
    with DockerRegistry(storage=disk) as registry:
        reference = parse_reference(f"docker://{registry.host}/a/b:x")
        with open_destination(reference, options) as place:
            with pytest.raises(FirstreadError) as caught:
                place.put_blob(describe(LARGE, OCI_LAYER), io.BytesIO(LARGE))
            assert isinstance(caught.value, TransportError)  # it answers 500: it may work later
            assert caught.value.image == str(reference)
    assert os.listdir(disk) == ["docker"]
