# SPDX-License-Identifier: Apache-2.0
"""From a manifest to a checked image: what fits together opens, all else is refused."""

from __future__ import annotations

import errno
import hashlib
import io
import tempfile
import time
from typing import Any

import msgspec
import pytest
import zstandard

from firstread.errors import (
    DigestError,
    ImageError,
    LimitError,
    NodeError,
    NotFoundError,
    UnsupportedError,
)
from firstread.oci.model import Descriptor, Manifest
from firstread.sectors.format import MAX_METADATA_SIZE
from firstread.sectors.image import (
    check_manifest,
    fetch_image,
    is_block_image,
    open_image,
    write_metadata,
)
from firstread.testing.images import File, Image, Layer, feature_image
from firstread.testing.packed import MemoryRepository, converted, opened
from firstread.units import MiB

IMAGE = Image([Layer([File("a", b"a" * 100_000)]), Layer([File("b", b"b" * 70_000)])])


def metadata_of(place: MemoryRepository, manifest: Manifest) -> bytes:
    layer = place.blobs[manifest.layers[0].digest]
    return zstandard.ZstdDecompressor().decompressobj().decompress(layer)


def with_layer(manifest: Manifest, number: int, **change: Any) -> Manifest:
    layers = list(manifest.layers)
    layers[number] = msgspec.structs.replace(layers[number], **change)
    return msgspec.structs.replace(manifest, layers=layers)


def test_opens() -> None:
    place, manifest = converted(feature_image())
    image = opened(place, manifest)
    assert image.blobs == manifest.layers[1:]
    assert len(image.index.sectors) == len(image.erofs.devices)
    assert place.reads.total() == 1
    assert is_block_image(manifest)


def test_an_ordinary_image() -> None:
    source = MemoryRepository()
    manifest = source.add(IMAGE).manifest
    assert not is_block_image(manifest)
    with pytest.raises(UnsupportedError, match="ordinary image") as caught:
        check_manifest(manifest)
    assert "firstread convert" in (caught.value.hint or "")
    with pytest.raises(UnsupportedError):
        check_manifest(msgspec.structs.replace(manifest, layers=[]))


@pytest.mark.parametrize(
    ("number", "change", "error"),
    [
        (
            1,
            {"media_type": "application/vnd.oci.image.layer.firstread.sectors.v2+zstd"},
            UnsupportedError,
        ),
        (
            0,
            {"media_type": "application/vnd.oci.image.layer.firstread.metadata.v2+zstd"},
            UnsupportedError,
        ),
        (0, {"size": MAX_METADATA_SIZE + 1}, LimitError),
        (1, {"size": 5}, ImageError),
        (1, {"digest": "sha256:" + "0" * 64}, ImageError),
        (1, {"digest": "sha512:" + "0" * 128}, ImageError),
    ],
)
def test_manifests_that_do_not_fit(
    number: int, change: dict[str, Any], error: type[ImageError]
) -> None:
    place, manifest = converted(IMAGE)
    with pytest.raises(error):
        open_image(with_layer(manifest, number, **change), metadata_of(place, manifest))


def test_the_blobs_have_an_order() -> None:
    place, manifest = converted(IMAGE)
    metadata, one, two = manifest.layers
    for layers in ([metadata, two, one], [metadata, one], [metadata, one, two, two]):
        with pytest.raises(ImageError, match="different blobs"):
            open_image(
                msgspec.structs.replace(manifest, layers=layers), metadata_of(place, manifest)
            )


def test_metadata_of_another_image() -> None:
    _, manifest = converted(IMAGE)
    with pytest.raises(ImageError, match="different blobs"):
        open_image(manifest, metadata_of(*converted(Image([IMAGE.layers[0]]))))


@pytest.mark.parametrize("size", [0, 1, 31, 32, 1024, 4095, 4096, -4096, -1])
def test_metadata_that_is_cut_off(size: int) -> None:
    place, manifest = converted(IMAGE)
    with pytest.raises(ImageError):
        open_image(manifest, metadata_of(place, manifest)[:size])


# -- the layer --------------------------------------------------------------------------------


def compressed(content: bytes, **options: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(**options)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(content) + stream.flush()


def test_a_layer_in_any_pieces() -> None:
    content = hashlib.sha256(b"x").digest() * 10_000
    for step in (1, 1000, 1023, 1024, 1025, 1 << 20):
        layer = compressed(content)
        out = io.BytesIO()
        size = write_metadata((layer[at : at + step] for at in range(0, len(layer), step)), out)
        assert (size, out.getvalue()) == (len(content), content)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (b"", "cut off"),
        (compressed(b"x" * 5000)[:-1], "cut off"),
        (compressed(b"x" * 5000) + b"\0", "goes on"),
        (compressed(b"x" * 5000) * 2, "goes on"),
        (compressed(b"x" * 5000) + bytes(5000), "goes on"),
        (b"\x1f\x8b" + bytes(100), "cannot be decompressed"),
        (compressed(b"x" * (9 << 20), window_log=24), "cannot be decompressed"),
    ],
)
def test_damaged_metadata_layers(layer: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        write_metadata([layer], io.BytesIO())


def test_layers_that_another_program_has_rewritten() -> None:
    """As ``nerdctl image convert --zstd`` does, and ``ctr images convert --uncompress``."""
    place, manifest = converted(IMAGE)
    retyped = [
        msgspec.structs.replace(layer, media_type="application/vnd.oci.image.layer.v1.tar+zstd")
        for layer in manifest.layers
    ]
    with pytest.raises(UnsupportedError, match=r"media type .*\.tar\+zstd") as caught:
        check_manifest(msgspec.structs.replace(manifest, layers=retyped))
    assert "another program has rewritten it" in (caught.value.hint or "")
    with pytest.raises(ImageError) as raised:
        write_metadata([metadata_of(place, manifest)], io.BytesIO())
    assert "another program has rewritten it" in (raised.value.hint or "")


class Counted(io.RawIOBase):
    """A file that only counts."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.largest = max(self.largest, len(data))
        return len(data)


def test_a_bomb_is_refused_at_the_limit() -> None:
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    zeros = bytes(16 * MiB)
    bomb = [stream.compress(zeros) for _ in range(65)] + [stream.flush()]
    out = Counted()
    started = time.process_time()
    with pytest.raises(LimitError, match=r"larger than 1\.0 GiB"):
        write_metadata(bomb, out)  # type: ignore[arg-type]
    assert time.process_time() - started < 30
    assert out.largest <= 33 * MiB


def fetch(place: MemoryRepository, manifest: Manifest) -> None:
    with tempfile.TemporaryFile() as file:
        fetch_image(place, manifest, file)


def test_damage_on_the_way() -> None:
    place, manifest = converted(IMAGE)
    digest = manifest.layers[0].digest
    whole = place.blobs[digest]
    for damaged in (whole[:-1], whole + b"\0", whole[:50] + b"\0" + whole[51:]):
        place.blobs[digest] = damaged
        with pytest.raises(ImageError):
            fetch(place, manifest)
    place.blobs[digest] = bytes(len(whole))
    with pytest.raises(ImageError):
        fetch(place, manifest)
    del place.blobs[digest]
    with pytest.raises(NotFoundError):
        fetch(place, manifest)


def test_an_empty_layer() -> None:
    place, manifest = converted(IMAGE)
    empty = compressed(b"")
    digest = "sha256:" + hashlib.sha256(empty).hexdigest()
    place.blobs[digest] = empty
    with pytest.raises(ImageError, match="empty"):
        fetch(place, with_layer(manifest, 0, digest=digest, size=len(empty)))


def test_the_digest_of_the_layer_is_verified() -> None:
    place, manifest = converted(IMAGE)
    other = compressed(metadata_of(place, manifest))
    wrong = with_layer(manifest, 0, size=len(other))
    place.blobs[manifest.layers[0].digest] = other
    with pytest.raises(DigestError):
        fetch(place, wrong)


def test_a_full_disk() -> None:
    class Full(io.BytesIO):
        def write(self, data: Any, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NodeError, match="No space left"):
        fetch_image(*converted(IMAGE), Full())


def test_media_types_are_what_the_format_says() -> None:
    _, manifest = converted(IMAGE)
    assert [layer.media_type.rpartition(".")[2] for layer in manifest.layers] == [
        "v1+zstd",
        "v1+zstd",
        "v1+zstd",
    ]
    assert isinstance(manifest.config, Descriptor)
