# SPDX-License-Identifier: Apache-2.0
"""Layers that are packed already: the local cache, and the record in a destination's image.

Owns the memory of work done. An entry says what packing a layer with certain parameters gave: the
sector blob's descriptor and the layer record; and in which repository the blob is, since it is kept
nowhere else. Invariant: an entry is complete or not there, and one that cannot be read counts as
not there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from firstread.convert.pack import PackedLayer
from firstread.convert.record import LayerRecord, Parameters
from firstread.errors import FirstreadError, ImageError, UsageError
from firstread.oci.model import Descriptor, Manifest
from firstread.oci.repository import Repository
from firstread.sectors.format import SECTORS_MEDIA_TYPE, SKIPPABLE_RECORD, unpack_skippable
from firstread.sectors.image import PARAMETERS, RECORD, SOURCE_DIFF_ID
from firstread.units import MiB

DIGEST_SIZE = hashlib.sha256().digest_size
MAX_CACHE_SIZE = 512 * MiB  # of records; the longest unused go first


def default_cache_dir() -> Path:
    """Return where records are kept: ``$FIRSTREAD_CACHE``, else under ``$XDG_CACHE_HOME``.

    Raises:
        UsageError: neither is set, and there is no home directory.
    """
    if given := os.environ.get("FIRSTREAD_CACHE"):
        return Path(given)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as exc:
        raise UsageError(
            "there is no home directory to keep a cache in",
            hint="set FIRSTREAD_CACHE to a directory, or use --no-cache",
        ) from exc
    return Path(base) / "firstread"


class _Known(msgspec.Struct, frozen=True):
    """What is kept of a packed layer.

    Args:
        packed: the layer.
        place: the repository that its blob was put into, ``host/name``; empty if it was a disk.
    """

    packed: PackedLayer
    place: str = ""


class LayerCache:
    """Packed layers by the diff_id of the source layer and the parameters.

    Args:
        directory: made when the first entry is stored.
        max_size: bytes of all entries.
    """

    def __init__(self, directory: Path, max_size: int = MAX_CACHE_SIZE) -> None:
        self._directory = directory / "layers"
        self._max_size = max_size

    def get(self, diff_id: str, parameters: Parameters) -> PackedLayer | None:
        """Return the packed layer, or None if it is not known."""
        known = self._read(diff_id, parameters)
        return known.packed if known is not None else None

    def place(self, diff_id: str, parameters: Parameters) -> str:
        """Return the repository that the layer's blob was put into, ``host/name``, or nothing."""
        known = self._read(diff_id, parameters)
        return known.place if known is not None else ""

    def _read(self, diff_id: str, parameters: Parameters) -> _Known | None:
        path = self._path(diff_id, parameters)
        try:
            entry = path.read_bytes()
            digest, data = entry[:DIGEST_SIZE], entry[DIGEST_SIZE:]
            if hashlib.sha256(data).digest() != digest:
                return None
            known = msgspec.msgpack.decode(data, type=_Known)
            record = LayerRecord.decode(known.packed.record)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, ImageError):
            return None
        if (record.diff_id, record.parameters) != (diff_id, parameters.key):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return known

    def put(
        self, packed: PackedLayer, diff_id: str, parameters: Parameters, place: str = ""
    ) -> None:
        """Remember a packed layer; a cache that cannot be written is no error."""
        path = self._path(diff_id, parameters)
        data = msgspec.msgpack.encode(_Known(packed, place))
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                try:
                    file.write(hashlib.sha256(data).digest())
                    file.write(data)
                    file.flush()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
            self._prune()

    def _path(self, diff_id: str, parameters: Parameters) -> Path:
        name = hashlib.sha256(f"{diff_id} {parameters.key}".encode()).hexdigest()
        return self._directory / name

    def _prune(self) -> None:
        entries = [(e.stat().st_mtime, e.stat().st_size, e.path) for e in self._scan()]
        excess = sum(size for _, size, _ in entries) - self._max_size
        for _, size, path in sorted(entries):
            if excess <= 0:
                break
            os.unlink(path)
            excess -= size

    def _scan(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self._directory) as entries:
            yield from entries


def record_annotations(packed: PackedLayer, diff_id: str) -> dict[str, str]:
    """Return the annotations of a sector blob that let a later conversion reuse it."""
    digest = hashlib.sha256(packed.record).hexdigest()
    return {
        SOURCE_DIFF_ID: diff_id,
        RECORD: f"{packed.record_offset} {packed.size - packed.record_offset} sha256:{digest}",
    }


class RecordedLayers:
    """Packed layers that an image in the destination names.

    Args:
        repository: where the image is.
        manifest: of a firstread image.
        diff_ids: of the image's config.
    """

    def __init__(self, repository: Repository, manifest: Manifest, diff_ids: list[str]) -> None:
        self._repository = repository
        self._parameters = (manifest.annotations or {}).get(PARAMETERS)
        self._blobs = {
            (blob.annotations or {}).get(SOURCE_DIFF_ID): (blob, diff_id)
            for blob, diff_id in zip(manifest.layers, diff_ids, strict=False)
            if blob.media_type == SECTORS_MEDIA_TYPE
        }

    def get(self, diff_id: str, parameters: Parameters) -> PackedLayer | None:
        """Return the packed layer, its record read from the end of its blob; None if unknown."""
        if self._parameters != parameters.key or diff_id not in self._blobs:
            return None
        blob, blob_diff_id = self._blobs[diff_id]
        try:
            offset, length, digest = _parse_record((blob.annotations or {}).get(RECORD, ""), blob)
            with self._repository.open_blob(blob, offset=offset, length=length) as stream:
                data = b"".join(stream)
            record = unpack_skippable(SKIPPABLE_RECORD, data)
            if "sha256:" + hashlib.sha256(record).hexdigest() != digest:
                return None
            found = LayerRecord.decode(record)
            if (found.diff_id, found.parameters) != (diff_id, parameters.key):
                return None
        except FirstreadError:
            return None  # what cannot be read is packed again
        return PackedLayer(record, offset, blob.digest, blob.size, blob_diff_id)


def _parse_record(text: str, blob: Descriptor) -> tuple[int, int, str]:
    try:
        offset, length, digest = text.split(" ")
        place = int(offset), int(length), digest
    except ValueError as exc:
        raise ImageError(f"the annotation {RECORD} is not one") from exc
    if place[0] < 0 or place[1] <= 0 or place[0] + place[1] != blob.size:
        raise ImageError(f"the annotation {RECORD} points outside its blob")
    return place
