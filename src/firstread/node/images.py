# SPDX-License-Identifier: Apache-2.0
"""The images of a node: manifest, config and metadata on disk, checked once, by digest.

Layout below the root::

    images/<digest of the manifest>/   complete, or not there
        manifest.json  config.json  metadata
    references/<digest of the name>    the digest of the converted image that a name, or the digest
                                       of an original, stood for when it was last asked for, and
                                       on the next line the name

The time of an image's directory is when it was last mounted or unmounted.

Invariant: what `load` opens was validated when it was stored, so opening it again costs nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstread.erofs.reader import validate
from firstread.errors import FirstreadError, ImageError, NodeError, NotFoundError, from_os_error
from firstread.node.filling import Wanted
from firstread.oci.ingest import sync_directory
from firstread.oci.model import Manifest, diff_ids, parse_config, parse_manifest
from firstread.oci.reference import Reference, is_digest
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage
from firstread.sectors.attached import resolve_converted
from firstread.sectors.image import BlockImage, fetch_image, open_image

log = logging.getLogger("images")

METADATA = "metadata"  # name of the file
ATTEMPTS = 5  # to open an image before somebody prunes it


@dataclass(frozen=True)
class NodeImage:
    """An image on this node.

    Args:
        digest: of its manifest.
        directory: where it is.
        block_image: opened.
        config: image config.
    """

    digest: str
    directory: Path
    block_image: BlockImage
    config: dict[str, Any]

    @property
    def metadata(self) -> Path:
        return self.directory / METADATA

    def ids(self) -> list[bytes]:
        """Return the sector ids in order of device slots."""
        return [sector.id for sector in self.block_image.index.sectors]

    def wanted(self, slot: int) -> Wanted:
        """Return what a lane needs to fetch the sector of a slot."""
        index = self.block_image.index
        entry = index.sectors[slot]
        return Wanted(entry, self.block_image.blobs[entry.blob], index.geometry)


class SectorMap:
    """Finds sectors of one image by id and by place in their blob."""

    def __init__(self, image: NodeImage) -> None:
        self.image = image
        sectors = image.block_image.index.sectors
        self._by_id = {sector.id: slot for slot, sector in enumerate(sectors)}
        self._by_place = {(s.blob, s.offset): slot for slot, s in enumerate(sectors)}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._by_id)

    def __contains__(self, sector_id: object) -> bool:
        return sector_id in self._by_id

    def find(self, sector_id: bytes) -> Wanted | None:
        """Return the sector with this id."""
        slot = self._by_id.get(sector_id)
        return None if slot is None else self.image.wanted(slot)

    def behind(self, sector: Wanted) -> Wanted | None:
        """Return the sector that begins where `sector` ends in its blob."""
        entry = sector.entry
        slot = self._by_place.get((entry.blob, entry.offset + entry.length))
        return None if slot is None else self.image.wanted(slot)


class ImageStore:
    """The images below `root`.

    Args:
        root: directory.
        tidy: remove what was never complete; only for the one who fetches.
    """

    def __init__(self, root: Path, *, tidy: bool = True) -> None:
        self._images = root / "images"
        self._references = root / "references"
        for directory in (self._images, self._references):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._images.glob("tmp*") if tidy else ():
            shutil.rmtree(leftover, ignore_errors=True)

    def known(self, reference: Reference) -> str | None:
        """Return the digest that `reference` names here, if the image is on this node."""
        digest = reference.digest
        if digest is not None and self._directory(digest).is_dir():
            return digest
        try:
            digest = self._name(reference).read_text().partition("\n")[0]
        except (OSError, UnicodeDecodeError):
            return None
        if not is_digest(digest):
            return None  # a power loss can leave anything in it
        return digest if self._directory(digest).is_dir() else None

    def names(self) -> dict[str, list[str]]:
        """Return the references that are known to name each image, by its digest."""
        names: dict[str, list[str]] = {}
        for path in self._references.iterdir():
            try:
                digest, _, name = path.read_text().partition("\n")
            except (OSError, UnicodeDecodeError):
                continue
            if name:
                names.setdefault(digest, []).append(name)
        return {digest: sorted(found) for digest, found in names.items()}

    def digests(self) -> list[str]:
        """Return the digests of the images that are here, whether they can be opened or not."""
        names = (path.name.replace("-", ":", 1) for path in self._images.iterdir())
        return sorted(name for name in names if is_digest(name))

    def metadata_path(self, digest: str) -> Path:
        """Return where the metadata of an image is, if it is here."""
        return self._directory(digest) / METADATA

    def touch(self, digest: str) -> None:
        """Note that an image is used now."""
        with contextlib.suppress(OSError):
            os.utime(self._directory(digest))

    def last_used(self, digest: str) -> float:
        """Return when an image was mounted, or unmounted, last: seconds since 1970."""
        try:
            return self._directory(digest).stat().st_mtime
        except OSError:
            return 0.0

    def remove(self, digest: str) -> None:
        """Remove an image and the names of it; its sectors stay."""
        for path in self._references.iterdir():
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if path.read_text().partition("\n")[0] == digest:
                    path.unlink()
        try:
            scratch = self._images / f"tmp-{os.getpid()}-{threading.get_ident()}"
            self._directory(digest).rename(scratch)
            shutil.rmtree(scratch)
        except FileNotFoundError:
            return  # another thread was faster
        except OSError as exc:
            raise from_os_error(exc, "cannot remove the image").about(image=digest) from exc

    def damage(self, image: NodeImage) -> str | None:
        """Read the files of an image; return what is wrong with them, or None.

        1.2 ms for the metadata of an image of 1 GB. By now they are mapped into memory: a file
        that a disk cannot read any more would end the process, so it is read as a file.
        """
        manifest = image.block_image.manifest
        try:
            wanted = {
                "manifest.json": image.digest,
                "config.json": manifest.config.digest,
                METADATA: diff_ids(image.config)[0],
            }
            for name, digest in wanted.items():
                with (image.directory / name).open("rb") as file:
                    found = hashlib.file_digest(file, digest.partition(":")[0]).hexdigest()
                if found != digest.partition(":")[2]:
                    return f"its file {name} is damaged"
        except (OSError, ImageError) as exc:
            return f"its files cannot be read: {exc}"
        return None

    def load(self, digest: str) -> NodeImage:
        """Open an image that is on this node.

        Raises:
            NotFoundError: it is not.
            ImageError: its files are damaged.
        """
        directory = self._directory(digest)
        try:
            manifest = parse_manifest((directory / "manifest.json").read_bytes())
            config = parse_config((directory / "config.json").read_bytes())
            with open(directory / METADATA, "rb") as file:
                metadata = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except FileNotFoundError as exc:
            raise NotFoundError(f"image {digest} is not on this node") from exc
        except (OSError, ValueError) as exc:
            raise ImageError(
                f"the files of image {digest} are damaged: {exc}", hint=f"remove {directory}"
            ) from exc
        if not isinstance(manifest, Manifest):
            raise ImageError(f"the files of image {digest} are damaged", hint=f"remove {directory}")
        return NodeImage(digest, directory, open_image(manifest, metadata), config)

    def fetch(
        self,
        reference: Reference,
        repository: Repository,
        on_resolved: Callable[[], None] = lambda: None,
    ) -> NodeImage:
        """Fetch manifest, config and metadata of an image, unless it is here.

        Three requests; of an original with an attached image four: its manifest, the list of what
        is attached, the attached manifest with the config in it, and the metadata.

        Args:
            reference: its name.
            repository: where it is.
            on_resolved: called when manifest and config are here.

        Raises:
            FirstreadError: it cannot be had, or is not a firstread image; names the image.
        """
        try:
            resolved = resolve_converted(repository)
            on_resolved()
            for _ in range(ATTEMPTS):
                self._store(reference, repository, resolved)
                with contextlib.suppress(NotFoundError):  # it was pruned meanwhile
                    return self.load(resolved.descriptor.digest)
            raise NodeError("the image is pruned whenever it has come")
        except FirstreadError as exc:
            exc.about(image=str(reference))
            raise
        except OSError as exc:
            raise from_os_error(exc, "cannot store the image").about(image=str(reference)) from exc

    def _store(self, reference: Reference, repository: Repository, resolved: ResolvedImage) -> None:
        """Fetch the metadata of an image, unless it is here, and remember its name."""
        digest = resolved.descriptor.digest
        target = self._directory(digest)
        if not target.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix="tmp", dir=self._images))
            try:
                _write(scratch, resolved, repository)
                _publish(scratch, target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        self._remember(reference, digest)

    def _remember(self, reference: Reference, digest: str) -> None:
        name = self._name(reference)
        scratch = name.with_suffix(f".{threading.get_ident()}")
        scratch.write_text(f"{digest}\n{reference}")
        scratch.replace(name)

    def _name(self, reference: Reference) -> Path:
        return self._references / hashlib.sha256(str(reference).encode()).hexdigest()

    def _directory(self, digest: str) -> Path:
        return self._images / digest.replace(":", "-")


def _write(directory: Path, resolved: ResolvedImage, repository: Repository) -> None:
    """Write the files of an image, its metadata fetched and checked, and have them on the disk."""
    documents = {"manifest.json": resolved.manifest_bytes, "config.json": resolved.config_bytes}
    for name, data in documents.items():
        with open(directory / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    with open(directory / METADATA, "w+b") as file:
        validate(fetch_image(repository, resolved.manifest, file).erofs)
        os.fsync(file.fileno())


def _publish(scratch: Path, target: Path) -> None:
    """Give the finished directory its name, unless another thread was faster."""
    try:
        scratch.replace(target)
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return
    sync_directory(target.parent)
