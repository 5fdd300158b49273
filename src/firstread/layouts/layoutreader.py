# SPDX-License-Identifier: Apache-2.0
"""``oci:``: an OCI image layout in a directory, read.

Owns the reading of ``index.json`` (which tag is which manifest) and ``blobs/``; `layoutwriter`
writes them. Invariant: a file in ``blobs`` is complete, and its name is the digest of its bytes.

Source: image-spec v1.1, image-layout.md.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from firstread.errors import (
    DigestError,
    FirstreadError,
    ImageError,
    LimitError,
    NotFoundError,
    SourceError,
    UsageError,
    from_os_error,
)
from firstread.layouts.extent import Extent, ExtentReader, open_regular
from firstread.oci.blobstream import BlobStream, clamp
from firstread.oci.model import (
    MAX_MANIFEST_SIZE,
    Descriptor,
    describe,
    manifest_media_type,
    missing_blob,
    parse_index,
    parse_manifest,
)
from firstread.oci.reference import Reference, is_digest
from firstread.oci.repository import Repository, naming

REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"
MAX_KEPT: Final = 32  # blobs that `prepare` keeps open
MAX_REFERRERS: Final = 256  # manifests of one type that we read to find their subjects


def blob_path(digest: str) -> str:
    """Return where a layout keeps the blob, relative to its root."""
    return "blobs/" + digest.replace(":", "/")


class LayoutReader(Repository):
    """A layout to read, wherever its files are."""

    @abstractmethod
    def _extent(self, path: str) -> Extent | None:
        """Return where the file `path` of the layout is; None if there is none.

        Raises:
            NodeError: it cannot be opened.
        """

    def _no_index(self) -> FirstreadError:
        """Return the error for a place without an index.json."""
        return NotFoundError("there is no image here: index.json is missing")

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
            what = f"manifest {wanted}"
            data = extent.read(MAX_MANIFEST_SIZE, what)
            found = describe(data, manifest_media_type(data, what=what), like=wanted)
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
        """Yield what index.json names."""
        with naming(self.reference):
            extent = self._extent("index.json")
            if extent is None:
                raise self._no_index()
            data = extent.read(MAX_MANIFEST_SIZE, "index.json")
            index = parse_index(data, what="index.json")
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
    """

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self._root = Path(reference.path)
        self._kept: dict[str, int] = {}  # descriptors, by path below the root

    def _no_index(self) -> FirstreadError:
        if self._root.is_dir():
            return super()._no_index()
        if not self._root.exists():
            return NotFoundError(
                f"there is no directory {self.reference.path!r}",
                hint="check the path; one whose last part has a colon needs another at its end",
            )
        return UsageError(
            "this is a file, not a directory with an OCI layout",
            hint=f"name an archive oci-archive:{self.reference.path}"
            f" or docker-archive:{self.reference.path}",
        )

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

    def close(self) -> None:
        while self._kept:
            os.close(self._kept.popitem()[1])


def select(entries: list[Descriptor], name: str | None) -> Descriptor:
    """Return the entry of an index.json that is called `name`; the only one if it is None.

    A tag finds the whole name of an image, too: podman and containerd write whole names.

    Raises:
        NotFoundError: there is none.
        UsageError: there are several.
    """
    if name is None:
        # Artifacts of an image are listed beside it; "the only image" means none of them.
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
        there = f"there are: {known}" if entries else "the layout is empty"
        raise NotFoundError(f"there is no image {name or ''!r} here", hint=there)
    if len({entry.digest for entry in found}) > 1:
        raise UsageError("there are several images here", hint=f"choose one of: {known}")
    return found[0]


def _names(entry: Descriptor) -> list[str]:
    annotations = entry.annotations or {}
    return [annotations[key] for key in (REF_NAME, CONTAINERD_NAME) if key in annotations]
