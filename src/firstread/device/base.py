# SPDX-License-Identifier: Apache-2.0
"""What every device has in common: how the kernel asks, and how it is answered.

Owns the interface, and what a read is that waits in the kernel until somebody answers. Does not
know where the bytes come from. `firstread.testing.suites.device` says what an implementation does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from firstread.device.readahead import START_KIB
from firstread.device.superblock import FileSystem
from firstread.errors import NodeError

MOST_READS = 16384  # that wait at a time
SECTOR_ID_BYTES = 32

NO_XATTRS = "no-xattrs"
"""A file beside the metadata of an image none of whose files has extended attributes."""

INDEX_RUNS = "index-runs"
"""A file beside the metadata of an image: its `firstread.erofs.indexruns.IndexRuns`."""

WHOLE_SECTOR = 1 << 40
"""Length of a read whose range is not known: no sector is that long."""

Pair = tuple[int, int]
"""Descriptors of a mount: its connection to the kernel, and its watches."""


class Read(NamedTuple):
    """A read that waits in the kernel for its answer.

    Args:
        number: what the kernel calls it.
        pid: of the reader.
        offset: first byte of the sector file that is wanted.
        length: bytes that are wanted.
        fd: the sector file, writable without raising events, owned by the receiver; negative if
            too many files are open.
        sector_id: of the sector; empty if it is not known.
    """

    number: int
    pid: int
    offset: int
    length: int
    fd: int
    sector_id: bytes = b""


def sector_of(path: bytes) -> bytes:
    """Return the id of the sector whose file lies at a path; empty if it is none."""
    digits = path.removesuffix(b" (deleted)")[-2 * SECTOR_ID_BYTES :]
    try:
        return bytes.fromhex(digits.decode()) if len(digits) == 2 * SECTOR_ID_BYTES else b""
    except ValueError:
        return b""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a device can do, as far as its users must know.

    Args:
        asks_for_sectors: a read that asks says which sector it wants, but not which part of it:
            its length is `WHOLE_SECTOR`.
        sets_read_ahead: how far the kernel reads ahead can be set for each mount, where the node
            allows it.
        known_start_kib: read-ahead while an image starts that says what a start reads. No two
            starts cut the windows of read-ahead in the same way, so some would leave the trace,
            for cold sectors: docs/adr/0141.
        merges_reads: readers of the same bytes wait for one read, which outlives each of them.
        outlives_servers: a mount that nobody serves or holds any more serves what is present, and
            can be served again; else it is dead.
        file_system: type of what it mounts, as the kernel's list of mounts names it.
    """

    asks_for_sectors: bool
    sets_read_ahead: bool
    merges_reads: bool
    outlives_servers: bool
    file_system: str
    known_start_kib: int = START_KIB


def no_ranges() -> NodeError:
    """Return the error for who has to know which bytes are read, of a device that cannot tell."""
    return NodeError(
        "this kernel does not say which bytes of a sector are read, so there is no trace",
        hint="trace it on Linux 6.14 or later; a trace holds for all nodes",
    )


class Device(Protocol):
    """How the kernel asks for the bytes of images. Safe to use from several threads.

    A read that asks comes from the process that takes them (`firstread.daemon.events`); here is
    what the process needs that fills sectors. Sector files are those of one store.
    """

    name: str

    @property
    def capabilities(self) -> Capabilities:
        """What it can do here."""

    def attach(self, metadata: Path, ids: Sequence[bytes], mountpoint: Path) -> None:
        """Mount an image; all its sectors are watched afterwards.

        One at a time. What others do to the same sectors meanwhile leaves them watched.

        Args:
            metadata: of the image, complete.
            ids: of its sectors, by device slot; each has a file.
            mountpoint: an existing directory.

        Raises:
            NodeError: nothing is mounted then.
        """

    def adopt(self, metadata: Path, ids: Sequence[bytes], number: int) -> bool:
        """Take over a mount that a process before has made; its reads wait for `go_on`.

        Args:
            metadata: of its image.
            ids: of its sectors, by device slot.
            number: of the device that it is.

        Returns:
            False if nobody has held it meanwhile: all its reads fail, and will.

        Raises:
            NodeError: that is not possible now.
        """

    def offer(self, ids: Iterable[bytes]) -> None:
        """Offer whole and trusted sectors to the next `attach`, which may borrow their files."""

    def borrows(self, sector_id: bytes) -> bool:
        """Return whether a sector is offered or borrowed.

        A mount reads the file of a borrowed sector without asking, whatever is watched: as long as
        it is used, the file must not become shorter.
        """

    def go_on(self, number: int) -> None:
        """Let the reads of an adopted mount ask: whatever is watched of it is known by now.

        Args:
            number: of the device that it is; once is enough.
        """

    def detach(self, mountpoint: Path, *, lazy: bool = False) -> None:
        """Unmount an image.

        Args:
            mountpoint: of it.
            lazy: also if it is in use; who uses it can read on, and asks.

        Raises:
            NodeError: nothing is mounted there, or it is in use; then the message says by whom.
        """

    def set_read_ahead(self, file_system: FileSystem, kib: int) -> None:
        """Bound what the kernel reads beyond what is asked for.

        Args:
            file_system: of an image that is attached, or still used.
            kib: at most; 0 for none. Files that are open keep what they were opened with.

        Raises:
            NodeError: the node does not allow it; nothing changes.
        """

    def read_ahead(self, file_system: FileSystem) -> int:
        """Return what bounds it now, in KiB.

        Raises:
            NodeError: it is not known here.
        """

    def watch(self, ids: Iterable[bytes]) -> None:
        """Have each read of these sectors ask.

        Raises:
            NodeError: that is not possible for one of them.
        """

    def unwatch(self, ids: Iterable[bytes]) -> None:
        """Have reads of these sectors go on without asking: they are whole, or not mounted.

        Reads that wait go on waiting for an answer. A sector that stays watched is no error.
        """

    def unwatch_file(self, sector_id: bytes, fd: int) -> None:
        """`unwatch` for one sector whose file is open."""

    def is_watching(self) -> bool:
        """Return whether anything is watched: by a fetcher before, if not by us."""

    def answer(self, number: int, *, allow: bool = True) -> bool:
        """Let a read go on, or fail with EIO. Does not block, and asks for nothing.

        Args:
            number: of the read.
            allow: whether it finds its bytes now.

        Returns:
            False if no such read waits.
        """


@runtime_checkable
class ServedDevice(Device, Protocol):
    """A device whose requests the process that fills sectors reads from descriptors of its mounts.

    Attributes:
        ask: takes a read that asks. Does not block.
        covers: tells, by sector id and end, whether a watched sector may be read without asking:
            the bytes are verified, or were until a moment ago, and the file is shorter now.
        patience_s: that reads wait once nobody holds their mount, where the kernel lets them wait.
    """

    ask: Callable[[Read], None]
    covers: Callable[[bytes, int], bool]
    patience_s: float

    def pairs(self) -> dict[int, Pair]:
        """Return copies of the descriptors of all mounts, by device number; the caller's."""

    def settle(self, seconds: float) -> None:
        """Wait until given answers have reached the kernel, at most so long."""

    def let_fail(self) -> None:
        """Have reads of what is absent fail from now on: this process ends, and so do others."""
