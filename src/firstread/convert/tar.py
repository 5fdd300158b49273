# SPDX-License-Identifier: Apache-2.0
"""Reads the entries of a layer's tar archive, in one pass and at speed.

Owns the sequence of header blocks, extended headers, data and padding, and their limits. `layers`
owns the meaning of entries for a file tree (``..``, whiteouts, duplicates). Invariants: every byte
of the archive passes exactly once; `TarLimits` bound memory, whatever the archive states; entries
stay within these limits, or raise an `ImageError` with the entry and the offset of its header.

Where POSIX.1-2017 (pax, ustar) is silent or programs differ, this module follows Go's archive/tar,
since docker and containerd unpack layers with it:

* links, devices, directories and fifos have no data, whatever size they state;
* one block of zeros ends the archive only at the end of the file, two end it anywhere, and so does
  the end of the file after complete data, with all of its padding or not;
* an extended header without an entry behind it is passed over;
* a GNU long name wins over a PAX path.

Where numbers do not fit, it follows the system calls that unpack a layer: of an owner the lowest 32
bits count, and if they are all set it is root (chown(2) leaves root's files alone then), of a
device number the lowest 12 and 20 (mknod(2)). `pax.settle` has the same for attributes.

It differs where Go drops what an archive says: global headers apply to later entries (POSIX), and
GNU incremental directories (``D``) are directories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from firstread.convert import header, pax, sparse
from firstread.convert.entry import WHITEOUT, TarEntry, TarKind, TarLimits
from firstread.convert.header import BLOCK, INT64_MAX, ZEROS
from firstread.convert.stream import Feed
from firstread.errors import ImageError, LimitError, UnsupportedError
from firstread.printable import printable

_ID_BITS = 0xFFFFFFFF  # of an owner; all set, it is none
_MAJOR_BITS, _MINOR_BITS = (1 << 12) - 1, (1 << 20) - 1  # dev_t of Linux
_SIZE = slice(124, 136)
_EXTENSIONS = frozenset((b"x", b"X", b"g", b"L", b"K", b"V", b"M", b"N"))
_LINKS = (TarKind.SYMLINK, TarKind.HARDLINK)
_REFUSED = {b"M": "a continued file of a multi-volume archive", b"N": "an old GNU long name"}


class TarReader:
    """Iterates over the entries of an archive; `data` reads the data of the current one.

    It stops at the end of the archive; the caller drains the rest of `feed`.

    Args:
        feed: the uncompressed layer; nobody else may read it before the end of the iteration.
        limits: the defaults suit layers.
    """

    def __init__(self, feed: Feed, limits: TarLimits | None = None) -> None:
        self._feed = feed
        self._limits = limits or TarLimits()
        self._start = 0  # of the last header
        self._name = b""  # in the last header
        self._data_end = 0
        self._padding = 0
        self._current: TarEntry | None = None
        self._common: dict[bytes, bytes] = {}
        self._extended = False  # one of the following is set, for the next entry
        self._records: Mapping[bytes, bytes] = {}
        self._long_name = b""
        self._long_link = b""

    def __iter__(self) -> Iterator[TarEntry]:
        """Yield each entry; skip the unread data of the previous one.

        Raises:
            ImageError: the archive is damaged, ends early, or exceeds a limit.
        """
        entries = 0
        while True:
            try:
                block = self._next_header()
                if block is None:
                    return
                if block[156:157] in _EXTENSIONS:
                    self._extension(block)
                    continue
                entry = self._entry(block)
                entries += 1
                if entries > self._limits.entries:
                    raise LimitError(f"the layer has more than {self._limits.entries} entries")
            except ImageError as exc:
                self._locate(exc)
                raise
            yield entry

    def data(self, entry: TarEntry) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset in the file, bytes) of all stored data of the current entry, in order.

        The slices stay valid. The holes of a sparse file are left out, and read as zeros.

        Args:
            entry: the latest of the iteration; its data can be read once.

        Raises:
            ImageError: the archive ends early.
            ValueError: `entry` is not the latest, or was read before.
        """
        if entry is not self._current:
            raise ValueError("only the data of the current entry can be read, and once")
        self._current = None
        extents = ((0, entry.size),) if entry.extents is None else entry.extents
        try:
            for start, length in extents:
                offset = start
                for piece in self._feed.pieces(length):
                    yield offset, piece
                    offset += len(piece)
        except ImageError as exc:
            self._locate(exc)
            raise

    def _locate(self, error: ImageError) -> None:
        """Add the entry to `error`, unless the stream itself failed."""
        if error is not self._feed.failure:
            place = f"tar entry '{printable(self._name)}' at byte {self._start}"
            error.message = f"{place}: {error.message}"

    def _next_header(self) -> bytes | None:
        """Return the next header block, its checksum verified; None at the end of the archive."""
        feed = self._feed
        feed.skip(self._data_end - feed.position)
        feed.skip(self._padding, optional=True)
        start = feed.position
        if feed.at_end() or (block := feed.exact(BLOCK)) == ZEROS:
            if not feed.at_end() and feed.exact(BLOCK) != ZEROS:
                raise ImageError("a single block of zeros is followed by something else")
            return None
        self._start, self._name = start, block[:100].partition(b"\0")[0]
        header.check(block)
        return block

    def _stores(self, size: int) -> None:
        """Expect `size` bytes of data, and the padding of their last block."""
        self._data_end = self._feed.position + size
        self._padding = -size % BLOCK

    def _extension(self, block: bytes) -> None:
        """Handle a block that is not an entry, but describes others."""
        kind = block[156:157]
        size = header.number(block[_SIZE])
        if kind in _REFUSED:
            raise UnsupportedError(f"{_REFUSED[kind]} (type {kind.decode()!r}) cannot be read")
        if not 0 <= size <= self._limits.header_bytes:
            raise LimitError(f"an extended header states {size} bytes")
        self._stores(size)
        if kind == b"V":  # the label of the volume
            return
        content = self._feed.exact(size)
        if kind == b"g":
            self._common_changes(pax.parse_records(content))
            return
        self._extended = True
        if kind == b"L":
            self._long_name = content.partition(b"\0")[0]
        elif kind == b"K":
            self._long_link = content.partition(b"\0")[0]
        else:
            self._records = pax.parse_records(content)

    def _common_changes(self, records: Mapping[bytes, bytes]) -> None:
        """Apply a global header, which overrides the same keywords of earlier ones."""
        self._common |= records
        for key, value in records.items():
            if not value:
                del self._common[key]
        total = sum(len(key) + len(value) for key, value in self._common.items())
        if total > self._limits.common_bytes:
            raise LimitError(f"the global headers have {total} bytes")

    def _forget_extensions(self) -> None:
        self._extended = False
        self._records = {}
        self._long_name = b""
        self._long_link = b""

    def _entry(self, block: bytes) -> TarEntry:
        """Return the entry of a header block, with its extended headers applied."""
        entry = header.parse(block)
        records: Mapping[bytes, bytes] = self._common
        if self._extended or records:
            records = pax.merge(self._common, self._records)
            pax.apply(entry, records, self._limits)
            entry.path = self._long_name or entry.path
            entry.link = self._long_link or entry.link
            if entry.kind is not TarKind.CHAR and entry.kind is not TarKind.BLOCK:
                entry.rdev = (0, 0)  # records give other types device numbers without meaning
            self._forget_extensions()
        if entry.link and entry.kind not in _LINKS:
            entry.link = b""  # some programs leave one in headers of other types
        if entry.path.endswith(b"/") and block[156:157] == b"\0":
            entry.kind = TarKind.DIRECTORY  # v7 has no type for it; the path is complete only now
        entry.uid = (entry.uid & _ID_BITS) % _ID_BITS
        entry.gid = (entry.gid & _ID_BITS) % _ID_BITS
        if any(entry.rdev):
            entry.rdev = (entry.rdev[0] & _MAJOR_BITS, entry.rdev[1] & _MINOR_BITS)
        if entry.xattrs and entry.kind is not TarKind.HARDLINK:  # which takes none
            pax.settle(entry)
        if not 0 <= entry.size <= INT64_MAX:
            raise ImageError(f"the size {entry.size} is out of range")
        if entry.kind is TarKind.REGULAR:
            stored = sparse.read_map(entry, block, records, self._feed, self._limits)
        else:
            stored = entry.size if block[156:157] == b"D" else 0
            entry.size = 0
        self._stores(stored)
        self._check(entry)
        self._current = entry
        return entry

    def _check(self, entry: TarEntry) -> None:
        """Check the fields of an entry together, once all headers have been applied."""
        limits = self._limits
        if len(entry.path) > limits.name_bytes:
            parent, slash, name = entry.path.rpartition(b"/")
            path = parent + slash + name.removeprefix(WHITEOUT)
            if len(path) > limits.path_bytes:
                raise LimitError(f"the path has more than {limits.path_bytes} bytes")
            if max(map(len, path.split(b"/"))) > limits.name_bytes:
                raise LimitError(f"a name in the path has more than {limits.name_bytes} bytes")
        if b"\0" in entry.path or b"\0" in entry.link:
            raise ImageError("a name has a NUL byte")
        if entry.kind is TarKind.REGULAR or entry.kind is TarKind.DIRECTORY:
            return
        if entry.kind in _LINKS:
            if not entry.link and entry.path.strip(b"/."):  # the root ignores it anyway
                raise ImageError("a link has no target")
            if len(entry.link) > limits.link_bytes:
                raise LimitError(f"a link target has more than {limits.link_bytes} bytes")
