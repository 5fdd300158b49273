# SPDX-License-Identifier: Apache-2.0
"""``oci:``: an OCI image layout in a directory, read and written.

Owns ``index.json`` (which tag is which manifest) and ``blobs/``. Invariants: a file in ``blobs``
is complete, and its name is the digest of its bytes; ``index.json`` is replaced at once, under a
lock on the directory, and keeps what it said of other images, unknown fields included.

Source: image-spec v1.1, image-layout.md.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from firstread.errors import (
    DigestError,
    ImageError,
    LimitError,
    NotFoundError,
    SourceError,
    UsageError,
    from_os_error,
)
from firstread.oci.extent import Extent, ExtentReader, open_regular
from firstread.oci.ingest import (
    copy_blob,
    link,
    locked,
    remove_stale,
    replacing,
    sync_directory,
    write_all,
)
from firstread.oci.model import (
    INDEXES,
    MAX_MANIFEST_SIZE,
    OCI_INDEX,
    Descriptor,
    Index,
    describe,
    encode,
    manifest_media_type,
    missing_blob,
    parse_index,
    parse_manifest,
    sha256_digest,
    written,
)
from firstread.oci.reference import Reference, is_digest
from firstread.oci.referrers import describe_referrer
from firstread.oci.repository import BlobStream, Progress, Repository, clamp, naming

REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"
MAX_KEPT: Final = 32  # blobs that `prepare` keeps open
MAX_REFERRERS: Final = 256  # manifests of one type that are read to find what they refer to
LAYOUT_FILE: Final = b'{"imageLayoutVersion":"1.0.0"}'


def blob_path(digest: str) -> str:
    """Return where a layout keeps the blob, relative to its root."""
    return "blobs/" + digest.replace(":", "/")


class LayoutReader(Repository):
    """The reading half of a layout, wherever its files are."""

    @abstractmethod
    def _extent(self, path: str) -> Extent | None:
        """Return where the file `path` of the layout is; None if there is none.

        Raises:
            NodeError: it cannot be opened.
        """

    def get_manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        with naming(self.reference):
            wanted = reference or self.reference.digest or self.reference.tag
            if wanted is None or not is_digest(wanted):
                wanted = select(list(self.manifests()), wanted).digest
            extent = self._extent(blob_path(wanted))
            if extent is None:
                raise NotFoundError(
                    f"manifest {wanted} is missing",
                    hint="the image is incomplete: push it again",
                )
            data = extent.read(MAX_MANIFEST_SIZE, "manifest")
            found = describe(data, manifest_media_type(data), like=wanted)
            if found.digest != wanted:
                raise DigestError(f"the bytes of manifest {wanted} do not have this digest")
            return found, data

    def open_blob(
        self, blob: Descriptor, *, offset: int = 0, length: int | None = None
    ) -> BlobStream:
        with naming(self.reference):
            count = clamp(blob, offset, length)
            extent = self._extent(blob_path(blob.digest))
            if extent is None:
                raise missing_blob(blob)
            reader = ExtentReader(extent, offset, count)
            if extent.size != blob.size:
                reader.close()
                raise DigestError(f"blob {blob.digest} has {extent.size} bytes, not {blob.size}")
        return BlobStream(
            blob,
            reader,
            length=count,
            verify=count == blob.size,
            image=str(self.reference),
        )

    def has_blob(self, blob: Descriptor) -> bool:
        with naming(self.reference):
            extent = self._extent(blob_path(blob.digest))
            if extent is None:
                return False
            ExtentReader(extent).close()
            return extent.size == blob.size

    def manifests(self) -> Iterator[Descriptor]:
        with naming(self.reference):
            extent = self._extent("index.json")
            if extent is None:
                raise NotFoundError(
                    "there is no image here: index.json is missing",
                    hint="a colon in a path is taken for the start of the tag; end it with a colon",
                )
            try:
                index = parse_index(extent.read(MAX_MANIFEST_SIZE, "index.json"))
            except ImageError as exc:
                exc.message = f"index.json: {exc.message}"
                raise
        yield from index.manifests

    def referrers(self, subject: str, artifact_type: str) -> list[Descriptor]:
        """Return them in the order of index.json, which lists artifacts beside the images."""
        found = {}
        listed = [entry for entry in self.manifests() if entry.artifact_type == artifact_type]
        with naming(self.reference):
            if len(listed) > MAX_REFERRERS:
                raise LimitError(f"there are {len(listed)} artifacts of one type here")
            for entry in listed:
                try:
                    manifest = parse_manifest(self.get_manifest(entry.digest)[1])
                except (ImageError, NotFoundError):
                    continue  # it must not hide those beside it
                if manifest.subject is not None and manifest.subject.digest == subject:
                    found[entry.digest] = entry
        return list(found.values())


class LayoutDirectory(LayoutReader):
    """A layout in a directory.

    Args:
        reference: its path and the image in it.
        create: make it an (empty) layout if it is none.

    Raises:
        UsageError: it is to be created, but the directory holds something else.
        NodeError: it cannot be created.
    """

    def __init__(self, reference: Reference, *, create: bool = False) -> None:
        super().__init__(reference)
        self._root = Path(reference.path)
        self._kept: dict[str, int] = {}  # descriptors, by path below the root
        if create:
            with naming(reference):
                self._create()
            self.scratch_dir = self._root

    def _create(self) -> None:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with locked(self._root):
                remove_stale(self._root)
                if (self._root / "oci-layout").exists():
                    return
                if any(self._root.iterdir()):
                    raise UsageError(
                        "the directory is not empty and no OCI layout",
                        hint="name a new or empty directory, or an OCI layout",
                    )
                with replacing(self._root / "oci-layout") as file:
                    write_all(file, LAYOUT_FILE)
        except OSError as exc:
            raise from_os_error(exc, "cannot create the OCI layout") from exc

    def prepare(self, blobs: Iterable[Descriptor]) -> None:
        for path in (blob_path(blob.digest) for blob in blobs):
            if path not in self._kept and len(self._kept) < MAX_KEPT:
                with contextlib.suppress(OSError, SourceError):
                    self._kept[path] = open_regular(self._root / path)

    def _extent(self, path: str) -> Extent | None:
        try:
            kept = self._kept.get(path)
            fd = open_regular(self._root / path) if kept is None else os.dup(kept)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise from_os_error(exc, "cannot open") from exc
        return Extent(fd, 0, os.fstat(fd).st_size, owned=True)

    def put_blob(
        self,
        blob: Descriptor,
        file: BinaryIO,
        *,
        on_progress: Progress | None = None,
        verified: bool = False,
    ) -> bool:
        if self._is_whole(blob):
            return False
        with naming(self.reference):
            try:
                self._write(blob, file, on_progress, verified=verified)
            except OSError as exc:
                raise from_os_error(exc, f"cannot write blob {blob.digest}") from exc
        return True

    def _is_whole(self, blob: Descriptor) -> bool:
        """Return whether the blob is there and undamaged: who brings its bytes can repair it."""
        if not self.has_blob(blob):
            return False
        try:
            with self.open_blob(blob) as stream:
                for _ in stream:
                    pass
        except DigestError:
            return False
        return True

    def _write(
        self, blob: Descriptor, file: BinaryIO, progress: Progress | None, *, verified: bool
    ) -> None:
        target = self._root / blob_path(blob.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        if verified and link(file, blob.size, target):
            sync_directory(target.parent)
            return
        # Written at the root: tools that check a layout expect only digests below blobs.
        with replacing(target, at=self._root) as temporary:
            copy_blob(blob, file, temporary, progress, verified=verified)

    def put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Descriptor:
        manifest = describe(data, media_type)
        with naming(self.reference):
            try:
                target = self._root / blob_path(manifest.digest)
                target.parent.mkdir(parents=True, exist_ok=True)
                with replacing(target, at=self._root) as file:
                    write_all(file, data)
                sync_directory(target.parent)
                with locked(self._root):
                    self._publish(manifest, data, tag)
                sync_directory(self._root)
            except OSError as exc:
                raise from_os_error(exc, "cannot write the manifest") from exc
        return manifest

    def put_referrer(self, data: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        subject, _ = describe_referrer(data, media_type)
        digest = sha256_digest(data)
        known = parse_manifest(data, media_type).artifact_type or ""
        there = any(entry.digest == digest for entry in self.referrers(subject.digest, known))
        if there and tag is None:
            return describe(data, media_type)
        return self.put_manifest(data, media_type, tag)

    def _publish(self, manifest: Descriptor, data: bytes, tag: str | None) -> None:
        """Write the new index.json; the lock is held."""
        extent = self._extent("index.json")
        old = extent.read(MAX_MANIFEST_SIZE, "index.json") if extent else None
        with replacing(self._root / "index.json") as file:
            write_all(file, updated_index(old, manifest, data, tag))

    def close(self) -> None:
        while self._kept:
            os.close(self._kept.popitem()[1])


def select(entries: list[Descriptor], name: str | None) -> Descriptor:
    """Return the entry of an index.json that is called `name`; the only one if it is None.

    The whole name of an image is found by its tag, too: podman and containerd write whole names.

    Raises:
        NotFoundError: there is none.
        UsageError: there are several.
    """
    if name is None:
        # What belongs to an image is listed beside it, and is not what "the only image" means.
        entries = [e for e in entries if not e.artifact_type or _names(e)] or entries
    names = [_names(entry) for entry in entries]
    found = [e for e, own in zip(entries, names, strict=True) if name is None or name in own]
    if not found:
        tail = f":{name}"
        found = [
            e for e, own in zip(entries, names, strict=True) if any(n.endswith(tail) for n in own)
        ]
    known = ", ".join(sorted({n for own in names for n in own[:1]})) or "images without a tag"
    if not found:
        there = f"there are: {known}" if entries else "the place is empty"
        raise NotFoundError(f"there is no image {name or ''!r} here", hint=there)
    if len({entry.digest for entry in found}) > 1:
        raise UsageError("there are several images here", hint=f"choose one of: {known}")
    return found[0]


def _names(entry: Descriptor) -> list[str]:
    annotations = entry.annotations or {}
    return [annotations[key] for key in (REF_NAME, CONTAINERD_NAME) if key in annotations]


def _digest_and_name(entry: object) -> tuple[object, object]:
    """Return them of an entry as it is written; None where it is damaged, and stays as it is."""
    if not isinstance(entry, dict):
        return None, None
    annotations = entry.get("annotations")
    return entry.get("digest"), annotations.get(REF_NAME) if isinstance(annotations, dict) else None


def updated_index(old: bytes | None, manifest: Descriptor, data: bytes, tag: str | None) -> bytes:
    """Return the index.json that names `manifest` by `tag`, and else says what `old` said.

    Without a tag the manifest is listed without a name. Children of a new index lose such an
    entry: they are reached through the index, and a reader that names no tag must find one image.

    Args:
        old: the present document, if there is one.
        manifest: what is published.
        data: its bytes.
        tag: its name.

    Raises:
        ImageError: `old` is not valid.
    """
    document: dict[str, Any] = {"schemaVersion": 2}
    if old is not None:
        parse_index(old)
        document = written(old, Index, "index.json")
    document.setdefault("mediaType", OCI_INDEX)
    nameless = {manifest.digest}
    if manifest.media_type in INDEXES:
        nameless |= {child.digest for child in parse_index(data, manifest.media_type).manifests}
    kept = []
    for entry in document.get("manifests") or []:
        digest, name = _digest_and_name(entry)
        if (name is None and digest not in nameless) or (name is not None and name != tag):
            kept.append(entry)
    named = {} if tag is None else {"annotations": {REF_NAME: tag}}
    new: dict[str, Any] = {
        "mediaType": manifest.media_type,
        "digest": manifest.digest,
        "size": manifest.size,
    }
    if (artifact_type := parse_manifest(data, manifest.media_type).artifact_type) is not None:
        new["artifactType"] = artifact_type  # which finds it without reading it
    document["manifests"] = [*kept, new | named]
    return encode(document)
