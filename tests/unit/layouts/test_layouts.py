# SPDX-License-Identifier: Apache-2.0
"""Places on the disk: layouts and archives, ours and those of other tools."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from firstread.errors import (
    DigestError,
    FirstreadError,
    ImageError,
    LimitError,
    NodeError,
    NotFoundError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from firstread.layouts import dockerarchive
from firstread.layouts.dockerarchive import DockerArchive
from firstread.layouts.extent import Extent
from firstread.layouts.ingest import PREFIX, SUFFIX, remove_stale, temporary_file
from firstread.layouts.layoutreader import REF_NAME, LayoutReader
from firstread.layouts.layoutwriter import LAYOUT_FILE
from firstread.layouts.tarindex import TarIndex
from firstread.oci.model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    describe,
    encode,
    sha256_digest,
)
from firstread.oci.reference import parse_reference
from firstread.oci.repository import Destination, Repository
from firstread.oci.resolve import resolve
from firstread.registry.open import open_destination, open_source


def source(name: str) -> Repository:
    return open_source(parse_reference(name))


def listed(place: Repository) -> list[Descriptor]:
    assert isinstance(place, LayoutReader | DockerArchive)
    return list(place.manifests())


def destination(name: str) -> Destination:
    return open_destination(parse_reference(name))


def tar(*files: tuple[str, bytes]) -> bytes:
    """Return a tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


LAYERS = [tar(("etc/hello", b"hello\n")), tar(("etc/world", b"world\n" * 10_000))]
CONFIG = encode(
    {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256_digest(layer) for layer in LAYERS]},
    }
)


def empty_layout(path: Path) -> None:
    path.mkdir()
    (path / "oci-layout").write_bytes(LAYOUT_FILE)


def put_image(place: Destination, tag: str | None, layers: list[bytes] = LAYERS) -> Descriptor:
    for blob in (*layers, CONFIG):
        place.put_blob(describe(blob, OCI_LAYER), io.BytesIO(blob))
    document = Manifest(
        config=describe(CONFIG, OCI_CONFIG),
        layers=[describe(layer, OCI_LAYER) for layer in layers],
    )
    return place.put_manifest(encode(document), OCI_MANIFEST, tag)


def read_image(name: str) -> list[bytes]:
    with source(name) as place:
        image = resolve(place)
        return [place.read_blob(layer, 1 << 20) for layer in image.manifest.layers]


# Layouts


def test_a_layout_has_nothing_but_what_the_specification_names(tmp_path: Path) -> None:
    with destination(f"oci:{tmp_path}/a/b:x") as place:
        manifest = put_image(place, "x")
    files = {str(p.relative_to(tmp_path / "a/b")) for p in tmp_path.rglob("*") if p.is_file()}
    digests = [*map(sha256_digest, (*LAYERS, CONFIG)), manifest.digest]
    assert files == {"oci-layout", "index.json", *(f"blobs/sha256/{d[7:]}" for d in digests)}
    assert (tmp_path / "a/b/oci-layout").read_text() == '{"imageLayoutVersion":"1.0.0"}'
    assert all(p.stat().st_mode & 0o777 == 0o644 for p in tmp_path.rglob("*") if p.is_file())


def test_an_index_keeps_what_it_does_not_know(tmp_path: Path) -> None:
    empty_layout(tmp_path / "x")
    other: dict[str, Any] = {
        "mediaType": OCI_MANIFEST,
        "digest": sha256_digest(b"other"),
        "size": 5,
        "data": "b3RoZXI=",
        "annotations": {"org.opencontainers.image.ref.name": "other", "x": "y"},
    }
    index = tmp_path / "x/index.json"
    index.write_text(json.dumps({"schemaVersion": 2, "x-unknown": 1, "manifests": [other]}))
    with destination(f"oci:{tmp_path}/x:new") as place:
        manifest = put_image(place, "new")
    document = json.loads(index.read_bytes())
    assert document["x-unknown"] == 1
    assert document["manifests"][0] == other
    assert document["manifests"][1]["digest"] == manifest.digest


def test_prepared_blobs_are_read_without_opening_a_file(tmp_path: Path) -> None:
    with destination(f"oci:{tmp_path}/x:1") as place:
        put_image(place, "1")
    first, second = (describe(layer, OCI_LAYER) for layer in LAYERS)
    with source(f"oci:{tmp_path}/x:1") as place:
        place.prepare([first, describe(b"not here", OCI_LAYER)])
        (tmp_path / "x").rename(tmp_path / "away")
        for _ in range(2):
            with place.open_blob(first, offset=512) as stream:
                assert stream.read() == LAYERS[0][512:]
        with pytest.raises(FirstreadError, match="missing"):
            place.open_blob(second)


def test_one_image_needs_no_name(tmp_path: Path) -> None:
    with destination(f"oci:{tmp_path}/x") as place:
        put_image(place, None)
        put_image(place, None)
    assert read_image(f"oci:{tmp_path}/x") == LAYERS
    with destination(f"oci:{tmp_path}/x:second") as place:
        put_image(place, "second", LAYERS[:1])
    with source(f"oci:{tmp_path}/x") as place, pytest.raises(UsageError) as caught:
        place.get_manifest()
    assert "second" in (caught.value.hint or "")
    assert read_image(f"oci:{tmp_path}/x:second") == LAYERS[:1]


def test_children_of_an_index_are_not_images_of_their_own(tmp_path: Path) -> None:
    with destination(f"oci:{tmp_path}/x") as place:
        child = put_image(place, None)
        place.put_manifest(encode(Index(manifests=[child])), OCI_INDEX, None)
        assert [entry.media_type for entry in listed(place)] == [OCI_INDEX]
    assert read_image(f"oci:{tmp_path}/x") == LAYERS
    assert read_image(f"oci:{tmp_path}/x@{child.digest}") == LAYERS


@pytest.mark.parametrize(
    "annotations",
    [
        {"org.opencontainers.image.ref.name": "docker.io/library/alpine:3"},
        {
            "org.opencontainers.image.ref.name": "3",
            "io.containerd.image.name": "docker.io/library/alpine:3",
        },
    ],
)
def test_whole_names_in_an_index(tmp_path: Path, annotations: dict[str, str]) -> None:
    with destination(f"oci:{tmp_path}/x:y") as place:
        put_image(place, "y")
    index = tmp_path / "x/index.json"
    document = json.loads(index.read_bytes())
    document["manifests"][0]["annotations"] = annotations
    index.write_text(json.dumps(document))
    for tag in ("", ":3", ":docker.io/library/alpine:3"):  # the last is how skopeo names it
        assert read_image(f"oci:{tmp_path}/x{tag}") == LAYERS
    with source(f"oci:{tmp_path}/x:4") as place, pytest.raises(NotFoundError) as caught:
        place.get_manifest()
    assert "3" in (caught.value.hint or "")


@pytest.mark.parametrize("transport", ["oci", "oci-archive"])
def test_a_whole_name_in_a_new_place(tmp_path: Path, transport: str) -> None:
    """As skopeo writes it: everything behind the first colon is the tag."""
    reference = f"{transport}:{tmp_path}/new:host:5000/library/alpine:3"
    with destination(reference) as place:
        put_image(place, place.reference.tag)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert read_image(reference) == LAYERS
    with source(f"{transport}:{tmp_path}/new") as place:
        (entry,) = listed(place)
        assert entry.annotations == {REF_NAME: "host:5000/library/alpine:3"}


def test_a_path_with_colons(tmp_path: Path) -> None:
    name = f"oci:{tmp_path}/12:30"
    with destination(f"{name}:tag") as place:
        put_image(place, "tag")
    assert read_image(f"{name}:tag") == read_image(f"{name}:") == LAYERS
    assert [path.name for path in tmp_path.iterdir()] == ["12:30"]


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="not empty"):
        destination(f"oci:{tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(NodeError):
        destination(f"oci:{tmp_path}/thesis.tex/x")
    with pytest.raises(UsageError, match="is a file"):
        destination(f"oci:{tmp_path}/thesis.tex")


def test_a_writer_that_puts_nothing_leaves_nothing(tmp_path: Path) -> None:
    """A command that fails has nothing to remove, which another one may be writing to by then."""
    (tmp_path / "mine").mkdir()
    for name in ("new", "deep/below/new", "mine"):
        place = destination(f"oci:{tmp_path}/{name}:1")
        assert place.scratch_dir == tmp_path / ("mine" if name == "mine" else "")
        with place, pytest.raises(NotFoundError):
            place.get_manifest()
        assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    first, second = (destination(f"oci:{tmp_path}/new:{number}") for number in range(2))
    with second:
        with first:
            put_image(first, "0")
        put_image(second, "1", LAYERS[:1])
    assert read_image(f"oci:{tmp_path}/new:0") == LAYERS
    assert read_image(f"oci:{tmp_path}/new:1") == LAYERS[:1]


def test_a_layout_that_is_not_there(tmp_path: Path) -> None:
    for name in (f"oci:{tmp_path}/missing", f"oci:{tmp_path}"):
        with source(name) as place, pytest.raises(NotFoundError) as caught:
            place.get_manifest()
        assert caught.value.image == name


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schemaVersion":2}', '{"manifests":[{}]}'])
def test_a_damaged_index(tmp_path: Path, text: str) -> None:
    empty_layout(tmp_path / "x")
    with destination(f"oci:{tmp_path}/x") as place:
        (tmp_path / "x/index.json").write_text(text)
        with pytest.raises(ImageError):
            place.get_manifest()
        with pytest.raises(ImageError):
            put_image(place, "x")
    assert (tmp_path / "x/index.json").read_text() == text


def test_a_damaged_manifest(tmp_path: Path) -> None:
    with destination(f"oci:{tmp_path}/x") as place:
        manifest = put_image(place, None)
        path = tmp_path / "x/blobs/sha256" / manifest.digest[7:]
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(DigestError):
            place.get_manifest()
        path.write_bytes(b" " * (5 << 20))
        with pytest.raises(LimitError):
            place.get_manifest()
        path.unlink()
        with pytest.raises(NotFoundError):
            place.get_manifest()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "index.json")
    with pytest.raises(SourceError, match="is not a file"):
        source(f"oci:{tmp_path}").get_manifest()
    for transport in ("oci-archive", "docker-archive"):
        with pytest.raises(SourceError, match="is not a file"):
            source(f"{transport}:{tmp_path}/index.json")


def test_many_writers_at_once(tmp_path: Path) -> None:
    name = f"oci:{tmp_path}/x"

    def write(number: int) -> None:
        with destination(f"{name}:t{number}") as place:
            put_image(place, f"t{number}")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(24)))
    with source(f"{name}:t0") as place:
        assert len(listed(place)) == 24
    assert not list(tmp_path.rglob(f"{PREFIX}*"))


def test_a_killed_writer_leaves_nothing_for_long(tmp_path: Path) -> None:
    empty_layout(tmp_path / "x")
    script = (
        "import os, sys; from pathlib import Path;"
        "from firstread.layouts.ingest import temporary_file;"
        "temporary_file(Path(sys.argv[1]))[0].write(b'x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")], check=False)
    assert len(list((tmp_path / "x").glob(f"{PREFIX}*"))) == 1
    file, alive = temporary_file(tmp_path / "x")
    with file:
        destination(f"oci:{tmp_path}/x").close()
        assert list((tmp_path / "x").glob(f"{PREFIX}*")) == [alive]
    remove_stale(tmp_path / "x")
    assert not alive.exists()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    """The parent of an archive is a user's directory, and may hold names that resemble ours."""
    stale, alive = temporary_file(tmp_path)
    stale.close()
    names = [
        f"{PREFIX}notes",
        f"{PREFIX}abcdefgh",
        f"{PREFIX}notes{SUFFIX}",
        f"my{alive.name}",
        f"{alive.name}.orig",
    ]
    for name in names:
        (tmp_path / name).write_text("precious")
    with destination(f"oci-archive:{tmp_path}/x.tar") as place:
        put_image(place, None)
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "x.tar"])


def test_a_failing_file_leaves_nothing(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    blob = describe(LAYERS[0], OCI_LAYER)
    for name in (f"oci:{tmp_path}/x", f"oci-archive:{tmp_path}/x.tar"):
        with destination(name) as place:
            with pytest.raises(NodeError, match="Input/output"):
                place.put_blob(blob, Failing())
            put_image(place, None)
        assert read_image(name) == LAYERS
    assert not list(tmp_path.rglob(f"{PREFIX}*"))


# oci-archive


def test_an_archive_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    name, path = f"oci-archive:{tmp_path}/x.tar:v1", tmp_path / "x.tar"
    with destination(name) as place:
        put_image(place, "v1")
        assert not path.exists()
    first = path.read_bytes()

    def interrupted() -> None:
        with destination(name) as place:
            put_image(place, "v1", LAYERS[:1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with destination(name) as place:
        place.put_blob(describe(b"x", OCI_LAYER), io.BytesIO(b"x"))
    assert path.read_bytes() == first
    assert os.listdir(tmp_path) == ["x.tar"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_archive_replaces_regular_files_only(tmp_path: Path) -> None:
    """As root, another one could be a device such as /dev/null."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for target in (pipe, link, tmp_path):
        with pytest.raises(UsageError, match="is not a file"):
            destination(f"oci-archive:{target}")
    assert pipe.is_fifo()
    assert os.readlink(link) == str(pipe)
    link.unlink()
    link.symlink_to("target.tar")
    with destination(f"oci-archive:{link}") as place:
        put_image(place, None)
    assert os.readlink(link) == "target.tar"
    assert read_image(f"oci-archive:{tmp_path}/target.tar") == LAYERS


def test_an_archive_depends_on_nothing_but_its_content(tmp_path: Path) -> None:
    contents = []
    for name in ("a.tar", "b.tar"):
        with destination(f"oci-archive:{tmp_path}/{name}") as place:
            put_image(place, "x")
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    with tarfile.open(tmp_path / "a.tar") as archive:
        members = archive.getmembers()
        assert [m.name for m in members[-2:]] == ["oci-layout", "index.json"]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o644)}


def test_threads_write_one_archive(tmp_path: Path) -> None:
    blobs = [bytes([number]) * 100_000 for number in range(20)]
    with destination(f"oci-archive:{tmp_path}/x.tar") as place, ThreadPoolExecutor(4) as threads:
        put = list(
            threads.map(lambda b: place.put_blob(describe(b, OCI_LAYER), io.BytesIO(b)), blobs * 2)
        )
        assert sum(put) == len(blobs)
        put_image(place, None, blobs)
    assert read_image(f"oci-archive:{tmp_path}/x.tar") == blobs


def test_an_archive_as_umoci_and_tar_write_it(tmp_path: Path) -> None:
    """With directories, ``./`` before the names, long names and pax headers."""
    with destination(f"oci:{tmp_path}/x:t") as place:
        put_image(place, "t")
    for options in (["--format=pax"], ["--format=gnu"], ["--format=ustar"]):
        path = tmp_path / "x.tar"
        subprocess.run(["tar", *options, "-C", tmp_path / "x", "-cf", path, "."], check=True)
        assert read_image(f"oci-archive:{path}:t") == LAYERS


def test_a_layout_of_nothing_as_umoci_makes_it(tmp_path: Path) -> None:
    """``umoci init`` writes an index of null, as Go does for a list without entries."""
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (tmp_path / "index.json").write_text('{"schemaVersion":2,"manifests":null}')
    with pytest.raises(NotFoundError, match="no image 't' here"):
        read_image(f"oci:{tmp_path}:t")
    with destination(f"oci:{tmp_path}:t") as place:
        put_image(place, "t")
    assert read_image(f"oci:{tmp_path}:t") == LAYERS


def test_a_layout_keeps_what_only_others_can_read(tmp_path: Path) -> None:
    with destination(f"oci:{tmp_path}:t") as place:
        put_image(place, "t")
    index = tmp_path / "index.json"
    document = json.loads(index.read_bytes())
    signature = {"mediaType": "a/b", "digest": "blake3:" + "a" * 64, "size": 1}
    document["manifests"].append(signature)
    index.write_text(json.dumps(document))
    with destination(f"oci:{tmp_path}:u") as place:
        put_image(place, "u")
    assert signature in json.loads(index.read_bytes())["manifests"]
    assert read_image(f"oci:{tmp_path}:u") == read_image(f"oci:{tmp_path}:t") == LAYERS


@pytest.mark.parametrize("program", ["gzip", "zstd", "bzip2", "xz"])
def test_a_compressed_archive(tmp_path: Path, program: str) -> None:
    magic = {"gzip": b"\x1f\x8b\x08", "zstd": b"(\xb5/\xfd", "bzip2": b"BZh9", "xz": b"\xfd7zXZ\0"}
    (tmp_path / "x.tar").write_bytes(magic[program] + bytes(1000))
    for transport in ("oci-archive", "docker-archive"):
        with pytest.raises(UnsupportedError) as caught:
            source(f"{transport}:{tmp_path}/x.tar")
        assert f"{program} -d" in (caught.value.hint or "")
        assert caught.value.image == f"{transport}:{tmp_path}/x.tar"


@pytest.mark.parametrize("data", [b"", b"\0" * 2000, b"x" * 2000, LAYERS[1][:5000]])
def test_damaged_archives(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    for transport in ("oci-archive", "docker-archive"):
        with pytest.raises(ImageError):
            source(f"{transport}:{tmp_path}/x.tar")
    with pytest.raises(NotFoundError):
        source(f"oci-archive:{tmp_path}/missing.tar")


ROOTFS = tar(("etc/passwd", b"root:x:0:0::/:/bin/sh\n"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (bytes(2048), "the archive has no files in it"),
        (b"PK\x03\x04" + bytes(600), "the file is a zip archive, not a tar archive"),
        (b'{"schemaVersion":2}', "the file is a JSON document, not a tar archive"),
        (b"hello world\n" * 50, "it begins with b'hello world\\nhell'"),
        (b"x" + ROOTFS[1:], "or its first header is damaged: it begins with b'xtc/passwd"),
        (ROOTFS, "it has neither index.json nor manifest.json"),
        (gzip.compress(ROOTFS), "the file is compressed with gzip"),
    ],
    ids=["empty", "zeros", "zip", "json", "text", "damaged", "rootfs", "gzip"],
)
def test_a_file_that_is_no_archive_of_an_image_is_called_what_it_is(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    for transport in ("oci-archive", "docker-archive"):
        with pytest.raises(ImageError) as caught:
            source(f"{transport}:{tmp_path}/x.tar")
        assert message in caught.value.message
        assert "docker save" in (caught.value.hint or "") or "gzip -dc" in (caught.value.hint or "")


def test_an_image_by_the_name_of_another_kind(tmp_path: Path) -> None:
    """The hint is the name that it has."""
    path = docker_archive(tmp_path / "docker.tar", [IMAGE]).removeprefix("docker-archive:")
    for name in (f"oci:{tmp_path}/dir", f"oci-archive:{tmp_path}/oci.tar"):
        with destination(name) as place:
            put_image(place, None)
    for wrong, message, right in (
        (f"oci-archive:{path}", "this is an archive of docker save, not an OCI layout", None),
        (f"docker-archive:{tmp_path}/oci.tar", "this is an OCI layout, not an archive of", None),
        (f"oci-archive:{tmp_path}/dir", "this is a directory", f"oci:{tmp_path}/dir"),
        (f"docker-archive:{tmp_path}/dir", "this is a directory", f"oci:{tmp_path}/dir"),
        (f"oci:{tmp_path}/oci.tar", "this is a file", f"oci-archive:{tmp_path}/oci.tar"),
    ):
        with pytest.raises(UsageError, match=message) as caught, source(wrong) as place:
            place.get_manifest()
        assert caught.value.image == wrong
        other = wrong.partition(":")[2]
        kind = "docker-archive" if "docker.tar" in wrong else "oci-archive"
        assert (right or f"{kind}:{other}") in (caught.value.hint or "")
    with pytest.raises(NotFoundError, match="there is no directory"):
        source(f"oci:{tmp_path}/nowhere").get_manifest()


# docker-archive


def docker_archive(path: Path, images: list[dict[str, Any]], **links: str) -> str:
    """Write an archive as docker save did until version 24; links are symbolic."""
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

        add("config.json", CONFIG)
        for number, layer in enumerate(LAYERS):
            if f"l{number}" not in links:
                add(f"l{number}/layer.tar", layer)
        add("packed/layer.tar", gzip.compress(LAYERS[0], mtime=0))
        for name, target in links.items():
            info = tarfile.TarInfo(f"{name}/layer.tar")
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        add("bzip2/layer.tar", bz2.compress(LAYERS[0]))
        add("manifest.json", json.dumps(images).encode())
    return f"docker-archive:{path}"


IMAGE = {
    "Config": "config.json",
    "RepoTags": ["busybox:1", "me.io/x/busybox:latest"],
    "Layers": ["l0/layer.tar", "l1/layer.tar"],
}


def test_a_docker_archive(tmp_path: Path) -> None:
    name = docker_archive(tmp_path / "x.tar", [IMAGE])
    for tag in ("", ":busybox:1", ":docker.io/library/busybox:1", ":1", ":me.io/x/busybox"):
        assert read_image(name + tag) == LAYERS
    with source(name) as place:
        image = resolve(place)
        assert [la.digest for la in image.manifest.layers] == [sha256_digest(x) for x in LAYERS]
        assert image.config_bytes == CONFIG
        assert [entry.digest for entry in listed(place)] == [image.descriptor.digest]
        assert place.get_manifest(image.descriptor.digest)[0] == image.descriptor
        assert place.has_blob(image.manifest.layers[0])
        assert read_image(f"{name}@{image.descriptor.digest}") == LAYERS
        assert not isinstance(place, Destination)
        with pytest.raises(NotFoundError):
            place.open_blob(describe(b"?", OCI_LAYER))
        with pytest.raises(NotFoundError):
            place.get_manifest(sha256_digest(b"?"))
    with pytest.raises(UsageError, match="only be read"):
        destination(name)


def test_several_images_in_a_docker_archive(tmp_path: Path) -> None:
    other = IMAGE | {"RepoTags": ["busybox:2"], "Layers": ["l1/layer.tar", "l0/layer.tar"]}
    name = docker_archive(tmp_path / "x.tar", [IMAGE, other])
    assert read_image(f"{name}:busybox:1") == LAYERS
    with source(f"{name}:1") as place, pytest.raises(NotFoundError):
        place.get_manifest("3")
    with pytest.raises(UsageError, match="several") as caught:
        source(name)
    assert "busybox:1, busybox:2" in (caught.value.hint or "")
    with pytest.raises(NotFoundError) as missing:
        source(f"{name}:3")
    assert "busybox:1, busybox:2" in (missing.value.hint or "")
    with source(f"{name}:2") as place, pytest.raises(DigestError):
        # the layers are exchanged: they are not what the config says
        place.read_blob(resolve(place).manifest.layers[0], 1 << 20)


@pytest.mark.parametrize(
    "links",
    [
        {"l1": "../a/layer.tar", "a": "../b/layer.tar", "b": "../real/layer.tar"},
        {"l1": "../l1/layer.tar"},
    ],
    ids=["chain", "circle"],
)
def test_layers_that_are_links(tmp_path: Path, links: dict[str, str]) -> None:
    path = tmp_path / "x.tar"
    name = docker_archive(path, [IMAGE], **links)
    if "a" not in links:
        with pytest.raises(ImageError, match="missing"):
            source(name)
        return
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("real/layer.tar")
        info.size = len(LAYERS[1])
        archive.addfile(info, io.BytesIO(LAYERS[1]))
    assert read_image(name) == LAYERS


def test_a_compressed_layer_in_a_docker_archive(tmp_path: Path) -> None:
    image = IMAGE | {"Layers": ["packed/layer.tar", "l1/layer.tar"]}
    with source(docker_archive(tmp_path / "x.tar", [image])) as place:
        layer = resolve(place).manifest.layers[0]
        assert layer.media_type == OCI_LAYER + "+gzip"
        assert gzip.decompress(place.read_blob(layer, 1 << 20)) == LAYERS[0]


def test_a_layer_that_is_no_tar_archive_is_not_called_damaged(tmp_path: Path) -> None:
    """Its bytes are read as they are; who reads the layer knows why it is none."""
    image = IMAGE | {"Layers": ["bzip2/layer.tar", "l1/layer.tar"]}
    with source(docker_archive(tmp_path / "x.tar", [image])) as place:
        layer = resolve(place).manifest.layers[0]
        assert bz2.decompress(place.read_blob(layer, 1 << 20)) == LAYERS[0]


def test_a_docker_archive_of_an_image_without_layers(tmp_path: Path) -> None:
    """Go writes null for a list of nothing."""
    path = tmp_path / "x.tar"
    config = b'{"rootfs":{"type":"layers","diff_ids":[]}}'
    manifest = json.dumps([{"Config": "c", "RepoTags": None, "Layers": None}]).encode()
    path.write_bytes(tar(("c", config), ("manifest.json", manifest)))
    with source(f"docker-archive:{path}") as place:
        assert resolve(place).manifest.layers == []


def test_a_docker_archive_as_go_reads_it(tmp_path: Path) -> None:
    image = {"config": "config.json", "LAYERS": IMAGE["Layers"], "repoTags": [None, "busybox:1"]}
    assert read_image(docker_archive(tmp_path / "x.tar", [image])) == LAYERS
    assert read_image(docker_archive(tmp_path / "x.tar", [image]) + ":busybox:1") == LAYERS


@pytest.mark.parametrize(
    "bad", [None, 5, {}, {"Config": 5}, {"Config": None}, {"Config": "x", "Layers": "no list"}]
)
def test_a_damaged_image_in_a_docker_archive_hides_no_other(tmp_path: Path, bad: Any) -> None:
    name = docker_archive(tmp_path / "x.tar", [bad, IMAGE])
    assert read_image(f"{name}:busybox:1") == LAYERS
    with source(f"{name}:busybox:1") as place:
        (entry,) = listed(place)
    assert read_image(f"{name}@{entry.digest}") == LAYERS


@pytest.mark.parametrize(
    "images",
    [
        [],
        {},
        [{"Config": "config.json"}],
        [IMAGE | {"Config": "missing.json"}],
        [IMAGE | {"Config": "l0/layer.tar"}],
        [IMAGE | {"Layers": ["l0/layer.tar"]}],
        [IMAGE | {"Layers": ["l0/layer.tar", "missing/layer.tar"]}],
        [IMAGE] * 1001,
    ],
)
def test_a_damaged_docker_archive(tmp_path: Path, images: Any) -> None:
    with pytest.raises(ImageError) as caught:
        source(docker_archive(tmp_path / "x.tar", images))
    assert caught.value.image == f"docker-archive:{tmp_path}/x.tar"


def test_an_oci_archive_is_no_docker_archive(tmp_path: Path) -> None:
    with destination(f"oci-archive:{tmp_path}/x.tar") as place:
        put_image(place, None)
    with pytest.raises(UsageError) as caught:
        source(f"docker-archive:{tmp_path}/x.tar")
    assert caught.value.hint == f"name it oci-archive:{tmp_path}/x.tar"


def test_one_file_as_many_layers_is_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest.json of 4 MiB has room for hundreds of thousands."""
    hashed: list[Extent] = []
    digest_of = dockerarchive._digest_of

    def counted(extent: Extent) -> str:
        hashed.append(extent)
        return digest_of(extent)

    monkeypatch.setattr(dockerarchive, "_digest_of", counted)
    image = IMAGE | {"Layers": ["packed/layer.tar"] * 2}
    with source(docker_archive(tmp_path / "x.tar", [image])) as place:
        first, second = resolve(place).manifest.layers
    assert first == second
    assert len(hashed) == 1


# Members of a tar file, with tarfile as the oracle


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members(tmp_path: Path, style: int) -> None:
    long = "d" * 90 + "/" + "f" * 90
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=style) as archive:
        for name in ("a", "./b/../c", long, "ü/" + "x" * 60):
            info = tarfile.TarInfo(name)
            info.size = 700
            archive.addfile(info, io.BytesIO(name.encode()[:1] * 700))
        for name, kind, target in (
            ("hard", tarfile.LNKTYPE, "a"),
            ("dir/soft", tarfile.SYMTYPE, "../a"),
            ("dir", tarfile.DIRTYPE, ""),
            ("fifo", tarfile.FIFOTYPE, ""),
            ("nowhere", tarfile.SYMTYPE, "missing"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    with path.open("rb") as file, tarfile.open(path) as oracle:
        index = TarIndex(file.fileno())
        for name, asked in (("a", "/a"), ("./b/../c", "c"), (long, long), ("hard", "hard")):
            found, member = index.find(asked), oracle.getmember(name)
            file_itself = oracle.getmember("a") if member.islnk() else member
            assert found is not None
            assert (found.offset, found.size) == (file_itself.offset_data, file_itself.size)
        assert index.find("dir/soft") == index.find("a")
        assert [index.find(n) for n in ("dir", "fifo", "nowhere", "other")] == [None] * 4


@pytest.mark.parametrize(
    "kind",
    [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE,
     tarfile.FIFOTYPE],
)  # fmt: skip
def test_entries_without_data_may_state_a_size(tmp_path: Path, kind: bytes) -> None:
    stated, data = tarfile.TarInfo("x"), tarfile.TarInfo("a")
    stated.type, stated.linkname, stated.size = kind, "a", 700
    data.size = 3
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(stated.tobuf())
        with tarfile.open(fileobj=file, mode="w") as archive:
            archive.addfile(data, io.BytesIO(b"abc"))
    with path.open("rb") as file:
        found = TarIndex(file.fileno()).find("a")
        assert found is not None
        assert os.pread(file.fileno(), found.size, found.offset) == b"abc"


def test_a_member_beyond_8_gib(tmp_path: Path) -> None:
    for style in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("big")
        info.size = 10 << 30
        header = info.tobuf(style)
        with (tmp_path / "x.tar").open("w+b") as file:
            file.write(header)
            file.truncate(len(header) + info.size)
            member = TarIndex(file.fileno()).find("big")
            assert member is not None
            assert (member.offset, member.size) == (len(header), info.size)
            file.truncate(len(header) + info.size - 1)
            with pytest.raises(ImageError, match="cut off"):
                TarIndex(file.fileno())


def test_a_size_that_leads_backwards(tmp_path: Path) -> None:
    """Found by thinking of it: octal with a sign made the scan run in a circle."""
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = b"-0000001000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.tar"
    path.write_bytes(tarfile.TarInfo("first").tobuf() + header)
    with path.open("rb") as file, pytest.raises(ImageError, match="number"):
        TarIndex(file.fileno())


# Other tools


def skopeo(*arguments: str | Path) -> str:
    command = ["skopeo", "--tmpdir", "/tmp", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("kind", ["oci", "oci-archive"])
def test_skopeo_reads_what_we_write_and_we_read_what_it_writes(tmp_path: Path, kind: str) -> None:
    ours, theirs = f"{kind}:{tmp_path}/ours:v1", f"{kind}:{tmp_path}/theirs:v2"
    with destination(ours) as place:
        manifest = put_image(place, "v1")
    assert json.loads(skopeo("inspect", ours))["Digest"] == manifest.digest
    skopeo("copy", "--preserve-digests", ours, theirs)
    assert read_image(theirs) == LAYERS
    skopeo("copy", ours, f"docker-archive:{tmp_path}/docker.tar:busybox:1")
    assert read_image(f"docker-archive:{tmp_path}/docker.tar") == LAYERS
    assert read_image(f"docker-archive:{tmp_path}/docker.tar:busybox:1") == LAYERS


def test_a_place_reads_from_threads_while_it_is_written(tmp_path: Path) -> None:
    stop = threading.Event()
    name = f"oci:{tmp_path}/x:a"
    with destination(name) as place:
        put_image(place, "a")

    def read() -> int:
        count = 0
        while not stop.is_set():
            assert read_image(name) == LAYERS
            count += 1
        return count

    with ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        for number in range(20):
            with destination(f"oci:{tmp_path}/x:b{number}") as place:
                put_image(place, f"b{number}")
        stop.set()
        assert all(reader.result() for reader in readers)


def test_errors_name_the_image(tmp_path: Path) -> None:
    with source(f"oci:{tmp_path}/no/where:x") as place, pytest.raises(SourceError) as caught:
        resolve(place)
    assert str(caught.value).startswith(f"oci:{tmp_path}/no/where:x: ")
