# SPDX-License-Identifier: Apache-2.0
"""The files of one image on this node: manifest, config and metadata in a directory.

Owns how they are written, published and checked. Invariants: a published directory is complete;
only a file that is missing or has another digest is damage: what cannot be read now may be right
(docs/adr/0035).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from firstread.cache.room import Room
from firstread.device.base import INDEX_RUNS, NO_XATTRS
from firstread.erofs.validation import load, validate
from firstread.errors import ImageError
from firstread.oci.model import Manifest, diff_ids, parse_config, parse_manifest
from firstread.oci.repository import Repository
from firstread.oci.resolve import ResolvedImage
from firstread.sectors.image import BlockImage, fetch_image

NAMES = MANIFEST, CONFIG, METADATA = "manifest.json", "config.json", "metadata"  # of the files


def room_of(directory: Path) -> Room:
    """Return what the directory of an image and the files in it take."""
    room = Room(0, 1)
    for name in (*NAMES, NO_XATTRS, INDEX_RUNS):
        with contextlib.suppress(OSError):
            room += Room((directory / name).stat().st_size, 1)
    return room


def write(
    directory: Path,
    resolved: ResolvedImage,
    repository: Repository,
    coming: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> BlockImage:
    """Write the files of an image, its metadata fetched and checked, and have them on the disk.

    Args:
        directory: empty.
        resolved: the image.
        repository: where it is.
        coming: gives a block in which the metadata comes, as of `fetch_image`.

    Returns:
        the image, whose metadata is mapped.

    Raises:
        FirstreadError: the metadata cannot be had, or is not what it should be.
        OSError: the files cannot be written.
    """
    documents = {MANIFEST: resolved.manifest_bytes, CONFIG: resolved.config_bytes}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(directory / name, "w+b")) for name in NAMES]
        for file, name in zip(files, documents, strict=False):
            file.write(documents[name])
            file.flush()
        syncing = ThreadPoolExecutor(1, "sync")  # the disk holds up neither metadata nor its check
        stack.callback(syncing.shutdown)
        synced = [_begun(syncing, file) for file in files[:-1]]
        image = fetch_image(repository, resolved.manifest, files[-1], coming)
        synced.append(_begun(syncing, files[-1]))
        checked = validate(image.erofs)
        if not checked.has_xattrs:
            (directory / NO_XATTRS).touch()
        (directory / INDEX_RUNS).write_bytes(checked.runs.to_bytes())  # a mount can make it again
        for each in synced:
            each.result()
        return image


def prepare() -> None:
    """Load what `write` checks metadata with, which takes 0.07 s, so that the first need not."""
    load()


def _begun(syncing: Executor, file: IO[bytes]) -> Future[None]:
    """Begin to have a file on the disk; if there is no thread for it, do it at once."""
    try:
        return syncing.submit(os.fsync, file.fileno())
    except RuntimeError:
        os.fsync(file.fileno())
        done = Future[None]()
        done.set_result(None)
        return done


def publish(scratch: Path, target: Path) -> bool:
    """Give the finished directory its name; False if another thread was faster."""
    try:
        scratch.replace(target)
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def damage(directory: Path, digest: str) -> str | None:
    """Read the files of an image; return what is wrong with them, or None.

    1.2 ms for the metadata of an image of 1 GB. A mounted one is mapped into memory: a file that a
    disk cannot read any more would end the process, so it is read as a file.

    Raises:
        OSError: they cannot be read now: that says nothing of them.
    """
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
    return problem


def _differs(directory: Path, name: str, digest: str) -> str | None:
    """Return what is to be said of a file that has another digest; None if it has this one."""
    with (directory / name).open("rb") as file:
        found = hashlib.file_digest(file, digest.partition(":")[0]).hexdigest()
    return None if found == digest.partition(":")[2] else f"its file {name} is damaged"
