# SPDX-License-Identifier: Apache-2.0
"""A layer of the benchmark images: what an overlay's upper directory becomes in its tar archive."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
from pathlib import Path

import pytest
from benchmarks.images.layer import LayerBlob, write_layer

pytestmark = pytest.mark.benchmarks

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    directory = tmp_path / "upper"
    directory.mkdir()
    return directory


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    directory = tmp_path / "blobs"
    directory.mkdir()
    return directory


def entries(layer: LayerBlob, blobs: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(blobs / layer.digest.removeprefix("sha256:"), "r:gz") as tar:
        return {info.name: info for info in tar}


def test_digests_and_sizes_are_those_of_the_blob(upper: Path, blobs: Path) -> None:
    (upper / "file").write_bytes(b"content" * 1000)
    layer = write_layer(upper, blobs)
    (blob,) = blobs.iterdir()
    data = blob.read_bytes()
    assert layer.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert blob.name == layer.digest.removeprefix("sha256:")
    assert layer.size == len(data)
    raw = gzip.decompress(data)
    assert layer.diff_id == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert (layer.tar_size, layer.files) == (len(raw), 1)


def test_same_tree_same_blob(upper: Path, blobs: Path) -> None:
    (upper / "file").write_text("x")
    assert write_layer(upper, blobs) == write_layer(upper, blobs)


def test_names_come_in_order_parents_first(upper: Path, blobs: Path) -> None:
    for name in ("b/z", "b/a", "a"):
        (upper / name).parent.mkdir(exist_ok=True)
        (upper / name).write_text("")
    assert list(entries(write_layer(upper, blobs), blobs)) == ["a", "b", "b/a", "b/z"]


def test_hard_links_symlinks_and_sockets(upper: Path, blobs: Path) -> None:
    (upper / "one").write_text("x")
    os.link(upper / "one", upper / "two")
    (upper / "link").symlink_to("nowhere")
    os.mknod(upper / "socket", stat.S_IFSOCK | 0o600)
    found = entries(write_layer(upper, blobs), blobs)
    assert sorted(found) == ["link", "one", "two"]
    assert found["two"].islnk()
    assert found["two"].linkname == "one"
    assert found["link"].linkname == "nowhere"


def test_times_are_whole_seconds_and_owners_numbers(upper: Path, blobs: Path) -> None:
    (upper / "file").write_text("")
    os.utime(upper / "file", ns=(0, 1_700_000_000_987_654_321))
    info = entries(write_layer(upper, blobs), blobs)["file"]
    assert (info.mtime, info.uname, info.pax_headers) == (1_700_000_000, "", {})


@pytest.mark.privileged
def test_overlay_marks_become_whiteouts(upper: Path, blobs: Path) -> None:
    (upper / "etc/fresh").mkdir(parents=True)
    os.mknod(upper / "etc/gone", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(upper / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(upper / "etc/fresh", "trusted.overlay.opaque", b"y")
    layer = write_layer(upper, blobs)
    found = entries(layer, blobs)
    marks = {".wh.gone", "etc/.wh.gone", "etc/fresh/.wh..wh..opq"}
    assert set(found) == {"etc", "etc/fresh", "null"} | marks
    assert found["null"].ischr()
    assert found["etc/fresh"].pax_headers == {}
    assert layer.files == 1


@pytest.mark.privileged
def test_capabilities_are_kept(upper: Path, blobs: Path) -> None:
    (upper / "ping").write_text("")
    os.setxattr(upper / "ping", "security.capability", CAPABILITY)
    os.setxattr(upper / "ping", "user.binary", b"\xff\x00\n=")
    headers = entries(write_layer(upper, blobs), blobs)["ping"].pax_headers
    values = {
        key: value.encode("utf-8", "surrogateescape")
        for key, value in headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    assert values == {
        "SCHILY.xattr.security.capability": CAPABILITY,
        "SCHILY.xattr.user.binary": b"\xff\x00\n=",
    }
