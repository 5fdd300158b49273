# SPDX-License-Identifier: Apache-2.0
"""``oci-archive:``: an OCI image layout in one tar file.

Owns reading the layout in place, by offsets, and writing it. Invariants: nothing unpacks the file;
a written archive appears under its name when `close` succeeds, whole or not at all, and its bytes
depend only on the order of what was put into it.
"""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from firstread.errors import ImageError, NotFoundError, UsageError, from_os_error
from firstread.layouts.extent import Extent, open_regular
from firstread.layouts.ingest import (
    commit,
    copy_blob,
    remove_stale,
    sync_directory,
    temporary_file,
    write_all,
)
from firstread.layouts.layoutreader import LayoutReader, blob_path
from firstread.layouts.layoutwriter import LAYOUT_FILE, updated_index
from firstread.layouts.tarindex import BLOCK, EXPECTED, TarIndex
from firstread.oci.model import Descriptor, describe
from firstread.oci.reference import Reference
from firstread.oci.repository import Destination, Progress, naming

_END: Final = bytes(2 * BLOCK)
_KINDS: Final = {
    "oci-archive": ("index.json", "an OCI layout"),
    "docker-archive": ("manifest.json", "an archive of docker save"),
}
"""What leads to the images of an archive, and its name, by transport; docker save writes both."""


def open_archive(reference: Reference) -> tuple[int, TarIndex]:
    """Open the tar file that `reference` names; return its descriptor and its members.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it is a directory, or an archive of the other kind.
        ImageError: it is not an uncompressed tar archive of images.
        NodeError: it cannot be read.
    """
    with naming(reference):
        try:
            fd = open_regular(reference.path)
        except FileNotFoundError as exc:
            raise NotFoundError(f"there is no file {reference.path!r}") from exc
        except OSError as exc:
            raise from_os_error(exc, "cannot open") from exc
        try:
            index = TarIndex(fd)
            _check_kind(reference, index)
        except BaseException as exc:
            os.close(fd)
            if isinstance(exc, IsADirectoryError):
                raise UsageError(
                    "this is a directory, not a tar archive",
                    hint=f"name an OCI layout in a directory oci:{reference.path}",
                ) from exc
            if isinstance(exc, OSError):
                raise from_os_error(exc, "cannot read the archive") from exc
            raise
        return fd, index


def _check_kind(reference: Reference, index: TarIndex) -> None:
    """Check that an archive is of the kind that `reference` names it.

    Raises:
        UsageError: it is of the other one.
        ImageError: it is of neither.
    """
    found = [kind for kind, (name, _) in _KINDS.items() if index.find(name)]
    if not found:
        raise ImageError(
            "the archive has no image in it: it has neither index.json nor manifest.json",
            hint=EXPECTED,
        )
    if reference.transport not in found:
        raise UsageError(
            f"this is {_KINDS[found[0]][1]}, not {_KINDS[reference.transport][1]}",
            hint=f"name it {found[0]}:{reference.path}",
        )


class OciArchive(LayoutReader):
    """An archive to read."""

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self._fd, self._index = open_archive(reference)
        self._open = True

    def _extent(self, path: str) -> Extent | None:
        member = self._index.find(path)
        return Extent(self._fd, member.offset, member.size) if member else None

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._fd)


class OciArchiveWriter(LayoutReader, Destination):
    """An archive to write; it replaces a regular file of the same name, and nothing else.

    Unlike other destinations it publishes in `close`: one file has one moment to appear. It does
    not appear without a manifest, or if an exception leaves the context.
    """

    def __init__(self, reference: Reference) -> None:
        super().__init__(reference)
        self._target = Path(os.path.realpath(reference.path))  # a link stays
        self._members: dict[str, Extent] = {}
        self._index: bytes | None = None
        self._lock = threading.Lock()
        self._open = True
        with naming(reference):
            try:
                if self._target.exists() and not self._target.is_file():
                    raise UsageError(
                        f"{reference.path!r} is not a file", hint="an archive is a regular file"
                    )
                self._target.parent.mkdir(parents=True, exist_ok=True)
                remove_stale(self._target.parent)
                self._file, self._temporary = temporary_file(self._target.parent)
            except OSError as exc:
                raise from_os_error(exc, "cannot create the archive") from exc

    def put_blob(
        self,
        blob: Descriptor,
        file: BinaryIO,
        *,
        on_progress: Progress | None = None,
        verified: bool = False,
    ) -> bool:
        path = blob_path(blob.digest)
        with naming(self.reference), self._lock:
            if path in self._members:
                return False
            with self._member(path, blob.size) as target:
                copy_blob(blob, file, target, on_progress, verified=verified)
            return True

    def put_manifest(self, data: bytes, media_type: str, tag: str | None) -> Descriptor:
        manifest = describe(data, media_type)
        path = blob_path(manifest.digest)
        with naming(self.reference), self._lock:
            if path not in self._members:
                with self._member(path, len(data)) as target:
                    write_all(target, data)
            self._index = updated_index(self._index, manifest, data, tag)
        return manifest

    def close(self) -> None:
        """Publish the archive, if it has a manifest. May be called again.

        Raises:
            NodeError: the disk refuses; the file that had the name before is still there.
        """
        if not self._open:
            return
        try:
            with naming(self.reference):
                if self._index is not None:
                    self._publish(self._index)
        finally:
            self._discard()

    def __exit__(self, *raised: object) -> None:
        if any(raised):
            self._discard()
        self.close()

    def _extent(self, path: str) -> Extent | None:
        return self._members.get(path)

    @contextmanager
    def _member(self, name: str, size: int) -> Iterator[BinaryIO]:
        """Give the file to write the `size` bytes of one member to; the lock is held."""
        start = self._file.tell()
        info = tarfile.TarInfo(name)
        info.size = size
        try:
            write_all(self._file, info.tobuf(tarfile.PAX_FORMAT))
            offset = self._file.tell()
            yield self._file
            write_all(self._file, bytes(-size % BLOCK))
        except BaseException as exc:
            self._file.seek(start)
            self._file.truncate()
            if isinstance(exc, OSError):
                raise from_os_error(exc, f"cannot write {name} to the archive") from exc
            raise
        self._members[name] = Extent(self._file.fileno(), offset, size)

    def _publish(self, index: bytes) -> None:
        for name, data in (("oci-layout", LAYOUT_FILE), ("index.json", index)):
            with self._member(name, len(data)) as target:
                write_all(target, data)
        try:
            write_all(self._file, _END)
            commit(self._file, self._temporary, self._target)
            sync_directory(self._target.parent)
        except OSError as exc:
            raise from_os_error(exc, "cannot write the archive") from exc

    def _discard(self) -> None:
        if self._open:
            self._open = False
            self._file.close()
            self._temporary.unlink(missing_ok=True)
