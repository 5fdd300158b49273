# SPDX-License-Identifier: Apache-2.0
"""Images that cannot be converted: the user's message, and the leftovers."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from firstread.sectors.format import DEFAULT_SECTOR_SIZE
from firstread.testing.command import firstread
from firstread.testing.features import content
from firstread.testing.images import (
    Compression,
    Dir,
    File,
    Hardlink,
    Image,
    Layer,
    Sparse,
    digest_of,
    write_layout,
)
from firstread.units import TiB

DAMAGED = "the image is damaged: build or push it again"
PUSH_AGAIN = "the image is damaged: push it again"
INCOMPLETE = "the image is incomplete: push it again"
CURRENT_TOOL = "build or push it again with a current tool, such as docker buildx or buildah"

GOOD = Layer([File("good", b"good")])
ITEMS = [Dir("d/"), File("d/a", content("a", 20_000)), File("d/b", content("b", 3000))]
BAD = Layer(ITEMS)  # spoilt by the cases
TAR, GZIP, ZSTD = BAD.tar, BAD.blob, Layer(ITEMS, "zstd").blob


@dataclass(frozen=True)
class Blob(Layer):
    """A layer whose blob does not hold its tar."""

    data: bytes = b""

    @property
    def blob(self) -> bytes:
        return self.data


def layer(data: bytes, compression: Compression = "gzip") -> Callable[[], None]:
    """Make an image of a good layer and one with the blob `data`."""
    return lambda: _write(Blob(TAR, compression, data=data))


def archive(tar: bytes) -> Callable[[], None]:
    """Make an image of a good layer and a correctly compressed one with `tar`."""
    return lambda: _write(Layer(tar))


def _write(*layers: Layer) -> None:
    write_layout(Image([GOOD, *layers]), "in")


def blob(digest: str) -> Path:
    return Path("in", "blobs", *digest.split(":"))


def manifest_entry() -> Any:
    return json.loads(Path("in/index.json").read_bytes())["manifests"][0]


def manifest() -> Any:
    return json.loads(blob(manifest_entry()["digest"]).read_bytes())


def replaced(digest: Callable[[], str], data: bytes | None) -> Callable[[], None]:
    """Make a good image, then change or remove its blob `digest`."""

    def make() -> None:
        _write(BAD)
        if data is None:
            blob(digest()).unlink()
        else:
            blob(digest()).write_bytes(data)

    return make


def edited(edit: Callable[[Any], object]) -> Callable[[], None]:
    """Make a good image, then change its manifest with `edit`."""

    def make() -> None:
        _write(BAD)
        document = manifest()
        edit(document)
        data = json.dumps(document).encode()
        blob(digest_of(data)).write_bytes(data)
        entry = manifest_entry() | {"digest": digest_of(data), "size": len(data)}
        entry["mediaType"] = document.get("mediaType", entry["mediaType"])
        Path("in/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))

    return make


def media_type(kind: str) -> Callable[[], None]:
    return edited(lambda document: document["layers"][1].update(mediaType=kind))


@dataclass(frozen=True)
class Case:
    """A bad image and its message.

    Args:
        make: writes it as ``oci:in:latest``; the last of its layers is the bad one.
        message: ``{layer}``, ``{config}`` and ``{manifest}`` stand for digests.
        layer: whether the message names the last layer.
    """

    make: Callable[[], object]
    error: str
    message: str
    hint: str = DAMAGED
    layer: bool = True
    code: int = 3


CASES = {
    "gzip cut off": Case(
        layer(GZIP[:-100]), "ImageError", f"the gzip data is cut off at byte {len(GZIP) - 100}"
    ),
    "gzip cut off in its header": Case(
        layer(GZIP[:5]), "ImageError", "the gzip data is cut off at byte 5"
    ),
    "gzip corrupt": Case(
        layer(GZIP[:5000] + b"\xff" * 50 + GZIP[5050:]),
        "ImageError",
        "the gzip data is damaged after byte 12288: Error -6 Incorrect checksum found",
    ),
    "zstd cut off": Case(
        layer(ZSTD[:-100], "zstd"),
        "ImageError",
        f"the zstd data is cut off at byte {len(ZSTD) - 100}",
    ),
    "zstd corrupt": Case(
        layer(ZSTD[:4] + b"\xff" * 20 + ZSTD[24:], "zstd"),
        "ImageError",
        "the zstd data is damaged after byte 0: Unable to decompress Zstandard data:"
        " Unsupported frame parameter",
    ),
    "another compression": Case(
        layer(lzma.compress(TAR)),
        "UnsupportedError",
        "the layer is compressed with xz",
        CURRENT_TOOL,
    ),
    "tar cut off": Case(
        archive(TAR[:10_000]),
        "ImageError",
        "tar entry 'd/a' at byte 512: the layer is cut off at byte 10000",
    ),
    "tar with a damaged header": Case(
        archive(TAR[:520] + b"X" + TAR[521:]),
        "ImageError",
        "tar entry 'd/a' at byte 512: the header checksum is wrong",
    ),
    "no tar": Case(
        archive(b"hello world\n" * 100),
        "ImageError",
        r"tar entry 'hello world\nhello world\nhello world\nhello world\nhello world\nhello world\n"
        r"hello world\nhello world\nhell' at byte 0: not a number in the header: b'o world\n'",
    ),
    "content of another layer": Case(
        layer(GOOD.blob),
        "DigestError",
        f"the layer's content is {GOOD.diff_id}, the image's config says {BAD.diff_id}",
        "the image is damaged at its source: push it again",
    ),
    "wrong digest": Case(
        replaced(lambda: digest_of(GZIP), GZIP[:-1] + b"x"),
        "DigestError",
        "the bytes of blob {layer} do not have this digest",
        PUSH_AGAIN,
    ),
    "wrong size": Case(
        replaced(lambda: digest_of(GZIP), GZIP + b"x"),
        "DigestError",
        f"blob {{layer}} has {len(GZIP) + 1} bytes, not {len(GZIP)}",
    ),
    "missing layer": Case(
        replaced(lambda: digest_of(GZIP), None),
        "NotFoundError",
        "blob {layer} is missing",
        INCOMPLETE,
        code=4,
    ),
    "missing config": Case(
        replaced(lambda: str(manifest()["config"]["digest"]), None),
        "NotFoundError",
        "blob {config} is missing",
        INCOMPLETE,
        layer=False,
        code=4,
    ),
    "missing manifest": Case(
        replaced(lambda: str(manifest_entry()["digest"]), None),
        "NotFoundError",
        "manifest {manifest} is missing",
        INCOMPLETE,
        layer=False,
        code=4,
    ),
    "manifest of another digest": Case(
        replaced(lambda: str(manifest_entry()["digest"]), Image([GOOD]).manifest()),
        "DigestError",
        "the bytes of manifest {manifest} do not have this digest",
        layer=False,
    ),
    "layer of an unknown kind": Case(
        media_type("application/vnd.example.layer"),
        "UnsupportedError",
        "it has the unknown media type 'application/vnd.example.layer'",
        CURRENT_TOOL,
    ),
    "encrypted layer": Case(
        media_type("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
        "UnsupportedError",
        "it is encrypted",
        "decrypt the image first, with skopeo copy --decryption-key",
    ),
    "config of an unknown kind": Case(
        edited(lambda document: document["config"].update(mediaType="application/vnd.helm")),
        "UnsupportedError",
        "this is not a container image: its config is application/vnd.helm",
        "name a container image; this is an artifact of another kind",
        layer=False,
    ),
    "manifest of an unknown kind": Case(
        edited(lambda document: document.update(mediaType="application/vnd.example")),
        "UnsupportedError",
        "manifest {manifest} has the unknown media type 'application/vnd.example'",
        CURRENT_TOOL,
        layer=False,
    ),
    "schema 1": Case(
        edited(lambda document: (document.clear(), document.update(schemaVersion=1, fsLayers=[]))),
        "UnsupportedError",
        "manifest {manifest} is of docker's schema 1, which is obsolete",
        "push the image again with a current tool, such as skopeo copy --format v2s2",
        layer=False,
    ),
    "a layer without a size": Case(
        edited(lambda document: document["layers"][1].pop("size")),
        "ImageError",
        "manifest {manifest} is not valid: layers[1] has no size, which the specification requires",
        layer=False,
    ),
    "a layer without a media type": Case(
        edited(lambda document: document["layers"][1].pop("mediaType")),
        "ImageError",
        "manifest {manifest} is not valid: layers[1] has no mediaType, which the specification"
        " requires",
        layer=False,
    ),
    "a config without a digest": Case(
        edited(lambda document: document["config"].pop("digest")),
        "ImageError",
        "manifest {manifest} is not valid: config has no digest, which the specification requires",
        layer=False,
    ),
    "a manifest without a config": Case(
        edited(lambda document: document.pop("config")),
        "ImageError",
        "manifest {manifest} is not valid: it has no config, which the specification requires",
        layer=False,
    ),
    "a digest in upper case": Case(
        edited(lambda document: document["layers"][0].update(digest="SHA256:" + "A" * 64)),
        "ImageError",
        "manifest {manifest} is not valid: Expected a digest such as sha256:<64 digits, in lower"
        " case> - at `$.layers[0].digest`",
        layer=False,
    ),
    "a media type with a parameter": Case(
        media_type("application/vnd.oci.image.layer.v1.tar+gzip; charset=utf-8"),
        "ImageError",
        "manifest {manifest} is not valid: Expected a media type without parameters, such as"
        " text/plain - at `$.layers[1].mediaType`",
        layer=False,
    ),
    "fewer layers than the config has": Case(
        edited(lambda document: document["layers"].pop(0)),
        "ImageError",
        "the manifest has 1 layers, the config names 2",
        layer=False,
    ),
    "more layers than the config has": Case(
        edited(lambda document: document["layers"].append(document["layers"][0])),
        "ImageError",
        "the manifest has 3 layers, the config names 2",
        layer=False,
    ),
    "a layout that is not JSON": Case(
        lambda: [write_layout(Image([BAD]), "in"), Path("in/index.json").write_text("{")],
        "ImageError",
        "index.json is not valid: Input data was truncated",
        layer=False,
    ),
    "a sparse file of petabytes": Case(
        lambda: _write(Layer([Sparse("bomb", size=4096 * TiB, data={1 << 51: b"x" * 512})])),
        "SectorCountError",
        "tar entry 'bomb': a file of 4096.0 TiB needs"
        f" {4096 * TiB // DEFAULT_SECTOR_SIZE} chunks, 1048576 is the limit",
        "convert with a larger --sector-size, or leave the file out of the image",
    ),
    "a hard link to nothing": Case(
        lambda: _write(Layer([Hardlink("link", target="nowhere")])),
        "ImageError",
        "entry 'link': the target 'nowhere' of the hard link does not exist",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_bad_image_gives_one_clear_message(case: Case) -> None:
    case.make()
    names = digests()
    message = case.message.format_map(names)
    named = names["layer"] if case.layer else None
    prefix = f"layer {named}: " if named and named not in message else ""

    ran = firstread("convert", "oci:in:latest", "oci:out:latest")
    assert ran.stderr == f"firstread: oci:in:latest: {prefix}{message}\n  {case.hint}\n"
    assert (ran.code, ran.stdout) == (case.code, "")

    ran = firstread("convert", "oci:in:latest", "oci:out:latest", "--json")
    assert ran.json == {
        "error": case.error,
        "message": message,
        "hint": case.hint,
        "image": "oci:in:latest",
        "layer": named,
        "exit_code": case.code,
        "retryable": False,
    }
    assert (ran.code, ran.stderr) == (case.code, "")
    assert not Path("out/index.json").exists(), "there is a tag"


def digests() -> dict[str, str]:
    """Return the digests that messages may name, as far as these documents exist."""
    names = dict.fromkeys(("manifest", "config", "layer"), "")
    with suppress(OSError, ValueError, LookupError):
        names["manifest"] = manifest_entry()["digest"]
        names["config"] = manifest()["config"]["digest"]
        names["layer"] = manifest()["layers"][-1]["digest"]
    return names


def test_an_image_without_layers_is_a_good_one() -> None:
    write_layout(Image([]), "in")
    for command in (
        ("convert", "oci:in:latest", "oci:out:latest"),
        ("convert", "--attach", "oci:in:latest"),
        ("inspect", "--files", "oci:out:latest"),
        ("verify", "--source", "oci:in:latest", "oci:out:latest"),
        ("verify", "oci:in:latest"),
        ("extract", "oci:out:latest", "tree"),
    ):
        ran = firstread(*command)
        assert ran.code == 0, (command, ran)
    assert list(Path("tree").iterdir()) == []
    checks = {c["name"]: c for c in firstread("doctor", "--json", "oci:out:latest").json["checks"]}
    assert checks["image"]["ok"], checks
