# SPDX-License-Identifier: Apache-2.0
"""The images of a node: manifest, config and metadata on disk, checked once, by digest.

Layout below the root::

    images/<digest of the manifest>/   complete, or not there
        manifest.json  config.json  metadata
    references/<digest of the name>    the digest of the converted image that a name, or the digest
                                       of an original, stood for when it was last asked for, and
                                       on the next line the name

The time of an image's directory is when it was last mounted or unmounted.

Invariants: what `load` opens was validated when it was stored, so opening it again costs nothing;
`ImageStore.remove` is the only way out, and takes nothing that is used. Only a file that is missing
or has another digest is damage: what cannot be read now may be right (docs/adr/0035).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import mmap
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firstread.erofs.reader import validate
from firstread.errors import FirstreadError, ImageError, NodeError, NotFoundError, from_os_error
from firstread.node.filling import Wanted
from firstread.node.room import Room
from firstread.oci.ingest import sync_directory
from firstread.oci.model import Manifest, diff_ids, parse_config, parse_manifest
from firstread.oci.reference import Reference, is_digest
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage
from firstread.sectors.attached import resolve_converted
from firstread.sectors.image import BlockImage, fetch_image, open_image

log = logging.getLogger("images")

MANIFEST, CONFIG, METADATA = "manifest.json", "config.json", "metadata"  # names of the files
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
        tidy: remove what was never complete, and names of images that are not here; only for the
            one who fetches.
        is_used: says of a digest whether its image is mounted, or used on: it is never removed.
            Called with the lock of this store held; must not wait for anybody.

    Attributes:
        room: that all images and their names take.
    """

    def __init__(
        self,
        root: Path,
        *,
        tidy: bool = True,
        is_used: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._images = root / "images"
        self._references = root / "references"
        self._is_used = is_used
        self._lock = threading.RLock()  # of what is here; nothing is removed without it
        self._kept: Counter[str] = Counter()  # images that are about to be mounted
        self._serial = itertools.count()
        for directory in (self._images, self._references):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._images.glob("tmp*") if tidy else ():
            shutil.rmtree(leftover, ignore_errors=True)
        self._rooms = {digest: _room(self._directory(digest)) for digest in self.digests()}
        self._named = self._read_names(tidy=tidy)  # digest that each file of a name has
        self._total = sum(self._rooms.values(), Room())

    @property
    def room(self) -> Room:
        return self._total + Room(0, len(self._named))

    def room_of(self, digest: str) -> Room:
        """Return what the files of an image take."""
        return self._rooms.get(digest, Room())

    def _read_names(self, *, tidy: bool) -> dict[Path, str]:
        named = {}
        for path in _listed(self._references):
            try:
                digest, _ = _read_name(path)
            except NodeError as exc:
                log.warning("%s", exc)  # it may be read later
                continue
            if digest in self._rooms:
                named[path] = digest
            elif tidy:
                path.unlink(missing_ok=True)
        return named

    def known(self, reference: Reference) -> str | None:
        """Return the digest that `reference` names here, if the image is on this node.

        Raises:
            NodeError: that cannot be read now.
        """
        digest = reference.digest
        if digest is not None and self._is_here(digest):
            return digest
        digest, _ = _read_name(self._name(reference))
        return digest if digest and self._is_here(digest) else None

    def names(self) -> dict[str, list[str]]:
        """Return the references that are known to name each image, by its digest."""
        names: dict[str, list[str]] = {}
        for path in _listed(self._references):
            with contextlib.suppress(NodeError):
                digest, name = _read_name(path)
                if name:
                    names.setdefault(digest, []).append(name)
        return {digest: sorted(found) for digest, found in names.items()}

    def digests(self) -> list[str]:
        """Return the digests of the images that are here, whether they can be opened or not."""
        names = (path.name.replace("-", ":", 1) for path in _listed(self._images))
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

    @contextlib.contextmanager
    def keeping(self, digest: str) -> Iterator[bool]:
        """Keep an image from being removed; gives whether it is here."""
        with self._lock:
            self._kept[digest] += 1
        try:
            yield self._is_here(digest)
        finally:
            with self._lock:
                self._kept -= Counter([digest])

    def remove(self, digest: str) -> Room:
        """Remove an image and the names of it, unless it is used; its sectors stay.

        The only way in which files of an image go. One that is mounted, used on after an unmount,
        about to be mounted, or still to be taken over stays, whoever wants it gone.

        Returns:
            the room that became free; none if it is used or not here.
        """
        with self._lock:
            if self._kept[digest] or self._is_used(digest):
                return Room()
            try:
                names = [path for path, named in self._named.items() if named == digest]
                for path in names:
                    path.unlink(missing_ok=True)
                    del self._named[path]
                scratch = self._images / f"tmp-{os.getpid()}-{next(self._serial)}"
                self._directory(digest).rename(scratch)
                freed = self._rooms.pop(digest, Room()) + Room(0, len(names))
                self._total -= Room(freed.bytes, freed.files - len(names))
            except FileNotFoundError:
                return Room()  # another thread was faster
            except OSError as exc:
                raise from_os_error(exc, "cannot remove the image").about(image=digest) from exc
        try:
            shutil.rmtree(scratch)
        except OSError as exc:
            raise from_os_error(exc, "cannot remove the image").about(image=digest) from exc
        return freed

    def damage(self, digest: str) -> str | None:
        """Read the files of an image; return what is wrong with them, or None.

        Only a file that is missing, or has another digest, is damage. 1.2 ms for the metadata of
        an image of 1 GB. A mounted one is mapped into memory: a file that a disk cannot read any
        more would end the process, so it is read as a file.

        Raises:
            NodeError: they cannot be read now: that says nothing of them.
        """
        directory = self._directory(digest)
        try:
            problem = _differs(directory, MANIFEST, digest)
            if problem is None:
                manifest = parse_manifest((directory / MANIFEST).read_bytes())
                if not isinstance(manifest, Manifest):
                    return None  # these are its bytes: whoever made them is wrong
                problem = _differs(directory, CONFIG, manifest.config.digest)
            if problem is None:
                config = parse_config((directory / CONFIG).read_bytes())
                problem = _differs(directory, METADATA, diff_ids(config)[0])
        except FileNotFoundError as exc:
            return f"its file {Path(exc.filename).name} is missing"
        except (ImageError, ValueError, IndexError):
            return None  # likewise
        except OSError as exc:
            raise from_os_error(exc, "cannot read the image").about(image=digest) from exc
        return problem

    def drop_damaged(self, digest: str) -> bool:
        """Remove an image if its files are damaged and nobody uses it; return whether it went.

        Raises:
            NodeError: they cannot be read now.
        """
        problem = self.damage(digest)
        if problem is None or not self._is_here(digest):
            return False
        log.error("image %s: %s", digest, problem)
        return bool(self.remove(digest))

    def load(self, digest: str) -> NodeImage:
        """Open an image that is on this node.

        Raises:
            NotFoundError: it is not.
            ImageError: its files are damaged, or not what this version can open.
            NodeError: they cannot be read now: that says nothing of them.
        """
        directory = self._directory(digest)
        advice = f"if it is not mounted, remove {directory}"
        try:
            manifest = parse_manifest((directory / MANIFEST).read_bytes())
            config = parse_config((directory / CONFIG).read_bytes())
            with open(directory / METADATA, "rb") as file:
                metadata = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except FileNotFoundError as exc:
            if not self._is_here(digest):
                raise NotFoundError(f"image {digest} is not on this node") from exc
            name = Path(exc.filename).name
            raise ImageError(f"the file {name} of image {digest} is missing", hint=advice) from exc
        except OSError as exc:
            raise from_os_error(exc, f"cannot open image {digest}") from exc
        except ValueError as exc:
            raise ImageError(
                f"the files of image {digest} are damaged: {exc}", hint=advice
            ) from exc
        if not isinstance(manifest, Manifest):
            raise ImageError(f"the files of image {digest} are damaged", hint=advice)
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
            digest = resolved.descriptor.digest
            for _ in range(ATTEMPTS):
                self._store(reference, repository, resolved)
                try:
                    return self.load(digest)
                except NotFoundError:
                    pass  # it was pruned meanwhile
                except ImageError:
                    if not self.drop_damaged(digest):
                        raise
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
                with self._lock:
                    if _publish(scratch, target):
                        self._rooms[digest] = room = _room(target)
                        self._total += room
                sync_directory(self._images)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        self._remember(reference, digest)

    def _remember(self, reference: Reference, digest: str) -> None:
        name = self._name(reference)
        scratch = name.with_suffix(f".{threading.get_ident()}")
        try:
            scratch.write_text(f"{digest}\n{reference}")
            with self._lock:
                scratch.replace(name)
                self._named[name] = digest
        except OSError:
            scratch.unlink(missing_ok=True)
            raise

    def _name(self, reference: Reference) -> Path:
        return self._references / hashlib.sha256(str(reference).encode()).hexdigest()

    def _directory(self, digest: str) -> Path:
        return self._images / digest.replace(":", "-")

    def _is_here(self, digest: str) -> bool:
        try:
            return self._directory(digest).is_dir()
        except OSError as exc:
            raise from_os_error(exc, f"cannot look for image {digest}") from exc


def _room(directory: Path) -> Room:
    """Return what the directory of an image and the files in it take."""
    room = Room(0, 1)
    for name in (MANIFEST, CONFIG, METADATA):
        with contextlib.suppress(OSError):
            room += Room((directory / name).stat().st_size, 1)
    return room


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError as exc:
        raise from_os_error(exc, "cannot read what images are here") from exc


def _read_name(path: Path) -> tuple[str, str]:
    """Return digest and reference that the file of a name has; nothing if there is no such name.

    Raises:
        NodeError: it cannot be read now.
    """
    try:
        digest, _, name = path.read_text().partition("\n")
    except (FileNotFoundError, UnicodeDecodeError):
        return "", ""
    except OSError as exc:
        raise from_os_error(exc, "cannot read which image a name means") from exc
    return (digest, name) if is_digest(digest) else ("", "")  # a power loss can leave anything


def _differs(directory: Path, name: str, digest: str) -> str | None:
    """Return what is to be said of a file that has another digest; None if it has this one."""
    with (directory / name).open("rb") as file:
        found = hashlib.file_digest(file, digest.partition(":")[0]).hexdigest()
    return None if found == digest.partition(":")[2] else f"its file {name} is damaged"


def _write(directory: Path, resolved: ResolvedImage, repository: Repository) -> None:
    """Write the files of an image, its metadata fetched and checked, and have them on the disk."""
    documents = {MANIFEST: resolved.manifest_bytes, CONFIG: resolved.config_bytes}
    for name, data in documents.items():
        with open(directory / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    with open(directory / METADATA, "w+b") as file:
        validate(fetch_image(repository, resolved.manifest, file).erofs)
        os.fsync(file.fileno())


def _publish(scratch: Path, target: Path) -> bool:
    """Give the finished directory its name; False if another thread was faster."""
    try:
        scratch.replace(target)
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
