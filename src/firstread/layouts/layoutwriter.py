# SPDX-License-Identifier: Apache-2.0
"""``oci:``: an OCI image layout in a directory, written.

Owns the writing of ``index.json`` and ``blobs/``. Invariants: a blob appears under its name when it
is complete; a new ``index.json`` appears at once, under a lock on the directory, and keeps what the
old one said of other images, unknown fields included.

Source: image-spec v1.1, image-layout.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from firstread.errors import DigestError, UsageError, from_os_error
from firstread.layouts.ingest import (
    copy_blob,
    link,
    locked,
    open_scratch,
    remove_stale,
    replacing,
    sync_directory,
    write_all,
)
from firstread.layouts.layoutreader import REF_NAME, LayoutDirectory, blob_path
from firstread.oci.model import (
    INDEXES,
    MAX_MANIFEST_SIZE,
    OCI_INDEX,
    Descriptor,
    Index,
    describe,
    encode,
    parse_index,
    parse_manifest,
    sha256_digest,
)
from firstread.oci.reference import Reference
from firstread.oci.referrers import describe_referrer
from firstread.oci.repository import Destination, Progress, naming
from firstread.oci.untrusted import written

LAYOUT_FILE: Final = b'{"imageLayoutVersion":"1.0.0"}'


class LayoutDestination(LayoutDirectory, Destination):
    """A layout in a directory, to write.

    The first blob makes a new layout, so that a command which fails before leaves nothing. Nobody
    has to remove a layout then, in which another command may have begun to write.

    Raises:
        UsageError: the directory holds something else.
        NodeError: it cannot be created.
    """

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        with naming(reference), self._creating():
            self.scratch_dir = self._look()

    @contextmanager
    def _creating(self) -> Iterator[None]:
        try:
            yield
        except FileExistsError as exc:
            raise UsageError(
                f"{self.reference.path!r} is a file, and an OCI layout is a directory",
                hint="name a new or empty directory, or an OCI layout",
            ) from exc
        except OSError as exc:
            exc.filename = str(self._root)  # not a temporary file, or the directory above
            raise from_os_error(exc, "cannot create the OCI layout") from exc

    def _look(self) -> Path:
        """Return the directory, or the one that a new layout goes to, after a trial of writing."""
        if self._root.is_dir():
            with locked(self._root):
                remove_stale(self._root)
                if self._is_made():
                    return self._root
                if any(self._root.iterdir()):
                    raise UsageError(
                        "the directory is not empty and no OCI layout",
                        hint="name a new or empty directory, or an OCI layout",
                    )
        elif os.path.lexists(self._root):
            if self._root.is_dir():
                return self._look()  # another command has made it just now
            raise FileExistsError
        found = next(path for path in (self._root, *self._root.parents) if os.path.lexists(path))
        open_scratch(found).close()
        return found

    def _is_made(self) -> bool:
        return (self._root / "oci-layout").exists()

    def _make(self) -> None:
        """Make the layout if there is none."""
        if self._is_made():
            return
        with self._creating():
            self._root.mkdir(parents=True, exist_ok=True)
            with locked(self._root):
                if not self._is_made():
                    with replacing(self._root / "oci-layout") as file:
                        write_all(file, LAYOUT_FILE)

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
        """Return whether the blob is there and undamaged; if not, the caller's bytes repair it."""
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
        self._make()
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
                self._make()
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


def _digest_and_name(entry: object) -> tuple[object, object]:
    """Return digest and name of an entry as written; None where it is damaged, and stays so."""
    if not isinstance(entry, dict):
        return None, None
    annotations = entry.get("annotations")
    return entry.get("digest"), annotations.get(REF_NAME) if isinstance(annotations, dict) else None


def updated_index(old: bytes | None, manifest: Descriptor, data: bytes, tag: str | None) -> bytes:
    """Return the index.json that names `manifest` by `tag`, and else says what `old` said.

    Without a tag the entry has no name. Children of a new index lose such an entry: the index
    leads to them, and a reader that names no tag must find one image.

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
