# SPDX-License-Identifier: Apache-2.0
"""The images of a node: manifest, config and metadata on disk, checked once, by digest.

Layout below the root::

    images/<digest of the manifest>/   complete, or not there; see `firstread.cache.imagefiles`
    references/                        see `firstread.cache.imagenames`

The time of an image's directory is when it was last mounted or unmounted.

Invariants: what `load` opens was validated when it was stored, so opening it again costs nothing;
`ImageStore.remove` is the only way out, and takes nothing that is used.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import mmap
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from firstread.cache import imagefiles
from firstread.cache.imagefiles import CONFIG, MANIFEST, METADATA
from firstread.cache.imagenames import ImageNames, listed
from firstread.cache.nodeimage import NodeImage
from firstread.cache.room import Room
from firstread.errors import FirstreadError, ImageError, NotFoundError, from_os_error
from firstread.layouts.ingest import sync_directory
from firstread.oci.model import Manifest, parse_config, parse_manifest
from firstread.oci.reference import Reference, is_digest
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage
from firstread.sectors.attached import resolve_converted
from firstread.sectors.image import open_image

log = logging.getLogger("images")

TURN_S: Final = 10.0  # for which a fetch waits for one of the same image: it may be by another name


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
        self._root, self._images = root, root / "images"
        self._is_used = is_used
        self._lock = threading.RLock()  # of what is here; nothing is removed without it
        self._kept: Counter[str] = Counter()  # images that are about to be mounted
        self._turns: WeakValueDictionary[str, Any] = WeakValueDictionary()  # to fetch, by digest
        self._serial = itertools.count()
        self._images.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in self._images.glob("tmp*") if tidy else ():
            shutil.rmtree(leftover, ignore_errors=True)
        self._rooms = {d: imagefiles.room_of(self._directory(d)) for d in self.digests()}
        self._names = ImageNames(root / "references", self._rooms, tidy=tidy)
        self._total = sum(self._rooms.values(), Room())

    @property
    def room(self) -> Room:
        return self._total + Room(0, len(self._names))

    def room_of(self, digest: str) -> Room:
        """Return what the files of an image take."""
        return self._rooms.get(digest, Room())

    def known(self, reference: Reference) -> str | None:
        """Return the digest that `reference` names here, if the image is on this node.

        Raises:
            NodeError: that cannot be read now.
        """
        digest = reference.digest
        if digest is not None and self._is_here(digest):
            return digest
        digest = self._names.digest_of(reference)
        return digest if digest and self._is_here(digest) else None

    def names(self) -> dict[str, list[str]]:
        """Return the references that are known to name each image, by its digest."""
        return self._names.by_digest()

    def digests(self) -> list[str]:
        """Return the digests of the images that are here, whether they can be opened or not."""
        names = (path.name.replace("-", ":", 1) for path in listed(self._images))
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
                names = self._names.forget(digest)
                scratch = self._images / f"tmp-{os.getpid()}-{next(self._serial)}"
                self._directory(digest).rename(scratch)
                freed = self._rooms.pop(digest, Room())
                self._total -= freed
                freed += Room(0, names)
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

        Raises:
            NodeError: they cannot be read now: that says nothing of them.
        """
        try:
            return imagefiles.damage(self._directory(digest), digest)
        except OSError as exc:
            raise from_os_error(exc, "cannot read the image").about(image=digest) from exc

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
        on_resolved: Callable[[str, str], None] = lambda *_: None,
        coming: Callable[[Manifest], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> NodeImage:
        """Fetch manifest, config and metadata of an image, unless it is here.

        Two requests, for the manifest with the config in it and for the metadata; a large config
        is a third. Of an original with an attached image it is two more: its manifest, and the
        list of what is attached.

        Args:
            reference: its name.
            repository: where it is.
            on_resolved: called when manifest and config are here, with the digest that `reference`
                names and that of the image.
            coming: gives, for its manifest, a block in which its metadata comes.

        Raises:
            FirstreadError: it cannot be had, or is not a firstread image; names the image.
        """
        try:
            resolved = resolve_converted(repository)
            digest = resolved.descriptor.digest
            on_resolved(resolved.named, digest)
            begin = partial(coming, resolved.manifest)
            store = partial(self._store, reference, repository, resolved, begin)
            try:
                return store()
            except ImageError:
                if not self.drop_damaged(digest):
                    raise
            return store()
        except FirstreadError as exc:
            exc.about(image=str(reference))
            raise
        except OSError as exc:
            raise from_os_error(exc, "cannot store the image").about(image=str(reference)) from exc

    def _store(
        self,
        reference: Reference,
        repository: Repository,
        resolved: ResolvedImage,
        coming: Callable[[], AbstractContextManager[None]],
    ) -> NodeImage:
        """Fetch the metadata of an image, unless it is here, and remember its name."""
        digest = resolved.descriptor.digest
        target, fetched = self._directory(digest), None
        with self.keeping(digest):
            with self._turn(digest), contextlib.ExitStack() as stack:
                if not target.is_dir():
                    scratch = Path(tempfile.mkdtemp(prefix="tmp", dir=self._images))
                    stack.callback(shutil.rmtree, scratch, ignore_errors=True)
                    image = imagefiles.write(scratch, resolved, repository, coming)
                    with self._lock:
                        if imagefiles.publish(scratch, target):
                            config = resolved.config
                            fetched = NodeImage(digest, target, image, config, is_fresh=True)
                            self._rooms[digest] = room = imagefiles.room_of(target)
                            self._total += room
                    sync_directory(self._images)
            self._names.remember(reference, digest)
            return fetched or self.load(digest)

    @contextlib.contextmanager
    def _turn(self, digest: str) -> Iterator[None]:
        """Let another fetch of an image end before the block, unless that takes long."""
        with self._lock:
            turn = self._turns.setdefault(digest, threading.Lock())
        mine = turn.acquire(timeout=TURN_S)
        try:
            yield
        finally:
            if mine:
                turn.release()

    def _directory(self, digest: str) -> Path:
        return image_directory(self._root, digest)

    def _is_here(self, digest: str) -> bool:
        try:
            return self._directory(digest).is_dir()
        except OSError as exc:
            raise from_os_error(exc, f"cannot look for image {digest}") from exc


def image_directory(root: Path, digest: str) -> Path:
    """Return where the files of an image are below a root, if it is there."""
    return root / "images" / digest.replace(":", "-")
