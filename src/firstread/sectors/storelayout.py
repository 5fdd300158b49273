# SPDX-License-Identifier: Apache-2.0
"""Where the files of a sector store lie, and how they get to the disk.

Owns names and layout, version 1 (changing it breaks every existing store)::

    ROOT/format.json     {"format": "firstread sector store", "version": 1}
    ROOT/lock            locked with flock(2) by the daemon; holds its process number
    ROOT/boot            boot id of the kernel under which sectors were last written
    ROOT/aside/          unverified files whose sector is mounted, by the sector id
    ROOT/sectors/ab/     256 directories, by the first byte of the sector id
        ab01…            one file per sector, named with all 64 hexadecimal digits

A sector file's mode says what is known of its bytes:

====== =================================================================================
0600   a verified prefix, not flushed: trusted while the kernel that wrote it is running
0400   a whole sector that is on the disk
0700   unverified
====== =================================================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from firstread.errors import NodeError, from_os_error
from firstread.mountinfo import filesystem_of

UNFLUSHED = 0o600
FLUSHED = 0o400
UNVERIFIED = 0o700

_FORMAT = {"format": "firstread sector store", "version": 1}
_SECTOR_NAME = re.compile("[0-9a-f]{64}")


def file_name(sector_id: bytes) -> str:
    """Return the name of a sector's file below ``sectors/``."""
    digits = sector_id.hex()
    return f"{digits[:2]}/{digits}"


def parse_name(name: str) -> bytes | None:
    """Return the sector id that a file name spells, or None."""
    return bytes.fromhex(name) if _SECTOR_NAME.fullmatch(name) else None


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Turn an OSError into a NodeError that says `what` cannot be done."""
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, what) from exc


def lay_out(root: Path) -> None:
    """Make a new store unless `root` is one.

    Raises:
        NodeError: `root` is a store of another layout.
    """
    if _is_formatted(root):
        return
    directory = root / "sectors"
    for shard in range(256):
        (directory / f"{shard:02x}").mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)  # made as a parent, it has the default mode
    _sync(directory)
    write_durably(root / "format.json", json.dumps(_FORMAT))  # what has it is complete


def _is_formatted(root: Path) -> bool:
    try:
        found = json.loads((root / "format.json").read_text())
    except FileNotFoundError:
        return False
    except (ValueError, RecursionError):
        found = None
    if found != _FORMAT:
        raise NodeError(
            f"{root} is not a sector store of layout version {_FORMAT['version']}",
            hint="choose another --root, or remove this one",
        )
    return True


def require_filesystem(root: Path, accepted: frozenset[str]) -> None:
    """Raise NodeError unless `root` lies on one of the `accepted` kinds of file system."""
    kind = filesystem_of(root)
    if kind not in accepted:
        raise NodeError(
            f"the sector store {root} is on {kind}, which cannot say when a file is read",
            hint="choose a --root on ext4, xfs or btrfs",
        )


def read_or_none(path: Path) -> str | None:
    """Return the text of a file; None if there is none, or a power loss tore it."""
    try:
        return path.read_text()
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def write_durably(path: Path, text: str) -> None:
    """Replace the contents of `path`: after a crash it has the old or the new text."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text)
        _sync(scratch)
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def overwrite(path: Path, text: str) -> None:
    """Put `text` in the place of as many bytes, with no new space; a power loss can tear it."""
    with path.open("r+") as file:
        file.write(text)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
