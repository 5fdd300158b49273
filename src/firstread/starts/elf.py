# SPDX-License-Identifier: Apache-2.0
"""ELF files: what a program needs, and which of its bytes a start reads. Pure.

Owns the layout of the headers and of the dynamic section, for 64-bit little-endian files. Does not
look for libraries. Invariant: any bytes give a result or None, after a few hundred reads of at most
64 KiB.

Facts about the reads of a start (glibc 2.36, read-ahead of 16 KiB; ADR 109 has the table):

* ld.so reads all of the tables that the dynamic section names (symbols, strings, hashes,
  relocations), and all pages that it relocates: the writable segments.
* Of the code of a library that nobody calls, a start reads only windows around its initializers
  and its terminators, and the last pages before the writable segment.
* Nothing reads the tables for unwinding, behind the header that PT_GNU_EH_FRAME names.

Source: System V ABI, ELF-64 Object File Format 1.5; gABI, dynamic section.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from firstread.units import KiB, MiB

Read = Callable[[int, int], bytes]  # of a file: (offset, length) -> at most length bytes

MAX_SEGMENTS = 64  # the linkers make 15
MAX_TAGS = 4096
MAX_NEEDED = 256  # libraries of one object
MAX_NAME = 4096
MAX_INITIALIZERS = 64
WINDOW = 16 * KiB  # that the kernel reads around a page fault
MAX_TABLES = 16 * MiB  # libLLVM has 10
SMALL = 64 * KiB  # a file that is read whole

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_TAG = struct.Struct("<qQ")
_LOAD, _DYNAMIC, _INTERP, _EH_FRAME = 1, 2, 3, 0x6474E550
_EXECUTABLE, _WRITABLE = 1, 2
_NEEDED, _STRTAB, _RPATH, _RUNPATH, _INIT, _FINI = 1, 5, 15, 29, 12, 13
_INIT_ARRAY, _INIT_ARRAYSZ = 25, 27
_TABLES = ((5, 10), (7, 8), (17, 18), (23, 2), (36, 35))  # strings, RELA, REL, PLT, RELR; sizes


class Range(NamedTuple):
    """Bytes of a file, from `start` to before `end`."""

    start: int
    end: int


class Segment(NamedTuple):
    """A PT_LOAD segment: flags, offset in the file, virtual address, bytes in the file."""

    flags: int
    offset: int
    address: int
    size: int


class Elf(NamedTuple):
    """An ELF file.

    Args:
        machine: e_machine.
        interpreter: path of the program interpreter; empty if there is none.
        needed: names of libraries, in order.
        runpath: where to look for them, as it is written.
        inherited: `runpath` is a DT_RPATH, which also serves the libraries of the libraries.
        sure: ranges that every start reads.
        likely: further ranges that a start reads in parts, if it uses this object at all.
    """

    machine: int
    interpreter: bytes
    needed: list[bytes]
    runpath: bytes
    inherited: bool
    sure: list[Range]
    likely: list[Range]


def read_elf(read: Read, size: int) -> Elf | None:
    """Return the ELF file of `size` bytes behind `read`; None if it is none that we know."""
    try:
        return _Reader(read, size).elf()
    except (struct.error, ValueError):
        return None


class _Reader:
    def __init__(self, read: Read, size: int) -> None:
        self.read, self.size = read, size
        header = _HEADER.unpack(read(0, _HEADER.size))
        if header[0][:6] != b"\x7fELF\x02\x01" or header[9] != _SEGMENT.size:
            raise ValueError("no 64-bit little-endian ELF file")
        self.machine, self.entry, self.headers = int(header[2]), int(header[4]), int(header[5])
        count = min(header[10], MAX_SEGMENTS)
        table = read(self.headers, count * _SEGMENT.size)
        self.rows: list[tuple[int, ...]] = list(_SEGMENT.iter_unpack(table))
        self.loads = [
            Segment(row[1], row[2], row[3], row[5])
            for row in self.rows
            if row[0] == _LOAD and row[2] + row[5] <= size
        ]
        self.tags: dict[int, int] = {}
        self.needed: list[int] = []  # offsets in the string table

    def elf(self) -> Elf:
        for kind, _, offset, _, _, length, *_ in self.rows:
            if kind == _DYNAMIC:
                self._read_tags(self.read(offset, min(length, MAX_TAGS * _TAG.size)))
        runpath = self.tags.get(_RUNPATH, self.tags.get(_RPATH))
        sure, likely = self._ranges()
        return Elf(
            self.machine,
            self._interpreter(),
            [name for offset in self.needed if (name := self._string(offset))],
            b"" if runpath is None else self._string(runpath),
            _RUNPATH not in self.tags,
            sure,
            likely,
        )

    def _read_tags(self, data: bytes) -> None:
        for tag, value in _TAG.iter_unpack(data[: len(data) - len(data) % _TAG.size]):
            if tag == 0:
                return
            if tag == _NEEDED and len(self.needed) < MAX_NEEDED:
                self.needed.append(value)
            else:
                self.tags.setdefault(tag, value)

    def _interpreter(self) -> bytes:
        for kind, _, offset, _, _, length, *_ in self.rows:
            if kind == _INTERP:
                return self.read(offset, min(length, MAX_NAME)).partition(b"\0")[0]
        return b""

    def _string(self, offset: int) -> bytes:
        start = self._offset(self.tags.get(_STRTAB, 0))
        if not start or offset > self.size:
            return b""
        return self.read(start + offset, MAX_NAME).partition(b"\0")[0]

    def _offset(self, address: int) -> int:
        """Return where in the file an address lies; 0 if it is in no segment."""
        for _, offset, start, size in self.loads:
            if start <= address < start + size:
                return address - start + offset
        return 0

    def _ranges(self) -> tuple[list[Range], list[Range]]:
        if self.size <= SMALL:
            return [Range(0, self.size)], []
        sure = [Range(0, self._end_of_tables()), *self._windows()]
        likely = []
        for load in self.loads:
            end = load.offset + load.size
            if load.flags & _WRITABLE:
                sure.append(Range(load.offset - WINDOW, end + WINDOW))
            else:
                likely.append(Range(load.offset, self._end_of_use(load)))
        return [self._cut(part) for part in sure], [self._cut(part) for part in likely]

    def _end_of_tables(self) -> int:
        """Return where the tables end that ld.so reads: they lie at the beginning of the file."""
        end = self.headers + len(self.rows) * _SEGMENT.size
        for where, length in _TABLES:
            start, size = self._offset(self.tags.get(where, 0)), self.tags.get(length, 0)
            if start and start + size <= MAX_TABLES:
                end = max(end, start + size)
        return end

    def _windows(self) -> Iterator[Range]:
        """Yield what the kernel reads for calls of the entry, initializers and terminators."""
        if begin := self._offset(self.tags.get(_INIT, 0)):
            yield Range(begin, begin + 2 * WINDOW)
        for address in (self.entry, self.tags.get(_FINI, 0), *self._initializers()):
            if at := self._offset(address):
                yield Range(at - WINDOW // 2, at + WINDOW // 2)

    def _initializers(self) -> list[int]:
        start = self._offset(self.tags.get(_INIT_ARRAY, 0))
        count = min(self.tags.get(_INIT_ARRAYSZ, 0) // 8, MAX_INITIALIZERS)
        data = self.read(start, count * 8) if start else b""
        return [address for (address,) in struct.iter_unpack("<Q", data[: len(data) & ~7])]

    def _end_of_use(self, load: Segment) -> int:
        """Return where the tables for unwinding begin in a segment; its end if it has none."""
        for kind, _, offset, *_ in self.rows:
            if kind == _EH_FRAME and load.offset <= offset < load.offset + load.size:
                return offset + 2 * WINDOW
        return load.offset + load.size

    def _cut(self, part: Range) -> Range:
        return Range(max(0, part.start), min(part.end, self.size))
